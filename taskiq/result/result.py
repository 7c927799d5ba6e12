"""The outcome of one task message."""

import json
import pickle
import sys
from typing import Annotated, Any, Generic, TypeVar

import pydantic

from taskiq.serialization import (
    exception_to_python,
    plain_error,
    prepare_exception,
)

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

_ReturnType = TypeVar("_ReturnType")


class TaskiqResult(pydantic.BaseModel, Generic[_ReturnType]):
    """What became of one task message: a value or an error.

    `TaskiqResult[int]` validates the value, `TaskiqResult` takes any.
    """

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    is_err: bool
    """Whether the task failed."""
    log: str | None = None
    """Deprecated, always `None`."""
    return_value: _ReturnType
    """What the task returned, `None` if it failed."""
    execution_time: float
    """How long the task ran, in seconds."""
    labels: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Labels of the message."""
    # The validator is on the class and not on the field, so that pydantic runs no
    # Python code for the usual result, which has no error.
    error: (
        Annotated[BaseException, pydantic.BeforeValidator(exception_to_python)] | None
    ) = None
    """Why the task failed."""

    @pydantic.field_serializer("error", when_used="unless-none")
    def serialize_error(self, value: BaseException | None) -> Any:
        """Return the error as plain data, in Python mode too."""
        return None if value is None else prepare_exception(value, json)

    def raise_for_error(self) -> Self:
        """Raise the error if there is one, else return the result itself."""
        if self.error is not None:
            raise self.error
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Return the state with the error in a form that can be pickled."""
        state = super().__getstate__()
        if self.error is None:
            return state
        error = prepare_exception(self.error, pickle)
        return {**state, "__dict__": {**self.__dict__, "error": error}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Take the state over, the error as `exception_to_python` gives it."""
        super().__setstate__(state)
        error = exception_to_python(self.error)
        if error is not None and not isinstance(error, Exception):
            error = plain_error(type(error), error.args)
        # Not by assignment, which would count as setting the field.
        vars(self)["error"] = error
