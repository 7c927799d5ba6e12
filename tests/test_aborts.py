"""What a process knows of aborted messages, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.aborts import Aborts, InMemoryAborts
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.exceptions import AbortError, AbortNotSupportedError, TaskAbortedError
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.middlewares import SimpleRetryMiddleware
from taskiq.result import TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.task import AsyncTaskiqTask

if TYPE_CHECKING:
    from collections.abc import Collection


class Listener:
    def __init__(self) -> None:
        self.told: list[str] = []

    def heard(self, task_ids: Collection[str]) -> None:
        self.told.extend(task_ids)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), st.floats(0.5, 20)),
            st.floats(0, 15),
        ),
    ),
)
def test_a_mark_is_known_until_it_ends_and_told_once_meanwhile(
    steps: list[Any],
) -> None:
    now, ends = 0.0, dict[str, float]()
    aborts, listener = Aborts(clock=lambda: now), Listener()
    aborts.attach(listener)
    for step in steps:
        if isinstance(step, float):
            now += step
        else:
            task_id, seconds = step
            was_told = len(listener.told)
            was_known = task_id in aborts
            aborts.hear_until({task_id: seconds})
            ends[task_id] = now + seconds
            assert not was_known or len(listener.told) == was_told
        assert {each for each in "abcd" if each in aborts} == {
            each for each, end in ends.items() if end > now
        }


def test_what_has_ended_is_forgotten() -> None:
    now = 0.0
    aborts = Aborts(ttl=10, clock=lambda: now)
    for each in range(100):
        now = float(each)
        aborts.hear([str(each)])
    assert len(aborts) == 10


def test_a_mark_must_last() -> None:
    with pytest.raises(ValueError, match="ttl must be a positive number of seconds"):
        InMemoryAborts(ttl=0)


async def test_a_broker_without_a_store_says_what_to_add() -> None:
    backend: DummyResultBackend[int] = DummyResultBackend()
    with pytest.raises(AbortNotSupportedError) as caught:
        await AsyncTaskiqTask("abc", backend).abort()
    text = str(caught.value)
    assert "abc" in text
    assert "with_abort_store" in text
    assert "DummyResultBackend" in text


async def test_a_store_of_the_broker_needs_no_result_backend() -> None:
    broker = InMemoryBroker().with_result_backend(DummyResultBackend())
    runs: list[int] = []

    @broker.task
    async def note(number: int) -> None:
        runs.append(number)

    assert await (await note.kiq(1)).abort()
    await broker.wait_all()
    assert runs == []


async def test_a_store_that_fails_is_the_cause() -> None:
    class Broken(InMemoryAborts):
        async def mark(self, task_id: str) -> None:
            raise OSError(task_id)

    broker = InMemoryBroker().with_abort_store(Broken())

    @broker.task
    async def never() -> None: ...

    with pytest.raises(AbortError) as caught:
        await (await never.kiq()).abort()
    assert isinstance(caught.value.__cause__, OSError)
    await broker.wait_all()


async def test_what_has_a_result_is_not_aborted() -> None:
    broker = InMemoryBroker()

    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    handle = await double.kiq(2)
    assert (await handle.wait_result()).return_value == 4
    assert not await handle.abort()


async def test_an_aborted_message_is_not_retried() -> None:
    broker = InMemoryBroker().with_middlewares(
        SimpleRetryMiddleware(default_retry_label=True),
    )
    broker.formatter = JSONFormatter()

    @broker.task
    async def never() -> None: ...

    handle = await never.kiq()
    await handle.abort()
    result = await handle.wait_result(timeout=5)
    assert isinstance(result.error, TaskAbortedError)


def test_the_error_comes_back_from_a_store() -> None:
    result: TaskiqResult[Any] = TaskiqResult(
        is_err=True,
        return_value=None,
        execution_time=0,
        error=TaskAbortedError(task_id="abc"),
    )
    again = TaskiqResult[Any].model_validate_json(result.model_dump_json())
    assert isinstance(again.error, TaskAbortedError)
    assert again.error.task_id == "abc"
