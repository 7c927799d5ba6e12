"""Dependencies, and functions that ask for them, for another module to use."""

from __future__ import annotations

import functools
from typing import Annotated

from pydantic import Field

import taskiq
import taskiq as queue
from taskiq import TaskiqDepends
from taskiq import TaskiqDepends as Needs


class Db:
    """Stands for what a dependency gives."""


def get_db() -> Db:
    return Db()


Mark = TaskiqDepends(get_db)
Connection = Annotated[Db, taskiq.TaskiqDepends(get_db)]
Described = Annotated[Connection, "a description"]
Renamed = Annotated[Db, Needs(get_db)]
OfModule = Annotated[Db, queue.TaskiqDepends(get_db)]
Gives = TaskiqDepends
Assigned = Annotated[Db, Gives(get_db)]
NoDependency = Annotated[str, Field(min_length=1)]


async def imported(number: int, db: Connection) -> float:
    return 1.0


async def imported_batch(numbers: list[int], *, db: Described) -> list[float]:
    return [1.0 for _ in numbers]


async def imported_batch_for(
    numbers: list[int],
    tenant: str,
    db: Connection,
) -> list[float]:
    return [1.0 for _ in numbers]


async def of_partial(number: int, text: str, db: Connection, more: int = 0) -> float:
    return 1.0


partial = functools.partial(of_partial, text="a")
partial_of_partial = functools.partial(partial, more=1)


class Runner:
    """Has methods, and is called, with dependencies."""

    def __init__(self, number: int, db: Connection) -> None:
        self.db = db

    def method(self, number: int, db: Connection) -> float:
        return 1.0

    async def batch_method(self, numbers: list[int], db: Connection) -> list[float]:
        return [1.0 for _ in numbers]

    @classmethod
    def class_method(cls, number: int, db: Connection) -> float:
        return 1.0

    @staticmethod
    def static_method(number: int, db: Connection) -> float:
        return 1.0

    def __call__(self, number: int, db: Connection) -> float:
        return 1.0


class Inherited(Runner):
    """Has all of these from another class."""


class BatchRunner:
    """Is called with a list."""

    async def __call__(self, numbers: list[int], db: Connection) -> list[float]:
        return [1.0 for _ in numbers]
