import json
import pickle
import sys
import threading
import types
from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import serialization
from taskiq.error import Error
from taskiq.exceptions import SecurityError
from taskiq.serialization import (
    Coder,
    ExceptionRepr,
    create_exception_cls,
    ensure_serializable,
    exception_to_python,
    find_pickleable_exception,
    get_pickleable_exception,
    get_pickled_exception,
    prepare_exception,
    safe_repr,
    subclass_exception,
)
from taskiq.serialization import _UnpickleableExceptionWrapper as Wrapper

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


class FragileKeyError(KeyError):
    def __init__(self, key: str, table: str) -> None:
        super().__init__(key)
        self.table = table


class TwoPartError(Exception):
    """Its constructor does not accept its own `args`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class ApiError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFoundError(ApiError):
    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"no {kind} {number}")


class UnshowableError(Exception):
    """Without its constructor it can be made, but not shown."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__()
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class FalsyError(Exception):
    def __bool__(self) -> bool:
        return False


class LimitError(Error):
    __template__ = "limit {limit} of {owner} reached"

    limit: int
    owner: Any = "nobody"


class Outer:
    class NestedError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a + b)


class Hostile:
    def __repr__(self) -> str:
        raise TypeError("no repr")

    def __str__(self) -> str:
        raise ValueError("no str")


def dumped(exc: BaseException) -> Any:
    """Return what a result backend stores of an error."""
    prepared = prepare_exception(exc, json)
    assert isinstance(prepared, ExceptionRepr)
    return json.loads(json.dumps(prepared.model_dump(mode="json")))


def through_json(exc: BaseException) -> BaseException:
    restored = exception_to_python(dumped(exc))
    assert restored is not None
    return restored


def through_pickle(exc: BaseException) -> BaseException:
    prepared = pickle.dumps(prepare_exception(exc, pickle))
    restored = exception_to_python(pickle.loads(prepared))  # noqa: S301 - just dumped
    assert restored is not None
    return restored


def stored(exc_type: str, *args: object, module: str | None = "builtins") -> Any:
    return {"exc_type": exc_type, "exc_message": list(args), "exc_module": module}


def chain_of(
    length: int,
    make: Callable[[int], BaseException] = ValueError,
) -> BaseException:
    exc = make(0)
    for number in range(1, length):
        effect = make(number)
        effect.__cause__ = effect.__context__ = exc
        exc = effect
    return exc


def causes(exc: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while exc is not None:
        found.append(exc)
        exc = exc.__cause__
    return found


# Small helpers


def test_a_repr_that_raises_is_replaced_by_the_str() -> None:
    class OnlyStr:
        def __repr__(self) -> str:
            raise TypeError

        def __str__(self) -> str:
            return "text"

    assert safe_repr(OnlyStr()) == "text"


def test_an_object_that_cannot_be_shown_is_described() -> None:
    shown = safe_repr(Hostile())

    assert shown.startswith(f"<Unrepresentable {Hostile!r}: ValueError('no str') ")
    assert shown.endswith(">")


def test_an_object_is_described_even_if_its_error_cannot_be_shown() -> None:
    class HostileError(Exception):
        __repr__ = Hostile.__repr__

    class Worse:
        def __str__(self) -> str:
            raise HostileError

        __repr__ = __str__

    assert "HostileError object at" in safe_repr(Worse())


def test_a_string_is_returned_itself() -> None:
    text = "".join(["te", "xt"])

    assert serialization._safe_str(text) is text


def test_exception_classes_are_made_with_name_module_and_parent() -> None:
    made = [
        create_exception_cls("MadeError", "some.module"),
        create_exception_cls("MadeError", "some.module", KeyError),
        subclass_exception("MadeError", KeyError, "some.module"),
    ]

    assert [(cls.__name__, cls.__module__) for cls in made] == [
        ("MadeError", "some.module"),
    ] * 3
    assert [cls.__bases__ for cls in made] == [(Exception,), (KeyError,), (KeyError,)]


def test_items_the_coder_cannot_carry_are_replaced_by_their_repr() -> None:
    unknown = object()
    nested = (1, (2, None))

    kept = ensure_serializable([nested, None, unknown, {1}], json)

    assert kept == (nested, None, repr(unknown), "{1}")
    assert kept[0] is nested


def test_json_and_pickle_are_coders() -> None:
    assert isinstance(json, Coder)
    assert isinstance(pickle, Coder)
    assert not isinstance(object(), Coder)


def test_the_cache_of_0_13_0_is_importable_and_stays_empty() -> None:
    dumped(chain_of(3))

    assert not serialization.SEEN_EXCEPTIONS_CACHE


# Preparing with JSON


def test_an_ordinary_error_has_the_shape_of_0_13_0() -> None:
    prepared = prepare_exception(ValueError("x"), json)

    assert isinstance(prepared, ExceptionRepr)
    assert prepared.model_dump_json() == (
        '{"exc_type":"ValueError","exc_message":["x"],"exc_module":"builtins",'
        '"exc_cause":null,"exc_context":null,"exc_suppress_context":false}'
    )
    assert prepared.model_dump()["exc_message"] == ("x",)


def test_a_class_is_named_by_its_qualified_name() -> None:
    class LocalError(Exception):
        pass

    assert dumped(Outer.NestedError(1, 2))["exc_type"] == "Outer.NestedError"
    assert dumped(LocalError())["exc_type"].endswith(".<locals>.LocalError")


def test_a_cause_hides_the_context() -> None:
    error = chain_of(2)

    data = dumped(error)

    assert data["exc_cause"]["exc_message"] == [0]
    assert data["exc_context"] is None
    assert data["exc_suppress_context"] is True


def test_a_suppressed_context_is_left_out() -> None:
    error = ValueError("x")
    error.__context__ = KeyError("y")
    error.__suppress_context__ = True

    data = dumped(error)

    assert (data["exc_cause"], data["exc_context"]) == (None, None)
    assert data["exc_suppress_context"] is True


def test_a_context_is_kept_if_it_is_not_suppressed() -> None:
    error = ValueError("x")
    error.__context__ = KeyError("y")

    assert dumped(error)["exc_context"]["exc_type"] == "KeyError"


def test_a_cycle_ends_where_it_meets_itself() -> None:
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first

    data = dumped(first)

    assert data["exc_cause"]["exc_message"] == [2]
    assert data["exc_cause"]["exc_cause"] is None


def test_an_exception_met_on_two_ways_is_kept_on_both() -> None:
    error, shared = ValueError("x"), ValueError("shared")
    error.__cause__ = ValueError("y")
    error.__cause__.__cause__ = error.__context__ = shared
    error.__suppress_context__ = False

    data = dumped(error)

    assert data["exc_cause"]["exc_cause"] == data["exc_context"]


def test_the_args_of_a_group_are_written_as_by_0_13_0() -> None:
    data = dumped(ExceptionGroup("g", [ValueError(1)]))

    assert data["exc_message"] == ["g", "[ValueError(1)]"]


def test_wrong_arguments_are_a_validation_error() -> None:
    with pytest.raises(pydantic.ValidationError):
        prepare_exception("x", json)  # type: ignore[arg-type]
    with pytest.raises(pydantic.ValidationError):
        prepare_exception(ValueError(), object())  # type: ignore[arg-type]


def test_preparing_for_json_runs_no_constructor() -> None:
    calls: list[object] = []

    class LoudError(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            calls.append(text)

    dumped(LoudError("x"))

    assert calls == ["x"]


def test_each_exception_of_a_chain_is_prepared_once() -> None:
    shown: list[int] = []

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def __repr__(self) -> str:
            shown.append(self.number)
            return str(self.number)

    dumped(chain_of(50, lambda number: ValueError(Numbered(number))))

    assert sorted(shown) == list(range(50))


def test_a_long_chain_is_cut_and_says_so() -> None:
    restored = causes(through_json(chain_of(10_000)))

    assert len(restored) == 100
    assert [exc.args for exc in restored[:2]] == [(9_999,), (9_998,)]
    assert str(restored[-1]) == "chain cut after 99 exceptions"


def test_exceptions_met_on_many_ways_do_not_multiply() -> None:
    error = ValueError(0)
    for number in range(1, 60):
        effect = ValueError(number)
        effect.__cause__ = effect.__context__ = error
        effect.__suppress_context__ = False
        error = effect

    assert json.dumps(dumped(error)).count("exc_type") <= 100


def test_threads_preparing_one_error_do_not_disturb_each_other() -> None:
    both_inside = threading.Barrier(2, timeout=10)
    meetings = threading.local()

    class Meeting:
        def __repr__(self) -> str:
            if not getattr(meetings, "done", False):
                meetings.done = True
                both_inside.wait()
            return "met"

    error = ValueError(Meeting())
    error.__cause__ = KeyError("cause")
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(dumped(error))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found[0] == found[1]
    assert found[0]["exc_cause"]["exc_type"] == "KeyError"


# Preparing with pickle


def test_a_picklable_exception_is_returned_itself() -> None:
    error = ValueError("x")

    assert prepare_exception(error, pickle) is error
    assert get_pickleable_exception(error, pickle) is error


def test_a_fragile_exception_becomes_its_nearest_base() -> None:
    error = FragileKeyError("k", "t")

    for found in (
        prepare_exception(error, pickle),
        find_pickleable_exception(error, pickle),
        get_pickleable_exception(error, pickle),
    ):
        assert type(found) is KeyError
        assert found.args == ("k",)


def test_an_exception_without_such_a_base_is_wrapped() -> None:
    error = TwoPartError(5, "x")
    wrapper = prepare_exception(error, pickle)

    assert find_pickleable_exception(error, pickle) is None
    assert type(get_pickleable_exception(error, pickle)) is Wrapper
    assert isinstance(wrapper, Wrapper)
    assert wrapper.args == (
        __name__,
        "TwoPartError",
        ("5: x",),
        "TwoPartError('5: x')",
    )
    assert str(wrapper) == "TwoPartError('5: x')"


def test_a_wrapper_keeps_the_originals_where_the_coder_has_no_exceptions() -> None:
    error = TwoPartError(5, "x")
    error.__cause__ = KeyError("cause")

    wrapper = Wrapper.from_exception(error, json)

    assert wrapper.__cause__ is error.__cause__
    assert wrapper.__suppress_context__ is True


def test_a_coder_for_exceptions_is_given_the_exception() -> None:
    class Anything:
        def dumps(self, obj: Any, /) -> Any:
            return obj

        def loads(self, s: Any, /) -> Any:
            return s

    error = TwoPartError(5, "x")

    assert prepare_exception(error, Anything()) is error


# From data to an exception


@given(
    st.lists(
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()),
    ),
)
def test_an_ordinary_exception_survives_json(args: list[Any]) -> None:
    restored = through_json(ValueError(*args))

    assert type(restored) is ValueError
    assert restored.args == tuple(args)


def test_a_chain_survives_json() -> None:
    restored = causes(through_json(chain_of(50)))

    assert [exc.args for exc in restored] == [(number,) for number in range(49, -1, -1)]
    assert all(exc.__suppress_context__ for exc in restored[:-1])


def test_a_context_survives_json() -> None:
    error = ValueError("x")
    error.__context__ = KeyError("y")

    restored = through_json(error)

    assert repr(restored.__context__) == "KeyError('y')"
    assert restored.__suppress_context__ is False


def test_nothing_is_nothing_and_an_exception_is_itself() -> None:
    error = ValueError()

    assert exception_to_python(None) is None
    assert exception_to_python(error) is error
    assert get_pickled_exception(error) is error


def test_an_exception_that_is_false_survives() -> None:
    error = FalsyError("x")
    effect = ValueError()
    effect.__cause__ = error

    assert exception_to_python(error) is error
    assert type(through_json(error)) is FalsyError
    assert type(through_json(effect).__cause__) is FalsyError


def test_an_unknown_class_keeps_its_name_and_module() -> None:
    restored = exception_to_python(stored("Outer.LostError", 1, module="not.loaded"))

    assert type(restored).__bases__ == (Exception,)
    assert type(restored).__name__ == "Outer.LostError"
    assert type(restored).__module__ == "not.loaded"
    assert restored is not None
    assert restored.args == (1,)


def test_a_class_that_its_module_lacks_is_unknown() -> None:
    restored = exception_to_python(stored("LostError", module=__name__))

    assert type(restored).__name__ == "LostError"
    assert type(restored).__module__ == __name__


def test_a_class_without_a_module_is_made_here() -> None:
    restored = exception_to_python(stored("ValueError", module=None))

    assert type(restored) is not ValueError
    assert type(restored).__module__ == "taskiq.serialization"


def test_a_nested_class_comes_back_as_itself() -> None:
    assert type(through_json(Outer.NestedError(1, 2))) is Outer.NestedError


@pytest.mark.parametrize("through", [through_json, through_pickle])
def test_an_exception_that_refuses_its_args_survives_as_its_class(
    through: Callable[[BaseException], BaseException],
) -> None:
    restored = through(TwoPartError(5, "x"))

    assert type(restored) is TwoPartError
    assert str(restored) == "5: x"


def test_the_nearest_constructor_that_accepts_the_args_is_used() -> None:
    restored = through_json(NotFoundError("user", 7))

    assert isinstance(restored, NotFoundError)
    assert restored.message == "no user 7"


def test_an_exception_that_could_not_be_shown_becomes_a_text() -> None:
    restored = exception_to_python(
        stored("UnshowableError", "5: x", module=__name__),
    )

    assert type(restored) is Exception
    assert str(restored) == f"{UnshowableError}(('5: x',))"


def test_a_built_in_exception_that_refuses_its_args_becomes_a_text() -> None:
    restored = exception_to_python(stored("UnicodeDecodeError", "utf-8", 1))

    assert type(restored) is Exception
    assert str(restored) == "<class 'UnicodeDecodeError'>(('utf-8', 1))"


def test_a_frozen_exception_survives() -> None:
    effect = ValueError()
    effect.__cause__ = FrozenError(5)

    assert through_json(effect).__cause__ == FrozenError(5)


def test_fields_of_an_error_survive_json() -> None:
    restored = through_json(LimitError(limit=5, owner=["me"]))

    assert isinstance(restored, LimitError)
    assert (restored.limit, restored.owner) == (5, ["me"])
    assert str(restored) == "limit 5 of ['me'] reached"


def test_a_field_json_cannot_carry_becomes_its_repr() -> None:
    error = LimitError(limit=5, owner={1})

    restored = through_json(error)

    assert isinstance(restored, LimitError)
    assert restored.owner == "{1}"
    assert str(restored) == str(error)


def test_only_fields_that_were_given_travel() -> None:
    assert dumped(LimitError(limit=5))["exc_fields"] == {"limit": 5}
    assert "exc_fields" not in dumped(Error())
    assert "exc_fields" not in dumped(KeyError("k"))


# Attributes


class KeywordError(Exception):
    """Can only be made by keyword, and tells when that happens."""

    made: ClassVar[list[str]] = []

    def __init__(self, text: str, *, code: int, body: bytes = b"") -> None:
        super().__init__(text)
        self.code = code
        self.body = body
        self.made.append(text)


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


class FileError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)
        self.path = path


class GuardedError(Exception):
    """Does something whenever one of its attributes is set."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.__dict__["code"] = code

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"{name} was set")


def test_attributes_survive_and_no_constructor_is_called() -> None:
    error = KeywordError("text", code=5, body=b"\xff\x00")
    KeywordError.made.clear()

    restored = through_json(error)

    assert isinstance(restored, KeywordError)
    assert (restored.args, restored.code, restored.body) == (("text",), 5, b"\xff\x00")
    assert KeywordError.made == []


class CountedError(Exception):
    """Has a constructor, which sets nothing."""

    made = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        type(self).made += 1


class CountedExit(BaseException):
    made = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        type(self).made += 1


@pytest.mark.parametrize("cls", [CountedError, CountedExit])
def test_no_constructor_is_called_that_has_nothing_to_set(
    cls: type[CountedError | CountedExit],
) -> None:
    error = cls("text")
    cls.made = 0

    restored = through_json(error)

    assert "text" in str(restored)
    assert cls.made == 0


def test_attributes_in_slots_survive() -> None:
    restored = through_json(SlottedError(5))

    assert isinstance(restored, SlottedError)
    assert restored.code == 5


def test_restoring_attributes_runs_no_code_of_the_class() -> None:
    restored = through_json(GuardedError(5))

    assert isinstance(restored, GuardedError)
    assert vars(restored) == {"code": 5}


def test_attributes_survive_through_an_error_that_cannot_be_pickled() -> None:
    restored = through_pickle(KeywordError("text", code=5))

    assert isinstance(restored, KeywordError)
    assert restored.code == 5


def test_an_unknown_class_keeps_attributes_too() -> None:
    data = dumped(KeywordError("text", code=5)) | {"exc_module": "not.loaded"}

    assert vars(exception_to_python(data))["code"] == 5


@pytest.mark.parametrize("error", [FileError("/p"), FileNotFoundError(2, "x", "/p")])
def test_an_os_error_keeps_its_filename(error: OSError) -> None:
    restored = through_json(error)

    assert isinstance(restored, type(error))
    assert (restored.errno, restored.filename) == (2, "/p")
    assert str(restored) == str(error)
    assert vars(restored) == vars(error)


def test_a_unicode_error_keeps_the_bytes() -> None:
    error = UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte")

    restored = through_json(error)

    assert type(restored) is UnicodeDecodeError
    assert restored.args == error.args


def test_what_an_attribute_error_was_raised_for_is_not_told() -> None:
    error = AttributeError("text", name="name", obj="secret")

    restored = through_json(error)

    assert isinstance(restored, AttributeError)
    assert (restored.name, restored.obj) == ("name", None)


def test_notes_survive() -> None:
    error, templated = ValueError("x"), LimitError(limit=5)
    for each in (error, templated):
        vars(each)["__notes__"] = ["look here"]

    for each in (error, templated):
        assert vars(through_json(each))["__notes__"] == ["look here"]


def test_a_group_keeps_its_members_and_their_causes() -> None:
    member = KeywordError("text", code=5)
    member.__cause__ = KeyError("k")

    restored = through_json(
        ExceptionGroup("all", [member, ExceptionGroup("in", [OSError(1)])])
    )

    assert isinstance(restored, ExceptionGroup)
    first, second = restored.exceptions
    assert isinstance(first, KeywordError)
    assert (first.code, repr(first.__cause__)) == (5, "KeyError('k')")
    assert isinstance(second, ExceptionGroup)
    assert repr(second.exceptions) == "(OSError(1),)"


def test_an_error_that_is_no_group_keeps_a_field_named_like_the_members_of_one() -> (
    None
):
    error = KeywordError("text", code=5)
    error.exceptions = ["one"]  # type: ignore[attr-defined]
    assert vars(through_json(error))["exceptions"] == ["one"]


def test_a_group_of_too_many_is_cut_and_says_so() -> None:
    restored = through_json(ExceptionGroup("all", [ValueError(n) for n in range(500)]))

    assert isinstance(restored, ExceptionGroup)
    assert len(restored.exceptions) == 99
    assert str(restored.exceptions[-1]) == "chain cut after 99 exceptions"


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), CancelledError("c")],
)
def test_what_would_end_its_reader_becomes_a_plain_error_that_names_it(
    error: BaseException,
) -> None:
    restored = through_json(error)

    assert type(restored) is Exception
    assert str(restored) == f"{type(error)}({error.args})"


def test_a_group_of_what_would_end_its_reader_becomes_one_of_errors() -> None:
    restored = through_json(BaseExceptionGroup("all", [SystemExit(3), KeyError("k")]))

    assert type(restored) is ExceptionGroup
    first, second = restored.exceptions
    assert str(first) == "<class 'SystemExit'>((3,))"
    assert repr(second) == "KeyError('k')"


def test_the_constructor_is_called_for_an_error_of_0_13_0() -> None:
    """That one stores no attributes, so only the constructor can set them."""
    restored = exception_to_python(stored("ApiError", "text", module=__name__))

    assert isinstance(restored, ApiError)
    assert restored.message == "text"


def test_hostile_attributes_are_ignored() -> None:
    fields = {
        "__class__": "x",
        "__dict__": {},
        "__notes__": [1],
        "__traceback__": "x",
        "args": ["x"],
        "with_traceback": "x",
        "errno": "kept",
        "own": "kept",
    }
    data = stored("OSError", 1, "text") | {"exc_fields": fields}

    restored = exception_to_python(data)

    assert isinstance(restored, PermissionError)
    assert restored.args == (1, "text")
    assert repr(restored.errno) == "'kept'"
    assert vars(restored) == {"own": "kept"}


@pytest.mark.parametrize("given", [{"0": "!"}, {"9" * 9999: "AA=="}, {"x": "AA=="}])
def test_bytes_for_nothing_are_ignored(given: dict[str, str]) -> None:
    data = stored("ValueError", "text") | {"exc_bytes": given}

    assert repr(exception_to_python(data)) == "ValueError('text')"


def test_endless_members_are_refused() -> None:
    data = stored("ExceptionGroup", "x", [])
    data["exc_members"] = [data]

    with pytest.raises(SecurityError, match="at most 200 exceptions"):
        exception_to_python(data)


def test_an_error_stored_by_0_13_0_comes_back_as_its_class_without_fields() -> None:
    restored = exception_to_python(stored("LimitError", "limit 5", module=__name__))

    assert isinstance(restored, LimitError)
    assert str(restored) == "limit 5"
    assert repr(restored) == f"{__name__}.LimitError(owner='nobody')"


def test_a_model_is_accepted_like_its_dump() -> None:
    prepared = prepare_exception(chain_of(2), json)

    restored = exception_to_python(prepared)

    assert repr(restored) == "ValueError(1)"
    assert restored is not None
    assert repr(restored.__cause__) == "ValueError(0)"


# Wrappers


def test_a_wrapper_restores_class_cause_and_context() -> None:
    error = TwoPartError(1, "a")
    error.__cause__ = TwoPartError(2, "b")
    error.__context__ = KeyError("c")
    error.__suppress_context__ = False

    restored = through_pickle(error)

    assert type(restored) is TwoPartError
    assert type(restored.__cause__) is TwoPartError
    assert str(restored.__cause__) == "2: b"
    assert repr(restored.__context__) == "KeyError('c')"
    assert restored.__suppress_context__ is False


def test_a_wrapper_remembers_that_the_context_is_suppressed() -> None:
    error = TwoPartError(1, "a")
    error.__suppress_context__ = True

    assert through_pickle(error).__suppress_context__ is True


def test_a_wrapped_chain_survives_pickle() -> None:
    restored = causes(through_pickle(chain_of(60, lambda n: TwoPartError(n, "x"))))

    assert [str(exc) for exc in restored] == [f"{n}: x" for n in range(59, -1, -1)]


def test_a_wrapper_restores_a_nested_class() -> None:
    assert type(through_pickle(Outer.NestedError(1, 2))) is Outer.NestedError


def test_a_wrapper_restores_an_error_with_a_field_that_cannot_be_pickled() -> None:
    error = LimitError(limit=5, owner=threading.Lock())

    restored = through_pickle(error)

    assert isinstance(restored, LimitError)
    assert restored.limit == 5
    assert str(restored) == str(error)


def test_a_wrapper_of_an_unknown_class_makes_one() -> None:
    restored = Wrapper("not.loaded", "LostError", (1, 2), "text").restore()

    assert type(restored).__bases__ == (Exception,)
    assert (type(restored).__module__, type(restored).__name__) == (
        "not.loaded",
        "LostError",
    )
    assert restored.args == (1, 2)


def test_a_wrapper_never_restores_something_that_is_no_exception() -> None:
    restored = Wrapper("builtins", "print", ("x",)).restore()

    assert type(restored).__bases__ == (Exception,)


def test_a_wrapper_pickled_by_0_13_0_is_restored() -> None:
    wrapper = Wrapper.__new__(Wrapper, __name__, "TwoPartError", ("5: x",), "text")
    vars(wrapper).update(
        exc_module=__name__,
        exc_cls_name="TwoPartError",
        exc_args=("5: x",),
        text="text",
    )

    restored = get_pickled_exception(wrapper)

    assert type(restored) is TwoPartError
    assert restored.args == ("5: x",)


# Hostile data


@pytest.mark.parametrize(
    ("name", "module"),
    [("print", "builtins"), ("int", "builtins"), ("ValueError.args", "builtins")],
)
def test_a_type_that_is_no_exception_is_refused_before_anything_is_called(
    name: str,
    module: str,
) -> None:
    with pytest.raises(SecurityError) as caught:
        exception_to_python(stored(name, "x", module=module))

    assert caught.value.description == (
        f"Expected an exception class, got {module}.{name} with payload ('x',)"
    )


def test_a_bad_type_further_down_the_chain_is_refused() -> None:
    with pytest.raises(SecurityError):
        exception_to_python(stored("ValueError") | {"exc_cause": stored("eval", "1")})


def test_looking_a_class_up_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = types.ModuleType("lazy_module")
    asked: list[str] = []
    vars(lazy)["__getattr__"] = asked.append
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    before = set(sys.modules)

    exception_to_python(stored("SomeError", module="lazy_module"))
    exception_to_python(stored("SomeError", module="this"))

    assert asked == []
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_a_name_no_class_can_have_is_refused(name: str) -> None:
    with pytest.raises(SecurityError, match="Expected the name of an exception class"):
        exception_to_python(stored(name, module="not.loaded"))


@pytest.mark.parametrize("link", ["exc_cause", "exc_context"])
def test_endless_chains_are_refused(link: str) -> None:
    data = stored("ValueError")
    for _ in range(5_000):
        data = stored("ValueError") | {link: data}

    with pytest.raises(SecurityError, match="at most 200 exceptions"):
        exception_to_python(data)


def test_data_that_contains_itself_is_refused() -> None:
    data = stored("ValueError")
    data["exc_cause"] = data["exc_context"] = data

    with pytest.raises(SecurityError, match="at most 200 exceptions"):
        exception_to_python(data)


def test_a_chain_as_long_as_allowed_is_read() -> None:
    data = stored("ValueError")
    for _ in range(199):
        data = stored("ValueError") | {"exc_cause": data}

    assert len(causes(exception_to_python(data))) == 200


@pytest.mark.parametrize(
    "data",
    [
        "x",
        5,
        [],
        {},
        {"exc_type": 1, "exc_message": [], "exc_module": None},
        {"exc_type": "X", "exc_message": "text", "exc_module": None},
        {"exc_type": "X", "exc_message": []},
        {"exc_type": "X", "exc_message": [], "exc_module": None, "exc_cause": "x"},
        {"exc_type": "X", "exc_message": [], "exc_module": None, "exc_fields": []},
    ],
)
def test_data_of_another_shape_is_a_validation_error(data: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        exception_to_python(data)


def test_hostile_fields_are_ignored() -> None:
    fields = {"limit": 5, "__class__": "x", "args": [1], "undeclared": 1}
    data = stored("LimitError", "text", module=__name__) | {"exc_fields": fields}

    restored = exception_to_python(data)

    assert isinstance(restored, LimitError)
    assert restored.args == ("text",)
    assert restored.as_kwargs() == {"limit": 5}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {
            "exc_type": st.sampled_from(["ValueError", "OSError", "eval", "X.Y"])
            | _JSON,
            "exc_message": st.lists(_JSON, max_size=4) | _JSON,
            "exc_module": st.sampled_from(["builtins", "os", __name__]) | _JSON,
        },
        optional={
            "exc_cause": _JSON,
            "exc_suppress_context": _JSON,
            "exc_fields": _JSON | st.dictionaries(st.text(), _JSON),
            "exc_members": _JSON,
            "exc_bytes": _JSON | st.dictionaries(st.text(), st.text()),
        },
    ),
)
def test_any_data_gives_an_exception_or_one_of_two_errors(data: dict[str, Any]) -> None:
    try:
        restored = exception_to_python(data)
    except (pydantic.ValidationError, SecurityError):
        return

    assert isinstance(restored, BaseException)


def test_an_error_without_args_keeps_what_it_says() -> None:
    """A validation error tells its reader what was wrong, in JSON too."""
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(int).validate_python("seven")
    restored = exception_to_python(prepare_exception(caught.value, json))
    assert "Input should be a valid integer" in str(restored)
