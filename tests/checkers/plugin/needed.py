"""Dependencies, and functions that ask for them, for another module to use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import taskiq
from taskiq import TaskiqDepends


class Db:
    """Stands for what a dependency gives."""


def get_db() -> Db:
    return Db()


Mark = TaskiqDepends(get_db)
Connection = Annotated[Db, taskiq.TaskiqDepends(get_db)]
Described = Annotated[Connection, "a description"]
NoDependency = Annotated[str, Field(min_length=1)]


async def imported(number: int, db: Connection) -> float:
    return 1.0


async def imported_batch(numbers: list[int], *, db: Described) -> list[float]:
    return [1.0 for _ in numbers]


class Runner:
    """Has methods, and is called, with dependencies."""

    def __init__(self, number: int, db: Connection) -> None:
        self.db = db

    def method(self, number: int, db: Connection) -> float:
        return 1.0

    @classmethod
    def class_method(cls, number: int, db: Connection) -> float:
        return 1.0

    @staticmethod
    def static_method(number: int, db: Connection) -> float:
        return 1.0

    def __call__(self, number: int, db: Connection) -> float:
        return 1.0
