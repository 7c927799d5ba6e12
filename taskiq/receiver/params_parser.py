"""Casting the arguments of a message to the types its function asks for."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from taskiq.callables import BY_POSITION

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, MutableSequence

    from taskiq.message import TaskiqMessage

logger = logging.getLogger("taskiq.receiver.params_parser")

#: A value of exactly this type is what its cast would give.
_CAST_TO_THEMSELVES: Final = (bool, bytes, float, int, str)


class Cast:
    """How the values of one parameter are cast: by pydantic, in lax mode.

    The adapter is built at the first value, once. A type that none can be built of
    leaves values as they are, and is told once.

    :ivar position: where it stands among the arguments, if it has its place there.
    :ivar exact_type: values of exactly this type need no cast; `None` for no type.
    :ivar is_foreign: whether pydantic knows nothing of the type, and so can only check
        that a value is an instance of it.
    """

    __slots__ = (
        "_annotation",
        "_is_told",
        "_validate",
        "exact_type",
        "is_foreign",
        "name",
        "position",
    )

    def __init__(self, name: str, annotation: Any) -> None:
        self.name = name
        self.position: int | None = None
        # By identity: an annotation need not be hashable.
        is_exact = any(annotation is each for each in _CAST_TO_THEMSELVES)
        self.exact_type = annotation if is_exact else None
        self.is_foreign = False
        self._annotation = annotation
        self._validate: Callable[[Any], Any] | None = None
        self._is_told = False

    def __call__(self, value: Any) -> Any:
        """Give `value` as the parameter's type.

        :raises pydantic.ValidationError: when it cannot be.
        """
        validate = self._validate
        if validate is None:
            validate = self._validate = self._build()
        return validate(value)

    def is_failure_news(self) -> bool:
        """Whether a failure is worth a warning.

        Every wrong value is, but that pydantic cannot make a class is said once.
        """
        is_news = not (self.is_foreign and self._is_told)
        self._is_told = True
        return is_news

    def _build(self) -> Callable[[Any], Any]:
        try:
            return self._adapter().validator.validate_python
        except PydanticUserError as exc:
            logger.warning(
                "Can't parse argument %s: pydantic can build nothing of its type %r, "
                "so it stays as it was sent. %s",
                self.name if self.position is None else self.position,
                self._annotation,
                exc,
            )
            return _as_it_is

    def _adapter(self) -> TypeAdapter[Any]:
        """Build an adapter; a class foreign to pydantic is checked by instance."""
        try:
            return TypeAdapter(self._annotation)
        except PydanticSchemaGenerationError:
            self.is_foreign = True
            config = ConfigDict(arbitrary_types_allowed=True)
            return TypeAdapter(self._annotation, config=config)


def _as_it_is(value: Any) -> Any:
    return value


class ParameterCasts:
    """The casts of one function's parameters, worked out once.

    :param signature: the function's parameters.
    :param type_hints: resolved annotations by name; a parameter without one stays raw.
    """

    __slots__ = ("_keyword", "_positional", "_variadic", "_variadic_index")

    def __init__(
        self,
        signature: inspect.Signature,
        type_hints: dict[str, Any],
    ) -> None:
        self._positional: list[tuple[int, Cast]] = []
        self._variadic: Cast | None = None
        self._variadic_index = 0
        self._keyword: list[Cast] = []
        for index, parameter in enumerate(signature.parameters.values()):
            cast = cast_for(parameter.name, type_hints)
            if cast is None:
                continue
            if parameter.kind in BY_POSITION:
                cast.position = index
                self._positional.append((index, cast))
            elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                self._variadic, self._variadic_index = cast, index
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                self._keyword.append(cast)

    def apply(self, args: list[Any], kwargs: dict[str, Any], task_name: str) -> None:
        """Cast the arguments of a message in place; what cannot be cast stays raw."""
        given = len(args)
        for index, cast in self._positional:
            if index < given:
                if args[index].__class__ is not cast.exact_type:
                    _cast_in_place(cast, args, index, task_name)
            elif cast.name in kwargs:
                _cast_in_place(cast, kwargs, cast.name, task_name)
        if self._variadic is not None:
            for index in range(self._variadic_index, given):
                _cast_in_place(self._variadic, args, index, task_name)
        if kwargs:
            for cast in self._keyword:
                if cast.name in kwargs:
                    _cast_in_place(cast, kwargs, cast.name, task_name)


def cast_for(name: str, type_hints: dict[str, Any]) -> Cast | None:
    """Give the cast of the parameter `name`, `None` when any value will do."""
    annotation = type_hints.get(name, Any)
    return None if annotation is Any else Cast(name, annotation)


def parse_params(
    signature: inspect.Signature | None,
    type_hints: dict[str, Any],
    message: TaskiqMessage,
) -> None:
    """Cast the arguments of `message` in place, by the hints of its function.

    A value that cannot be cast stays as it is, with a warning; `None` is never cast.

    :param signature: the function's parameters; `None` leaves the message alone.
    :param type_hints: resolved annotations by name of parameter.
    """
    if signature is not None:
        casts = ParameterCasts(signature, type_hints)
        casts.apply(message.args, message.kwargs, message.task_name)


def _cast_in_place(
    cast: Cast,
    values: MutableSequence[Any] | MutableMapping[str, Any],
    key: Any,
    task_name: str,
) -> None:
    value = values[key]
    if value is None:
        return
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("Trying to parse %s of task %s", key, task_name)
    try:
        values[key] = cast(value)
    except (ValueError, RuntimeError) as exc:
        if cast.is_failure_news():
            logger.warning(
                "Can't parse argument %s for task %s. Reason: %s",
                key,
                task_name,
                exc,
                exc_info=True,
            )
