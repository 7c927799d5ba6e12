"""Limits and cleanups under cancellation, by themselves."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware
from taskiq.outcome import Failed
from taskiq.receiver.containment import (
    attempt,
    contain,
    first_step,
    in_context,
    start,
    take_own_cancel,
)
from taskiq.receiver.tasks import (
    UNSTARTED,
    Tasks,
    cancel_requests,
    start_task,
    uninterrupted,
)
from tests.support.brokers import message_bytes
from tests.support.limits import within
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import Gate, GatedBackend, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


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
        loop = asyncio.get_running_loop()
        tasks = Tasks(loop)
        task = tasks.begin(within(1, asyncio.Event().wait()), None)
        assert task is not None
        loop.call_later(1, tasks.stop, task)
        await asyncio.wait([task])
        assert task.cancelled()

    run_virtual(main())


def test_what_has_ended_or_runs_in_no_loop_is_neither_stopped_nor_own() -> None:
    async def main() -> Tasks:
        tasks = Tasks(asyncio.get_running_loop())
        task = tasks.begin(asyncio.sleep(1), None)
        assert task is not None
        await task
        tasks.stop(task)
        assert not tasks._stopped
        return tasks

    assert not run_virtual(main()).is_own()


class Sent:
    """What one of many asyncio tasks works for."""

    broker = None
    is_batched = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_over = False

    def leave(self) -> None:
        self.is_over = True

    def __str__(self) -> str:
        return str(self.number)


class Burst:
    """More is begun at once than may wait for its first step."""

    def __init__(self, count: int = 2 * UNSTARTED) -> None:
        self.tasks = Tasks(asyncio.get_running_loop())
        self.sent: list[Sent] = []
        self.started: list[int] = []
        for _ in range(count):
            self.send()

    def send(self) -> None:
        self.sent.append(Sent(len(self.sent)))
        self.tasks.begin_in_turn(self.take, self.sent[-1])

    async def take(self, sent: Sent) -> None:
        self.tasks.started(sent)
        self.started.append(sent.number)

    async def end(self) -> None:
        await self.tasks.wait_until(lambda: True)
        assert all(each.is_over for each in self.sent)


async def test_one_that_is_cancelled_before_its_first_step_is_in_nobodys_way() -> None:
    """Nor does anybody get his turn before those who wait already."""
    burst = Burst(5 * UNSTARTED)
    last = UNSTARTED - 1
    next(iter(burst.tasks.of(lambda each: each is burst.sent[last]))).cancel()
    for _ in range(5):
        await asyncio.sleep(0)
        burst.send()
    await burst.end()
    assert burst.started == [each.number for each in burst.sent if each.number != last]


async def test_what_follows_those_that_are_all_cancelled_is_left_like_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So an event loop that ends finds nothing that begins when it is over."""
    burst = Burst()
    for task in burst.tasks.of(lambda _: True):
        task.cancel()
    await burst.end()
    assert burst.started == []
    (line,) = [each for each in caplog.records if hasattr(each, "tasks")]
    followers = "; ".join(str(number) for number in range(UNSTARTED, 2 * UNSTARTED))
    assert line.getMessage() == (
        f"Left for redelivery, as what was to begin before was cancelled: {followers}."
    )
    assert line.__dict__["tasks"] == UNSTARTED


async def test_a_stop_leaves_what_was_not_begun_and_names_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    burst = Burst()
    await burst.tasks.cancel()
    await burst.end()
    assert burst.started == []
    (line,) = caplog.records
    assert line.__dict__["tasks"] == 2 * UNSTARTED
    assert line.getMessage().endswith(f"; {2 * UNSTARTED - 1}.")


def test_what_ends_in_spite_of_its_limit_is_done_and_nobody_is_cancelled() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    async def main() -> None:
        assert await within(1, stubborn()) == "done all the same"
        await asyncio.sleep(1)

    run_virtual(main())


def test_work_that_belongs_to_no_asyncio_task_has_no_limit() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        steps: list[str] = []
        work = within(1, work_of_two_steps())

        def step() -> None:
            try:
                steps.append(work.send(None))
            except StopIteration as stop:
                ended.set_result(stop.value)

        for moment in (0, 2, 3):  # a callback of the loop runs in no task
            loop.call_later(moment, step)
        assert await ended == "done"
        assert steps == ["first", "second"]

    run_virtual(main())


# -- The limit itself ---------------------------------------------------------------


async def stubborn() -> str:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        return "done all the same"
    return "done"


def in_a_task(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` in a task that counts its cancellations, as the receiver does."""

    async def main() -> Any:
        return await Tasks(asyncio.get_running_loop()).run(work, None)

    return run_virtual(main())


def test_what_waits_for_nothing_ends_at_once_and_sets_no_timer() -> None:
    async def done() -> int:
        return 3

    async def failed() -> None:
        raise ValueError("no")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later = None  # type: ignore[assignment, method-assign]  # fails
        assert await within(1, done()) == 3
        with pytest.raises(ValueError, match="no"):
            await within(1, failed())
        del loop.call_later

    in_a_task(main())


def test_errors_while_it_waits_reach_it_and_it_may_go_on() -> None:
    async def persistent() -> list[str]:
        seen: list[str] = []
        for _ in range(3):
            refused = asyncio.get_running_loop().create_future()
            refused.get_loop().call_later(1, refused.set_exception, OSError("away"))
            try:
                await refused
            except OSError as exc:
                seen.append(str(exc))
        await asyncio.sleep(1)
        return seen

    async def main() -> None:
        assert await within(10, persistent()) == ["away"] * 3

    in_a_task(main())


def test_what_ends_in_spite_of_its_cancellation_has_ended() -> None:
    async def main() -> None:
        assert await within(1, stubborn()) == "done all the same"
        # Nothing is left of the cancellation: neither now nor at the next await.
        assert cancel_requests(own_task()) == 0
        await asyncio.sleep(1)
        await assert_next_limit_works()

    async def assert_next_limit_works() -> None:
        with pytest.raises(TimeoutError, match="no end within 1 s"):
            await within(1, asyncio.sleep(100))

    in_a_task(main())


def test_a_cancellation_from_outside_is_one() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(
            within(10, asyncio.sleep(100)),
        )
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def test_a_cancellation_from_outside_wins_over_the_limit() -> None:
    """It is no failure of what is limited."""
    told: list[Any] = []

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(5)

    async def work() -> None:
        told.append(await contain(slow_to_end, seconds=10))

    async def main() -> None:
        task = start_task(asyncio.get_running_loop(), work())
        await asyncio.sleep(12)  # past the limit, in the cleanup
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())
    assert told == []


def test_a_cancellation_reaches_what_only_lets_others_run() -> None:
    async def yielding() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.ensure_future(within(10, yielding()))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


# -- Who cancels himself ------------------------------------------------------------


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def waits_and_cancels_himself() -> str:
    await asyncio.sleep(1)
    own_task().cancel()
    return "done"


async def only_cancels_himself() -> str:
    own_task().cancel()
    return "done"


async def cancels_himself_and_waits() -> str:
    own_task().cancel()
    await asyncio.sleep(1)
    return "done"


async def cancels_himself_twice_and_waits() -> str:
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            own_task().cancel()
            await asyncio.sleep(1)
    own_task().cancel()
    await asyncio.sleep(1)
    return "done"


async def raises_what_closes_generators() -> None:
    await asyncio.sleep(1)
    raise GeneratorExit


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (
            waits_and_cancels_himself,
            asyncio.CancelledError("it cancelled its own asyncio task"),
        ),
        (
            only_cancels_himself,
            asyncio.CancelledError("it cancelled its own asyncio task"),
        ),
        (cancels_himself_and_waits, asyncio.CancelledError()),
        (cancels_himself_twice_and_waits, asyncio.CancelledError()),
        (raises_what_closes_generators, GeneratorExit()),
    ],
)
def test_who_ends_his_own_task_has_failed_and_that_goes_on(
    function: Any,
    error: BaseException,
) -> None:
    async def main() -> None:
        failed = await contain(function)
        assert isinstance(failed, Failed)
        assert repr(failed.error) == repr(error)
        assert cancel_requests(own_task()) == 0
        await asyncio.sleep(1)

    in_a_task(main())


async def fails_when_cancelled() -> None:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        raise KeyError from None


@pytest.mark.parametrize(
    ("function", "outcome"), [(stubborn, str), (fails_when_cancelled, Failed)]
)
def test_who_survives_a_cancellation_from_outside_leaves_nothing_of_it(
    function: Any, outcome: type[Any]
) -> None:
    """Whatever follows would have failed with it: the saving of a result, above all."""

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, own_task().cancel)
        assert isinstance(await contain(function), outcome)
        assert await contain(asyncio.sleep, 1) is None

    in_a_task(main())


@virtual
async def test_a_task_that_survives_a_cancellation_from_outside_has_its_result() -> (
    None
):
    worker = Worker(backend=GatedBackend(gate := Gate()))
    started: list[asyncio.Task[Any]] = []

    @worker.broker.task
    async def plain() -> str:
        started.append(own_task())
        return await stubborn()

    @worker.broker.task(batch=True)
    async def batched(items: list[int]) -> str:
        started.append(own_task())
        return await stubborn()

    await plain.kiq()
    await batched.kiq(1)
    running = asyncio.ensure_future(worker.run())
    await asyncio.sleep(10)
    for each in started:
        each.cancel()
    gate.opened.set()
    await running
    assert list(worker.values.values()) == ["done all the same"] * 2
    assert len(worker.broker.acked) == 2


@pytest.mark.parametrize("way", ["in place", "in place, batched", "callback"])
@virtual
async def test_who_cleans_up_after_his_cancellation_runs_messages_that_succeed(
    way: str,
) -> None:
    class Waits(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            await asyncio.sleep(1)
            return message

    broker = InMemoryBroker(await_inplace=True).with_middlewares(Waits())
    outcomes: list[Any] = []

    @broker.task
    async def plain() -> None:
        await asyncio.sleep(1)

    @broker.task(batch=True)
    async def batched(items: list[int]) -> None:
        await asyncio.sleep(1)

    async def clean_up() -> None:
        if way == "callback":
            await broker.receiver.callback(message_bytes(plain, task_id="it"))
        elif way == "in place":
            await plain.kicker().with_task_id("it").kiq()
        else:
            await batched.kicker().with_task_id("it").kiq(1)
        outcomes.append((await broker.result_backend.get_result("it")).error)
        outcomes.append(cancel_requests(own_task()))

    async def main() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await clean_up()

    task = asyncio.ensure_future(main())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    assert outcomes == [None, 1]
    assert task.cancelled()


async def has_a_limit_of_its_own() -> str:
    with anyio.move_on_after(1):
        await asyncio.sleep(10)
    return "done"


DEALING_WITH_IT: list[Any] = [has_a_limit_of_its_own]

if sys.version_info >= (3, 11):

    async def catches_a_timeout() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(10)
        return "done"

    async def outlives_its_group() -> str:
        async def fail() -> None:
            raise KeyError

        with suppress(Exception):  # a group
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await asyncio.sleep(10)
        return "done"

    async def withdraws_his_own_cancellation() -> str:
        own_task().cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        own_task().uncancel()
        return "done"

    DEALING_WITH_IT += [
        catches_a_timeout,
        outlives_its_group,
        withdraws_his_own_cancellation,
    ]

    def test_who_deals_with_one_cancellation_is_ended_by_another() -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            task = start_task(loop, contain(catches_a_timeout))
            loop.call_later(1, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled()

        run_virtual(main())


@pytest.mark.parametrize("function", DEALING_WITH_IT)
def test_who_deals_with_a_cancellation_has_not_failed(function: Any) -> None:
    """A timer cancels, and the function withdraws that: then nobody is cancelled."""

    async def main() -> None:
        assert await contain(function) == "done"
        assert isinstance(await contain(cancels_himself_and_waits), Failed)

    in_a_task(main())


@pytest.mark.parametrize("function", DEALING_WITH_IT)
@virtual
async def test_a_task_that_deals_with_a_cancellation_has_not_failed(
    function: Any,
) -> None:
    worker = Worker()

    @worker.broker.task(batch=True)
    async def batched(items: list[int]) -> str:
        return str(await function())

    await worker.broker.task("plain")(function).kiq()
    await batched.kiq(1)
    await worker.run()
    assert list(worker.values.values()) == ["done", "done"]


def test_a_cancellation_of_ones_own_that_nothing_waited_for_is_told_when_asked() -> (
    None
):
    """Else it is that of whatever waits next, in that task."""

    async def main() -> None:
        assert await take_own_cancel() is None
        assert first_step(only_cancels_himself) == "done"
        told = await take_own_cancel()
        assert isinstance(told, Failed)
        assert isinstance(told.error, asyncio.CancelledError)
        await asyncio.sleep(1)
        assert first_step(only_cancels_himself) == "done"
        told = await contain(asyncio.sleep, 1)
        assert isinstance(told, Failed)
        assert cancel_requests(own_task()) == 0
        await asyncio.sleep(1)

    in_a_task(main())


def test_who_cancels_himself_and_is_cancelled_by_another_has_ended() -> None:
    """In the moment in which his own cancellation would have been taken."""

    async def cancels_itself() -> str:
        await asyncio.sleep(1)
        own_task().cancel()
        asyncio.get_running_loop().call_soon(own_task().cancel)
        return "done"

    async def main() -> None:
        task = asyncio.ensure_future(contain(cancels_itself))
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


async def waits() -> None:
    await asyncio.Event().wait()


async def cancels_himself_and_waits_on() -> None:
    with suppress(asyncio.CancelledError):
        own_task().cancel()
        await asyncio.sleep(0)
    await asyncio.Event().wait()


@pytest.mark.parametrize("function", [waits, cancels_himself_and_waits_on])
@pytest.mark.parametrize("is_ended", [False, True], ids=["alone", "with its task"])
def test_what_is_interrupted_fails_with_the_reason_unless_its_task_ends(
    function: Any,
    is_ended: bool,
) -> None:
    async def main() -> None:
        loop, told = asyncio.get_running_loop(), list[Any]()

        async def work() -> None:
            steps = first_step(function)
            loop.call_later(2, steps.interrupt_for, KeyError("reason"))
            if is_ended:
                loop.call_later(2, own_task().cancel)
            told.append(await steps.finish())
            assert cancel_requests(own_task()) == 0
            await asyncio.sleep(1)

        task = start_task(loop, work())
        await asyncio.wait([task])
        assert task.cancelled() is is_ended
        assert [str(failed.error) for failed in told] == ["'reason'"] * (not is_ended)

    run_virtual(main())


def test_what_is_closed_goes_no_further() -> None:
    """Whoever cleans up after a loop that is gone closes what waited in it."""
    steps: list[str] = []

    async def work() -> None:
        steps.append("begun")
        await contain(waits)
        steps.append("gone on")

    loop = asyncio.new_event_loop()
    task = start_task(loop, work())
    loop.run_until_complete(asyncio.sleep(0))
    coroutine: Any = task.get_coro()
    coroutine.close()
    assert steps == ["begun"]
    task.cancel()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        loop.run_until_complete(task)
    loop.close()


def test_what_is_closed_in_a_context_ends_there() -> None:
    """As the work of a loop that is gone is closed by whoever cleans up after it."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    context, ended = contextvars.copy_context(), list[str]()
    context.run(name.set, "own")

    async def work() -> None:
        try:
            await two_steps()
        finally:
            ended.append(name.get("none"))

    waiting = in_context(context, work())
    assert waiting.send(None) == "first"
    waiting.close()
    assert ended == ["own"]


# -- What is called where no event loop runs ----------------------------------------


@pytest.mark.parametrize("begin", [first_step, start])
def test_a_first_step_is_taken_and_contained_without_a_task(
    begin: Callable[..., Any],
) -> None:
    async def text() -> str:
        return "async"

    # `start` is for what gives nothing.
    given = begin(text), begin(lambda: "sync")
    assert given == ((None, None) if begin is start else ("async", "sync"))
    failed = begin(int, "no number")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ValueError)


def test_what_can_be_awaited_is_whatever_it_is_made_of() -> None:
    async def main() -> None:
        waited_for = asyncio.get_running_loop().create_future()
        waited_for.get_loop().call_later(1, waited_for.set_result, "done")
        assert await contain(lambda: waited_for) == "done"

    run_virtual(main())


@pytest.mark.parametrize("begin", [first_step, start])
def test_a_cancellation_where_there_is_no_task_is_raised(
    begin: Callable[..., Any],
) -> None:
    """Nobody there could say that it is his own."""

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        begin(cancelled)


def test_who_stops_the_process_is_not_contained() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(stop)
