import asyncio
from typing import Any

import pytest

from taskiq.kicker import AsyncKicker
from taskiq.result import TaskiqResult
from taskiq.result_backends.dummy import DummyResultBackend
from tests.support.brokers import QueueBroker


async def test_a_broker_without_result_backend_says_so_instead_of_hanging() -> None:
    backend: DummyResultBackend[int] = DummyResultBackend()
    await backend.set_result(
        "id",
        TaskiqResult(is_err=False, return_value=1, execution_time=1),
    )
    assert await backend.is_result_ready("id")
    with pytest.warns(UserWarning, match="No result backend") as warned:
        result = await backend.get_result("id")
    assert [warning.filename for warning in warned] == [__file__]
    assert "for task id an empty result is returned" in str(warned[0].message)
    assert "broker.with_result_backend(...)" in str(warned[0].message)
    assert result.model_dump() == {
        "is_err": False,
        "log": None,
        "return_value": None,
        "execution_time": 0,
        "labels": {},
        "error": None,
    }


async def test_waiting_without_a_result_backend_ends_at_once_and_says_why() -> None:
    kicker: AsyncKicker[..., Any] = AsyncKicker("name", QueueBroker(), {})
    handle = await kicker.with_task_id("id").kiq()
    with pytest.warns(UserWarning, match="No result backend .* for task id"):
        await asyncio.wait_for(handle.wait_result(), timeout=1)


async def test_every_read_makes_a_result_of_its_own() -> None:
    backend: DummyResultBackend[int] = DummyResultBackend()
    with pytest.warns(UserWarning, match="No result backend"):
        assert await backend.get_result("id") is not await backend.get_result("id")


async def test_progress_is_not_kept_unless_a_backend_overrides_it() -> None:
    backend: DummyResultBackend[int] = DummyResultBackend()
    assert await backend.get_progress("id") is None
    await backend.startup()
    await backend.shutdown()
