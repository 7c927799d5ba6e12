"""Limits and cleanups under cancellation, by themselves."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING

import pytest

from taskiq.receiver.cancellation import (
    is_from_outside,
    start_task,
    uninterrupted,
    within,
)
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Generator


@types.coroutine
def two_steps() -> Generator[str, None, None]:
    yield "first"
    yield "second"


async def work_of_two_steps() -> str:
    await two_steps()
    return "done"


async def test_a_cleanup_is_finished_before_its_cancellation_is_told() -> None:
    release = asyncio.Event()
    steps = []

    async def clean_up() -> None:
        await release.wait()
        steps.append("cleaned up")

    work = asyncio.create_task(uninterrupted(clean_up()))
    for _ in range(3):  # however often
        await asyncio.sleep(0)
        work.cancel()
    await asyncio.sleep(0)
    assert not work.done()

    release.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert steps == ["cleaned up"]


def test_a_cancellation_at_the_very_moment_of_the_limit_is_one() -> None:
    async def main() -> None:
        told: list[bool] = []

        async def work() -> None:
            try:
                await within(1, asyncio.Event().wait())
            except asyncio.CancelledError as exc:
                told.append(is_from_outside(exc))
                raise

        loop = asyncio.get_running_loop()
        task = start_task(loop, work())
        loop.call_later(1, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert told == [True]

    run_virtual(main())


def test_what_ends_in_spite_of_its_limit_is_done_and_nobody_is_cancelled() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    async def main() -> None:
        async def work() -> tuple[str, bool]:
            value = await within(1, stubborn())
            return value, is_from_outside(asyncio.CancelledError())

        task = start_task(asyncio.get_running_loop(), work())
        assert await task == ("done all the same", False)

    run_virtual(main())


async def test_work_that_belongs_to_no_asyncio_task_has_no_limit() -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()
    steps: list[str] = []

    def drive() -> None:
        work = within(1, work_of_two_steps())
        try:
            while True:
                steps.append(work.send(None))
        except StopIteration as stop:
            ended.set_result(stop.value)

    loop.call_soon(drive)  # a callback of the loop runs in no task
    assert await ended == "done"
    assert steps == ["first", "second"]
