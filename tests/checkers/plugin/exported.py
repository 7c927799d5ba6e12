"""What `needed` has, under names of this module."""

from taskiq import TaskiqDepends as Wants

from .needed import Connection as Linked
from .needed import Db, get_db
from .needed import Mark as Marked

__all__ = ["Linked", "Marked", "Wants", "of_exported"]


async def of_exported(number: int, db: Linked, other: Db = Marked) -> float:
    return 1.0


async def of_wants(number: int, db: Db = Wants(get_db)) -> float:  # noqa: B008
    return 1.0
