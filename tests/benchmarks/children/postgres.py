"""Child script: insert rows into PostgreSQL, each of them sent with a `kiq` of its own.

`postgres CASE ROWS`: makes a table of its own, sends the rows to a queue in memory, and
measures from the start of a receiver until all rows are committed. The cases:

* `batch-copy`, `batch-executemany`: a batch task inserts 1000 rows at once;
* `single`: a plain task inserts one row;
* `bare-copy`, `bare-executemany`: no taskiq; rows in a list are inserted 1000 at once.

Batches and bare loops use one connection, single rows ten.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from typing import TYPE_CHECKING

import asyncpg

from taskiq.receiver import Receiver
from tests.benchmarks.children.clocks import Stopwatch, report
from tests.benchmarks.children.core import AckedBroker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

URL = os.environ.get(
    "TASKIQ_BENCHMARK_POSTGRES",
    "postgresql://root@127.0.0.1:5432/test",
)
BATCH_SIZE = 1000
CONNECTIONS = 10
Row = tuple[int, str]


class Table:
    """A table with a number and a text, and the ways to fill it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.name = f"benchmark_{uuid.uuid4().hex}"
        self._insert = f"INSERT INTO {self.name} VALUES ($1, $2)"  # noqa: S608 - ours

    async def make(self) -> None:
        await self._pool.execute(
            f"CREATE TABLE {self.name} (id integer PRIMARY KEY, body text NOT NULL)",
        )

    async def drop(self) -> None:
        await self._pool.execute(f"DROP TABLE {self.name}")

    async def count(self) -> int:
        found: int = await self._pool.fetchval(
            f"SELECT count(*) FROM {self.name}",  # noqa: S608 - ours
        )
        return found

    async def insert(self, row: Row) -> None:
        """One row, in a transaction of its own."""
        await self._pool.execute(self._insert, *row)

    async def copy(self, rows: list[Row]) -> None:
        async with self._pool.acquire() as connection:
            await connection.copy_records_to_table(self.name, records=rows)

    async def executemany(self, rows: list[Row]) -> None:
        async with self._pool.acquire() as connection:
            await connection.executemany(self._insert, rows)


async def run_bare(insert: Callable[[list[Row]], Awaitable[None]], rows: int) -> None:
    """Insert rows that are in memory already."""
    source = [row(number) for number in range(rows)]
    for begin in range(0, rows, BATCH_SIZE):
        await insert(source[begin : begin + BATCH_SIZE])


async def fill(broker: AckedBroker, table: Table, case: str, rows: int) -> None:
    """Register the task of the case and send all rows."""
    if case == "single":

        @broker.task(task_name="insert")
        async def insert(item: Row) -> None:
            await table.insert(item)

    else:
        into = ways(table)[case.removeprefix("batch-")]

        @broker.task(
            task_name="insert",
            batch=True,
            batch_size=BATCH_SIZE,
            batch_concurrency=1,
        )
        async def insert_many(items: list[Row]) -> None:
            await into(items)

    task = broker.find_task("insert")
    assert task is not None
    for number in range(rows):
        await task.kiq(row(number))


def row(number: int) -> Row:
    return number, f"row {number} {'x' * 80}"


def ways(table: Table) -> dict[str, Callable[[list[Row]], Awaitable[None]]]:
    return {"copy": table.copy, "executemany": table.executemany}


async def main(case: str, rows: int) -> None:
    """Run a case and report it."""
    size = CONNECTIONS if case == "single" else 1
    async with asyncpg.create_pool(URL, min_size=size, max_size=size) as pool:
        table = Table(pool)
        await table.make()
        try:
            watch = await measure(table, case, rows)
            assert await table.count() == rows
        finally:
            await table.drop()
    report(watch.measured)


async def measure(table: Table, case: str, rows: int) -> Stopwatch:
    if case.startswith("bare"):
        with Stopwatch() as watch:
            await run_bare(ways(table)[case.removeprefix("bare-")], rows)
        return watch
    broker = AckedBroker()
    await fill(broker, table, case, rows)
    receiver = Receiver(broker, max_async_tasks=100)
    with Stopwatch() as watch:
        await receiver.listen(asyncio.Event())
    assert broker.acks == rows
    return watch


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
