"""Bulk insert into PostgreSQL: one INSERT per batch, and one bad row fails alone.

Run it with ``python docs/examples/batching/postgres_insert.py [database URL]``. Every
reading is a message of its own and gets the id of its own row. Readings that the table
refuses make the INSERT of their batch fail; isolation finds them, and the others are
inserted. Each call is a transaction, so calling again is safe.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator  # noqa: TC003 - read at run time
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel

from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState

READINGS = 2000
BROKEN = (700, 1500)
DATABASE = sys.argv[1] if len(sys.argv) > 1 else "postgresql://localhost/test"
TABLE = f"readings_{uuid4().hex}"

# In production a broker with a server, for example
# AioPikaBroker("amqp://localhost"); nothing else in this file changes.
broker = InMemoryBroker()


class Reading(BaseModel):
    """What a sensor sends."""

    sensor: str
    celsius: float


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state: TaskiqState) -> None:
    """Open connections when the worker starts, and create the table."""
    state.pool = await asyncpg.create_pool(DATABASE, min_size=1, max_size=4)
    state.inserts = 0
    await state.pool.execute(
        f"""
        CREATE TABLE {TABLE} (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            sensor text NOT NULL,
            celsius double precision NOT NULL CHECK (celsius > -273.15)
        )
        """,
    )


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def disconnect(state: TaskiqState) -> None:
    """Leave nothing behind."""
    await state.pool.execute(f"DROP TABLE {TABLE}")
    await state.pool.close()


async def connection(
    context: Context = TaskiqDepends(),
) -> AsyncGenerator[Any, None]:
    """Lend a connection to one call, within a transaction."""
    context.state.inserts += 1
    async with context.state.pool.acquire() as lent, lent.transaction():
        yield lent


@broker.task(
    batch=True,
    batch_size=500,
    batch_timeout=0.2,
    batch_concurrency=4,  # as many as there are connections
    batch_isolate_errors=(asyncpg.IntegrityConstraintViolationError,),
)
async def insert(
    readings: list[Reading],
    db: Any = TaskiqDepends(connection),
) -> list[int]:
    """Insert many readings with one statement; return the id of each."""
    rows = await db.fetch(
        f"""
        INSERT INTO {TABLE} (sensor, celsius)
        SELECT sensor, celsius FROM unnest($1::text[], $2::float8[])
            WITH ORDINALITY AS given (sensor, celsius, position)
        ORDER BY position
        RETURNING id
        """,  # noqa: S608 - the name of the table is our own
        [reading.sensor for reading in readings],
        [reading.celsius for reading in readings],
    )
    # Ids are given in the order of the rows; RETURNING promises no order.
    return sorted(row["id"] for row in rows)


def celsius(number: int) -> float:
    """What is measured; two of the sensors are broken."""
    return -300 if number in BROKEN else number % 40


async def main() -> None:
    """Send readings, two of them impossible, and look at every result."""
    await broker.startup()
    try:
        handles = [
            await insert.kiq(Reading(sensor=f"s{n}", celsius=celsius(n)))
            for n in range(READINGS)
        ]
        results = [await handle.wait_result(timeout=60) for handle in handles]
        refused = [n for n, result in enumerate(results) if result.is_err]

        pool = broker.state.pool
        for n in (0, 1, READINGS - 1):
            row_id = results[n].raise_for_error().return_value
            query = f"SELECT sensor FROM {TABLE} WHERE id = $1"  # noqa: S608
            if await pool.fetchval(query, row_id) != f"s{n}":
                raise RuntimeError("a message got the id of another one's row")
        stored = await pool.fetchval(f"SELECT count(*) FROM {TABLE}")  # noqa: S608
        print(f"{READINGS:,} messages, {stored:,} rows")
        print(f"refused: {refused}")
        print(f"calls, those that isolate included: {broker.state.inserts}")
    finally:
        await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
