"""Bulk insert: 10,000 rows sent one by one, with and without batching, into SQLite.

Run it with ``python docs/examples/batching/bulk_insert.py [rows]``. Each row is one
message with a result of its own; only the number of calls, and so of transactions,
differs.
Each transaction waits for the disk, so a slow disk takes its time one by one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from taskiq import AsyncTaskiqDecoratedTask, Context, InMemoryBroker, TaskiqDepends

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000


class Row(BaseModel):
    """What is inserted."""

    id: int
    name: str


class Database:
    """A table on disk that counts the transactions it was filled with."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.execute("CREATE TABLE rows (id INTEGER, name TEXT)")
        self.transactions = 0

    def insert(self, rows: list[Row]) -> None:
        """Write some rows in one transaction."""
        with self._connection as transaction:
            values = [(row.id, row.name) for row in rows]
            transaction.executemany("INSERT INTO rows VALUES (?, ?)", values)
        self.transactions += 1

    def count(self) -> int:
        """Count the rows that arrived."""
        (count,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


broker = InMemoryBroker()


@broker.task
async def insert_one(row: Row, context: Context = TaskiqDepends()) -> int:
    """Insert one row per call."""
    context.state.database.insert([row])
    return row.id


@broker.task(batch=True, batch_size=500, batch_timeout=0.1)
async def insert_many(rows: list[Row], context: Context = TaskiqDepends()) -> list[int]:
    """Insert many rows per call; each message gets the id of its own row."""
    context.state.database.insert(rows)
    return [row.id for row in rows]


class Measured(NamedTuple):
    """What one way of inserting cost."""

    way: str
    calls: int
    seconds: float


async def measure(
    way: str,
    task: AsyncTaskiqDecoratedTask[..., Any],
    path: Path,
) -> Measured:
    """Send every row as a message of its own and wait for every result."""
    print(f"{way}: sending {ROWS:,} rows ...", file=sys.stderr)
    with closing(Database(path)) as database:
        broker.state.database = database
        started = time.perf_counter()
        handles = [await task.kiq(Row(id=n, name=f"row {n}")) for n in range(ROWS)]
        await broker.wait_all()
        results = [await handle.wait_result(timeout=60) for handle in handles]
        seconds = time.perf_counter() - started
        if [result.return_value for result in results] != list(range(ROWS)):
            raise RuntimeError(f"{way}: a message got the result of another one")
        if (found := database.count()) != ROWS:
            raise RuntimeError(f"{way}: {found} of {ROWS} rows were inserted")
        return Measured(way, database.transactions, seconds)


async def main() -> None:
    """Insert in both ways, and print what they cost."""
    await broker.startup()
    with tempfile.TemporaryDirectory() as folder:
        without = await measure("one by one", insert_one, Path(folder, "one.db"))
        batched = await measure("in batches", insert_many, Path(folder, "many.db"))
    await broker.shutdown()
    print(f"{'':12} {'calls':>8} {'seconds':>8}")
    for measured in (without, batched):
        print(f"{measured.way:12} {measured.calls:8,} {measured.seconds:8.2f}")
    print(f"{without.seconds / batched.seconds:.1f} times as fast, same results")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
