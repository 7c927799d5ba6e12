"""Settling: each message is saved and acknowledged whatever becomes of others."""

import asyncio
from typing import Any

import pytest

from taskiq import (
    AckableMessage,
    InMemoryBroker,
    NoResultError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.exceptions import UnstorableResultError
from taskiq.kicker import AsyncKicker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import (
    BatchWorker,
    Gate,
    GatedBackend,
    Worker,
    complaints,
    outcomes,
    results_of,
)

# -- Middlewares -----------------------------------------------------------------------


@virtual
async def test_a_middleware_may_change_the_result_of_one_message() -> None:
    class Stamp(TaskiqMiddleware):
        def post_execute(
            self, message: TaskiqMessage, result: TaskiqResult[Any]
        ) -> None:
            result.labels = {**result.labels, "stamp": message.task_id}
            result.return_value = f"{result.return_value} for {message.task_id}"

    worker = Worker(Stamp())

    @worker.broker.task(batch=True)
    async def shared(items: list[int]) -> str:
        return "value"

    await worker.send_to(shared, 0, 1)
    await worker.run()
    for task_id in "01":
        result = worker.backend.results[task_id]
        assert result.return_value == f"value for {task_id}"
        assert result.labels == {"stamp": task_id}


@virtual
async def test_what_a_middleware_does_to_a_result_does_nothing_to_its_message() -> None:
    stored: list[dict[str, Any]] = []

    class Stamp(TaskiqMiddleware):
        def post_execute(
            self, message: TaskiqMessage, result: TaskiqResult[Any]
        ) -> None:
            result.labels["stamp"] = "new"

        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            stored.append({"message": message.labels, "result": result.labels})

    worker = Worker(Stamp())

    @worker.broker.task(batch=True, queue="fast")
    async def shared(items: list[int]) -> str:
        return "value"

    await worker.send_to(shared, 0)
    await worker.run()
    expected = {"queue": "fast"}
    assert stored == [{"message": expected, "result": {**expected, "stamp": "new"}}]


class Retry(TaskiqMiddleware):
    """Sends a failed message again under its id, twice at most."""

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        retries = int(message.labels.get("retries", 0))
        if retries == 2:
            return
        labels = {**message.labels, "retries": retries + 1}
        kicker: AsyncKicker[..., Any]
        kicker = AsyncKicker(message.task_name, self.broker, labels)
        await kicker.with_task_id(message.task_id).kiq(*message.args, **message.kwargs)
        result.error = NoResultError()


@virtual
async def test_a_retry_sends_exactly_the_failed_messages_again(
    broker: InMemoryBroker,
) -> None:
    calls: list[list[int]] = []

    @broker.with_middlewares(Retry()).task(batch=True)
    async def flaky(items: list[int]) -> list[int | Exception]:
        calls.append(items)
        return [
            ValueError(item) if item % 2 and len(calls) < item else item
            for item in items
        ]

    results = outcomes(await results_of(broker, flaky, range(6)))
    assert calls == [[0, 1, 2, 3, 4, 5], [3, 5], [3, 5]]
    assert results[:5] == [0, 1, 2, 3, 4]
    assert repr(results[5]) == "ValueError(5)"


# -- Settling is side by side ----------------------------------------------------------


def numbers_task(worker: Worker) -> Any:
    async def function(items: list[int]) -> list[int]:
        return items

    return worker.broker.register_task(function, "numbers", batch=True)


@virtual
async def test_messages_are_settled_side_by_side_and_not_all_at_once() -> None:
    gate = Gate()
    backend = GatedBackend(gate)
    worker = Worker(backend=backend)
    await worker.send_to(numbers_task(worker), *range(100))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(10)
    at_once = backend.waiting
    assert 1 < at_once < 100
    assert worker.broker.acked == []
    gate.opened.set()
    await run
    assert backend.most_waiting == at_once
    worker.assert_settled_once(100)


class SlowBackend(GatedBackend):
    """Takes a second for each result."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await asyncio.sleep(1)
        self.waiting -= 1
        await super().set_result(task_id, result)


@virtual
async def test_100_messages_do_not_cost_100_round_trips_in_a_row() -> None:
    backend = SlowBackend()
    worker = Worker(backend=backend)
    await worker.send_to(numbers_task(worker), *range(100))
    await worker.run()
    worker.assert_settled_once(100)
    rounds = -(-100 // backend.most_waiting)
    assert asyncio.get_running_loop().time() == rounds


@virtual
async def test_a_result_that_hangs_delays_no_other() -> None:
    backend = GatedBackend()
    backend.hanging = {"0", "50"}
    worker = Worker(backend=backend)
    await worker.send_to(numbers_task(worker), *range(100))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(10)
    assert len(worker.broker.acked) == 98
    assert {"0", "50"}.isdisjoint(worker.broker.acked)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert len(worker.broker.acked) == 98


@virtual
async def test_a_result_that_cannot_be_saved_harms_no_other() -> None:
    worker = Worker()
    worker.backend.failing = {"0", "7"}
    await worker.send_to(numbers_task(worker), *range(10))
    await worker.run()
    others = {"1", "2", "3", "4", "5", "6", "8", "9"}
    assert set(worker.backend.results) == others
    assert set(worker.broker.acked) == others
    assert set(worker.ids("post_save")) == others


class DumpingBackend(RecordingBackend):
    """Takes its time and saves results as text, as most backends do."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await asyncio.sleep(0.5)
        result.model_dump_json()
        await super().set_result(task_id, result)


@virtual
async def test_a_value_that_cannot_be_stored_costs_its_own_message_alone() -> None:
    worker = Worker(backend=DumpingBackend())

    @worker.broker.task(batch=True)
    async def odd(items: list[int]) -> list[object]:
        return [object() if item == 1 else item for item in items]

    await worker.send_to(odd, 0, 1, 2)
    await worker.run()
    assert worker.values == {"0": 0, "2": 2}
    assert isinstance(worker.errors["1"], UnstorableResultError)
    worker.assert_settled_once(3)


class WaitingBackend(RecordingBackend):
    """Has to wait for each saving."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        await asyncio.sleep(0)
        await super().set_result(task_id, result)


@pytest.mark.parametrize("backend", [RecordingBackend, WaitingBackend])
@virtual
async def test_the_first_result_that_is_saved_again_ends_the_outage(
    backend: type[RecordingBackend],
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = BatchWorker(backend=backend(), batch_size=2, max_async_tasks=1)
    worker.backend.failing = {"0", "1"}
    await worker.send(*range(4))
    await worker.run()
    begin, end = complaints(caplog)
    assert "ConnectionError: cannot save 0" in begin
    assert end.startswith("The broker is back after")
    assert "2 messages could not be settled" in end
    assert sorted(worker.backend.saved) == ["2", "3"]


@virtual
async def test_who_was_late_in_a_step_ends_with_that_which_fails_for_it() -> None:
    """The hooks of three take long; of them two results cannot be saved."""

    class Slow(TaskiqMiddleware):
        async def post_execute(
            self, message: TaskiqMessage, result: TaskiqResult[Any]
        ) -> None:
            await asyncio.sleep(20 if message.task_id in "012" else 0)

    worker = Worker(Slow())
    worker.backend.failing = {"0", "1"}
    await worker.send_to(numbers_task(worker), *range(4))
    await worker.run()
    others = ["3", "2"]
    assert worker.backend.saved == worker.broker.acked == others
    assert worker.ids("post_save") == others
    worker.assert_as_new()


@virtual
async def test_each_message_is_acknowledged_at_its_own_moment() -> None:
    worker = BatchWorker(is_recording=False, batch_size=3)
    await worker.send(0, ack_type="when_saved")
    await worker.send(1, ack_type="when_executed")
    await worker.send(2, ack_type="manual")
    await worker.run()
    assert [step for step in worker.journal if step[0] in {"ack", "save"}] == [
        ("ack", "1"), ("save", "0"), ("save", "1"), ("save", "2"), ("ack", "0"),
    ]  # fmt: skip


@virtual
async def test_an_acknowledgement_that_fails_harms_no_other() -> None:
    worker = Worker()
    worker.broker.failing_acks = {"0", "7"}
    await worker.send_to(numbers_task(worker), *range(10))
    await worker.run()
    assert len(worker.backend.results) == 10
    assert set(worker.broker.acked) == {"1", "2", "3", "4", "5", "6", "8", "9"}


@pytest.mark.parametrize("hook", ["on_error", "post_execute", "post_save"])
def test_a_hook_that_fails_for_one_message_harms_no_other(hook: str) -> None:
    async def failing(
        _: TaskiqMiddleware,
        message: TaskiqMessage,
        *_others: object,
    ) -> None:
        if message.task_id == "0":
            raise RuntimeError(hook)

    middleware: TaskiqMiddleware = type(
        "Failing", (TaskiqMiddleware,), {hook: failing}
    )()
    worker = Worker(middleware)

    @worker.broker.task(batch=True)
    async def function(items: list[int]) -> list[int | Exception]:
        return [KeyError(item) if item < 2 else item for item in items]

    async def main() -> None:
        await worker.send_to(function, 0, 1, 2)
        await worker.run()

    run_virtual(main())
    assert {name: repr(error) for name, error in worker.errors.items()} == {
        "0": "KeyError(0)",
        "1": "KeyError(1)",
    }
    assert worker.values == {"2": 2}
    assert worker.ids("on_error") == ["0", "1"]
    assert sorted(worker.ids("post_save")) == ["0", "1", "2"]
    assert sorted(worker.broker.acked) == ["0", "1", "2"]


@virtual
async def test_a_callback_that_is_cancelled_with_its_end_undoes_nothing() -> None:
    worker = BatchWorker(batch_size=1)
    await worker.send("item")
    [message] = worker.broker.take_all()

    def ack() -> None:
        asyncio.get_running_loop().call_soon(callback.cancel)

    delivery = AckableMessage(data=message.message, ack=ack)
    callback = asyncio.ensure_future(worker.receiver.callback(delivery))
    await asyncio.wait([callback])
    assert callback.cancelled()
    assert worker.backend.saved == ["0"]
    worker.assert_as_new()


# -- Somebody cancels himself ----------------------------------------------------------


class _SelfCancellingBackend(RecordingBackend):
    """Cancels itself while it saves some results, as a broken client does."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        if task_id in self.failing:
            raise asyncio.CancelledError
        await super().set_result(task_id, result)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_backend_that_cancels_itself_for_one_message_harms_no_other(
    size: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        backend = _SelfCancellingBackend()
        backend.failing = {"0"}
        worker = BatchWorker(backend=backend, batch_size=size)
        await worker.send(*range(size))
        await worker.run()
        others = {str(item) for item in range(1, size)}
        assert set(backend.saved) == set(worker.broker.acked) == others
        worker.assert_as_new()

    run_virtual(main())
    assert "Settling task work with ID 0 cancelled itself" in caplog.text


def test_a_backend_that_cancels_itself_for_all_is_told_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        backend = _SelfCancellingBackend()
        backend.failing = {str(item) for item in range(40)}
        worker = BatchWorker(backend=backend, batch_size=40)
        await worker.send(*range(40))
        await worker.run()
        worker.assert_as_new()

    run_virtual(main())
    assert caplog.text.count("cancelled itself") == 40
