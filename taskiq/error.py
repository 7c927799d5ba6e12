"""Exceptions whose message is a template filled from declared fields."""

from __future__ import annotations

import copyreg
import sys
from copy import deepcopy
from functools import lru_cache
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

from izulu import root

if sys.version_info >= (3, 11):
    from typing import Self, dataclass_transform
else:
    from typing_extensions import Self, dataclass_transform

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def _own_annotations(cls: type) -> dict[str, Any]:
        # A field may name a type that only type checkers import.
        return get_annotations(cls, format=Format.FORWARDREF)

else:
    from inspect import get_annotations as _own_annotations

if TYPE_CHECKING:
    from collections.abc import Callable

_new_object: Callable[..., Any] = copyreg.__newobj__  # type: ignore[attr-defined]  # absent from typeshed


@dataclass_transform(
    eq_default=False,
    order_default=False,
    kw_only_default=True,
    frozen_default=False,
)
class Error(root.Error):
    """Base of exceptions that declare fields and a message template.

    A subclass annotates its fields and sets `__template__`, a `str.format` text over
    them. Instances take the fields as keyword arguments. A field with a value on the
    class, `ClassVar` or not, may be left out.

    Raises `TypeError` for undeclared or missing arguments, and `ValueError` for a
    template that uses a field nobody declared or that cannot be formatted.
    """

    __template__ = "Exception occurred"
    # The checks are made here: in a fixed order, with names sorted, per instance.
    __toggles__ = root.Toggles.NONE

    _taskiq_fields: ClassVar[dict[str, object]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Not izulu's own hook. It parses the template here, where a mistake in it would
        # be an import error, and evaluates annotations, which from Python 3.14 on may
        # name what is defined further down or imported for type checkers only.
        super(root.Error, cls).__init_subclass__(**kwargs)
        cls._taskiq_fields = declared_fields(cls)

    def __init__(self, **kwargs: object) -> None:
        declared = self._taskiq_fields
        self._check_arguments(declared, kwargs)
        for name, value in kwargs.items():
            setattr(self, name, value)
        unannotated = self._template_fields(self.__template__) - declared.keys()
        if unannotated:
            names = self._format_fields(unannotated)
            raise ValueError(f"Fields must be annotated: {names}")
        super().__init__(**kwargs)

    def as_kwargs(self) -> dict[str, Any]:
        """Return the fields that are set on the instance, as they are now."""
        own = vars(self)
        return {name: own[name] for name in self._taskiq_fields if name in own}

    def as_dict(self, *, wide: bool = False) -> dict[str, Any]:  # noqa: ARG002 - izulu's
        """Return all fields that have a value, on the instance or on the class."""
        return {
            name: getattr(self, name)
            for name in self._taskiq_fields
            if hasattr(self, name)
        }

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{name}={value!r}" for name, value in self.as_dict().items()
        )
        cls = type(self)
        return f"{cls.__module__}.{cls.__qualname__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Without a constructor call: the message is kept as it was raised, whatever
        # the template and the required fields are where it is loaded.
        return _new_object, (type(self), *self.args), self.__dict__

    def __copy__(self) -> Self:
        twin = self._bare_twin()
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self._bare_twin()
        memo[id(self)] = twin  # before the fields, which may refer to the error
        twin.args = deepcopy(self.args, memo)
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin

    @classmethod
    def _collect_annotations(cls) -> dict[str, object]:
        """Return the declared fields and their annotations, base classes first."""
        return dict(cls._taskiq_fields)

    @classmethod
    def _format_fields(cls, names: set[str]) -> str:
        """Return the names quoted, sorted and separated by commas."""
        return ", ".join(f"'{name}'" for name in sorted(names))

    @classmethod
    def _template_fields(cls, template: str) -> set[str]:
        """Return the fields a template uses: `{a.b}` and `{a[0]}` use `a`."""
        return set(_used_fields(template))

    def _check_arguments(
        self,
        declared: dict[str, object],
        given: dict[str, object],
    ) -> None:
        undeclared = given.keys() - declared.keys()
        if undeclared:
            names = self._format_fields(undeclared)
            raise TypeError(f"Undeclared arguments: {names}")
        missing = {
            name for name in declared if name not in given and not hasattr(self, name)
        }
        if missing:
            raise TypeError(f"Missing arguments: {self._format_fields(missing)}")

    def _bare_twin(self) -> Self:
        """Return an instance without fields that was raised from the same cause."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__cause__ = self.__cause__
        twin.__context__ = self.__context__
        twin.__suppress_context__ = self.__suppress_context__
        return twin


def declared_fields(cls: type[Error]) -> dict[str, object]:
    """Return the fields of an error class and their annotations, base classes first."""
    declared: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if base not in (root.Error, Error):  # these annotate their own settings
            declared.update(_own_annotations(base))
    return declared


@lru_cache
def _used_fields(template: str) -> frozenset[str]:
    used = (name for _, name, _, _ in Formatter().parse(template) if name)
    return frozenset(name.partition(".")[0].partition("[")[0] for name in used)
