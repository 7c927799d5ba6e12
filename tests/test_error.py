import copy
import pickle
import string
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from izulu import root

from taskiq.error import Error

_ErrorT = TypeVar("_ErrorT", bound=Error)


class PlainError(Error):
    pass


class ItemError(Error):
    __template__ = "item {item!r} of {batch}"

    item: Any
    batch: str = "none"


class StepError(ItemError):
    __template__ = "{_STEP}: {item.real} {batch[0]}"

    _STEP: ClassVar[str] = "step"
    batch: str


class OwnConstructorError(Error):
    __template__ = "{who} is it"

    who: str

    def __init__(self, name: str) -> None:
        super().__init__(who=name)


def pickled(error: _ErrorT) -> _ErrorT:
    loaded: _ErrorT = pickle.loads(pickle.dumps(error))  # noqa: S301 - just dumped
    return loaded


COPIERS = [copy.copy, copy.deepcopy, pickled]


def test_errors_are_built_on_izulu() -> None:
    assert issubclass(Error, root.Error)


def test_the_message_is_the_template_filled_with_the_fields() -> None:
    error = ItemError(item="a", batch="b")

    assert str(error) == "item 'a' of b"
    assert error.args == ("item 'a' of b",)


def test_without_a_template_the_message_is_the_base_text() -> None:
    assert str(PlainError()) == "Exception occurred"


def test_a_field_with_a_class_value_may_be_left_out() -> None:
    assert str(ItemError(item=1)) == "item 1 of none"


def test_a_class_value_set_after_the_class_was_made_counts() -> None:
    class LateError(Error):
        __template__ = "{kind}"

        kind: ClassVar[str]

    LateError.kind = "late"

    assert str(LateError()) == "late"


def test_a_class_var_fills_the_template_and_may_be_given() -> None:
    assert str(StepError(item=1, batch="b")) == "step: 1 b"
    given: dict[str, Any] = {"item": 1, "batch": "b", "_STEP": "other"}
    assert str(StepError(**given)) == "other: 1 b"


def test_a_property_may_stand_for_a_field() -> None:
    class ComputedError(Error):
        __template__ = "{total}"

        total: int

        @property  # type: ignore[no-redef]  # what this test is about
        def total(self) -> int:
            return 3

    assert str(ComputedError()) == "3"  # type: ignore[call-arg]  # checkers see a field


def test_undeclared_arguments_are_named_in_order() -> None:
    with pytest.raises(TypeError, match=r"^Undeclared arguments: 'x', 'y'$"):
        ItemError(y=1, x=2)  # type: ignore[call-arg]


def test_missing_arguments_are_named_in_order() -> None:
    class PairError(Error):
        b: int
        a: int

    with pytest.raises(TypeError, match=r"^Missing arguments: 'a', 'b'$"):
        PairError()  # type: ignore[call-arg]


def test_undeclared_arguments_are_reported_before_missing_ones() -> None:
    with pytest.raises(TypeError, match="Undeclared"):
        ItemError(x=1)  # type: ignore[call-arg]


def test_missing_arguments_are_reported_before_unannotated_fields() -> None:
    class BrokenError(Error):
        __template__ = "{nobody}"

        item: int

    with pytest.raises(TypeError, match="Missing"):
        BrokenError()  # type: ignore[call-arg]


def test_a_template_may_use_only_annotated_fields() -> None:
    class BrokenError(Error):
        __template__ = "{b.x} {a[0]} {0} {ok}"

        ok: int = 1

    with pytest.raises(ValueError, match=r"^Fields must be annotated: '0', 'a', 'b'$"):
        BrokenError()


def test_a_malformed_template_is_an_error_of_the_instance() -> None:
    class BrokenError(Error):
        __template__ = "{item"

        item: int = 1

    with pytest.raises(ValueError, match="expected '}'"):
        BrokenError()


def test_a_template_that_cannot_be_formatted_is_a_value_error_with_its_cause() -> None:
    with pytest.raises(ValueError, match="item=None") as caught:
        StepError(item=None, batch="b")

    assert isinstance(caught.value.__cause__, AttributeError)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        ItemError("a")  # type: ignore[call-arg]


def test_escapes_conversions_and_format_specs_work() -> None:
    class FormattedError(Error):
        __template__ = "{{{a!s:>3}}}"

        a: int

    assert str(FormattedError(a=1)) == "{  1}"


def test_changing_a_field_leaves_the_message() -> None:
    error = ItemError(item=1)
    error.item = 2

    assert str(error) == "item 1 of none"
    assert repr(error).endswith("ItemError(item=2, batch='none')")


def test_the_repr_names_module_class_and_fields_base_fields_first() -> None:
    name = f"{__name__}.StepError"
    assert repr(StepError(batch="b", item=1)) == (
        f"{name}(item=1, batch='b', _STEP='step')"
    )
    assert repr(PlainError()) == f"{__name__}.PlainError()"


def test_with_several_bases_the_first_template_in_the_mro_wins() -> None:
    class FirstError(PlainError):
        pass

    class SecondError(PlainError):
        __template__ = "second"

    class BothError(FirstError, SecondError):
        pass

    assert str(BothError()) == "second"


def test_fields_of_a_mixin_count() -> None:
    class Mixin:
        who: str

    class MixedError(Mixin, Error):
        __template__ = "{who}"

    with pytest.raises(TypeError, match="'who'"):
        MixedError()
    assert str(MixedError(who="me")) == "me"


def test_subclass_keywords_reach_cooperating_mixins() -> None:
    seen: list[str] = []

    class Mixin:
        def __init_subclass__(cls, tag: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append(tag)

    class TaggedError(Error, Mixin, tag="x"):
        pass

    assert seen == ["x"]
    assert str(TaggedError()) == "Exception occurred"


def test_the_bare_class_can_be_raised_when_no_field_is_required() -> None:
    with pytest.raises(PlainError, match="Exception occurred"):
        raise PlainError


def test_the_helpers_tell_fields_names_and_template_fields() -> None:
    assert list(StepError._collect_annotations()) == ["item", "batch", "_STEP"]
    assert Error._collect_annotations() == {}
    assert Error._format_fields({"b", "a"}) == "'a', 'b'"
    assert Error._template_fields("{a.b} {c[0]} {} {0} {{x}}") == {"a", "c", "0"}


def test_the_fields_can_be_read_as_a_dict() -> None:
    error = StepError(item=1, batch="b")

    assert error.as_kwargs() == {"item": 1, "batch": "b"}
    assert error.as_dict() == {"item": 1, "batch": "b", "_STEP": "step"}


@pytest.mark.parametrize("duplicate", COPIERS)
def test_an_error_can_be_pickled_and_copied(
    duplicate: Callable[[ItemError], ItemError],
) -> None:
    error = ItemError(item=[1], batch="b")
    error.__dict__["__notes__"] = ["note"]

    twin = duplicate(error)

    assert type(twin) is ItemError
    assert twin is not error
    assert (twin.item, twin.batch) == ([1], "b")
    assert twin.args == error.args
    assert twin.__dict__["__notes__"] == ["note"]
    assert repr(twin) == repr(error)


@given(item=st.text(alphabet=string.printable) | st.integers() | st.none())
def test_pickling_keeps_whatever_message_was_raised(item: object) -> None:
    error = ItemError(item=item)

    assert str(pickled(error)) == str(error)


def test_pickling_calls_no_constructor() -> None:
    error = OwnConstructorError("who")

    assert str(pickled(error)) == "who is it"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_was_raised_from_the_same_cause(
    duplicate: Callable[[ItemError], ItemError],
) -> None:
    error = ItemError(item=1)
    error.__cause__ = ValueError("cause")
    error.__context__ = KeyError("context")
    error.__suppress_context__ = False

    twin = duplicate(error)

    assert twin.__cause__ is error.__cause__
    assert twin.__context__ is error.__context__
    assert twin.__suppress_context__ is False


def test_a_deep_copy_shares_no_field_and_a_shallow_one_all() -> None:
    error = ItemError(item=[1])

    assert copy.copy(error).item is error.item
    assert copy.deepcopy(error).item is not error.item


def test_an_error_may_refer_to_itself() -> None:
    error = ItemError(item=1)
    error.item = error

    twin = copy.deepcopy(error)

    assert twin.item is twin
    assert pickled(error).item is not error
