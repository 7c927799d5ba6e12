"""How far a task is: what a running task reports and a result backend keeps."""

import enum
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

_ProgressType = TypeVar("_ProgressType")


class TaskState(str, enum.Enum):
    """Common states of a task; any other string will do as well."""

    STARTED = "STARTED"
    FAILURE = "FAILURE"
    SUCCESS = "SUCCESS"
    RETRY = "RETRY"


class TaskProgress(BaseModel, Generic[_ProgressType]):
    """How far a task is, as result backends store it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    state: TaskState | str
    #: Whatever the task wants to tell.
    meta: _ProgressType | None
