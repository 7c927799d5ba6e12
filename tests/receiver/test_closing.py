"""What is left of a call whose loop is gone, and of one that is cancelled late."""

# Dependencies are read from the annotations at run time.
import asyncio
import types
from collections.abc import AsyncGenerator, Generator

import pytest

from taskiq import TaskiqDepends
from tests.support.worker import Worker, complaints, message_of


@types.coroutine
def never() -> Generator[None, None, None]:
    """Wait for something that no loop will ever deliver."""
    yield


async def test_a_call_that_is_thrown_away_is_neither_failed_nor_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    closed = []

    async def connection() -> AsyncGenerator[str, None]:
        yield "open"
        closed.append("connection")

    @worker.broker.task
    async def task(opened: str = TaskiqDepends(connection)) -> None:
        await never()

    work = worker.receiver.run_task(task.original_func, message_of(task.task_name))
    work.send(None)  # the function waits
    work.close()  # as Python does with what is left of a loop

    assert not closed
    assert not complaints(caplog)


async def test_a_dependency_that_is_thrown_away_at_its_end_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    async def connection() -> AsyncGenerator[str, None]:
        yield "open"
        await never()

    @worker.broker.task
    async def task(opened: str = TaskiqDepends(connection)) -> None:
        """Do nothing: its dependency takes long to close."""

    work = worker.receiver.run_task(task.original_func, message_of(task.task_name))
    work.send(None)  # the dependency is being closed
    work.close()

    assert not complaints(caplog)


async def test_a_call_that_is_cancelled_while_it_closes_is_cancelled() -> None:
    worker = Worker()
    is_closing = asyncio.Event()

    async def connection() -> AsyncGenerator[str, None]:
        yield "open"
        is_closing.set()
        await asyncio.Event().wait()

    @worker.broker.task
    async def task(opened: str = TaskiqDepends(connection)) -> str:
        return "not to be reported"

    work = asyncio.create_task(worker.deliver(task))
    await is_closing.wait()
    work.cancel()

    with pytest.raises(asyncio.CancelledError):
        await work
    assert not worker.backend.results
