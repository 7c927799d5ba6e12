"""Any mix of batch options and items: each message has one outcome, the right one."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from taskiq import TaskiqMiddleware, TaskiqResult
from taskiq.acks import AcknowledgeType
from taskiq.batch import BatchConfig, BatchInfo
from taskiq.receiver import Receiver
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingBackend
from tests.support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence


class PoisonError(Exception):
    """What a call with a poison item fails with."""


@dataclass(frozen=True)
class Options:
    """What the task is registered with; the functions are those below."""

    size: int
    timeout: float
    idle: float | None
    has_key: bool
    max_weight: float | None
    coalesces: bool
    concurrency: int | None
    results: str
    isolates: bool | tuple[type[Exception], ...]
    spare: int | None
    max_async_tasks: int
    seconds: float
    ack_type: AcknowledgeType
    raising_hooks: frozenset[str]

    def arguments(self) -> dict[str, Any]:
        """The arguments of the decorator; those that are off are `None`."""
        is_single = self.size == 1
        most = None if self.spare is None else self.size + self.spare
        return {
            "batch_size": self.size,
            "batch_timeout": self.timeout,
            "batch_idle_timeout": self.idle,
            "batch_key": key_of if self.has_key else None,
            "batch_weight": None if self.max_weight is None else weight_of,
            "batch_max_weight": self.max_weight,
            "batch_coalesce": same_of if self.coalesces and not is_single else None,
            "batch_concurrency": self.concurrency,
            "batch_results": self.results,
            "batch_isolate_errors": None if is_single else self.isolates,
            "batch_max_buffered": most,
        }


_OPTIONS = st.builds(
    Options,
    size=st.sampled_from([4, 6, 3, 2, 5, 1]),
    timeout=st.sampled_from([0.0, 0.5, 3.0]),
    idle=st.sampled_from([None, 0.2]),
    has_key=st.booleans(),
    max_weight=st.sampled_from([None, 3.0, 7.0]),
    coalesces=st.booleans(),
    concurrency=st.sampled_from([None, 1, 2]),
    results=st.sampled_from(["shared", "each"]),
    isolates=st.sampled_from([False, True, (PoisonError, OSError), (OSError,)]),
    spare=st.sampled_from([None, 0, 3]),
    max_async_tasks=st.integers(1, 3),
    seconds=st.sampled_from([0.0, 1.0]),
    ack_type=st.sampled_from([each for each in AcknowledgeType if each != "manual"]),
    raising_hooks=st.frozensets(st.sampled_from(["on_batch_start", "on_batch_end"])),
)

#: Items are numbers: their last digit says what is the matter with them.
_POISON, _UNKEYED, _UNWEIGHED, _ENTRY_ERROR = 9, 8, 7, 6
_ITEMS = st.sampled_from([*range(30), *[_POISON] * 3, *[10 + _POISON] * 3])


def key_of(item: int, rest: str) -> int:
    if item % 10 == _UNKEYED:
        raise LookupError(item)
    return item % 2


def weight_of(item: int) -> float:
    return -1.0 if item % 10 == _UNWEIGHED else float(item % 5)


def same_of(item: int) -> int:
    return item


@dataclass(frozen=True)
class Call:
    """What the function was called with."""

    items: tuple[int, ...]
    rest: str

    @property
    def is_poisoned(self) -> bool:
        return any(item % 10 == _POISON for item in self.items)


class Batches(TaskiqMiddleware):
    """Keeps what the hooks are told of batches, and raises in those it is told to."""

    def __init__(self, raising: frozenset[str]) -> None:
        super().__init__()
        self.raising = raising
        # What a hook raises is only logged: what it is told is checked in the end.
        self.started: list[BatchInfo] = []
        self.ended: list[tuple[BatchInfo, Sequence[TaskiqResult[Any]]]] = []

    def on_batch_start(self, batch: BatchInfo) -> None:
        self.started.append(batch)
        if "on_batch_start" in self.raising:
            raise RuntimeError("hook of the start")

    def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        self.ended.append((batch, results))
        if "on_batch_end" in self.raising:
            raise RuntimeError("hook of the end")


class Worker(RuleBasedStateMachine):
    """A worker that listens while messages are sent and time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.sent: dict[str, tuple[int, str]] = {}
        self.calls: list[Call] = []
        self.running = self.most_running = 0
        self.backend = RecordingBackend()
        self.listening: asyncio.Task[None] | None = None

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)

    @initialize(options=_OPTIONS)
    def begin(self, options: Options) -> None:
        self.options = options
        self.broker = QueueBroker()
        self.broker.with_result_backend(self.backend)
        self.batches = Batches(options.raising_hooks)
        self.broker.add_middlewares(self.batches)

        async def work(items: list[int], rest: str) -> Any:
            call = Call(tuple(items), rest)
            self.calls.append(call)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await asyncio.sleep(options.seconds)
            finally:
                self.running -= 1
            if call.is_poisoned:
                raise PoisonError(call)
            if options.results == "shared":
                return list(items)
            return [
                ValueError(item) if item % 10 == _ENTRY_ERROR else item
                for item in items
            ]

        self.task: Any = self.broker.task("work", batch=True, **options.arguments())(
            work,
        )
        self.config = self.task.batch

        async def start() -> None:
            self.receiver = Receiver(
                self.broker,
                run_startup=False,
                max_async_tasks=options.max_async_tasks,
                ack_type=options.ack_type,
            )
            self.finish = asyncio.Event()
            self.listening = asyncio.ensure_future(self.receiver.listen(self.finish))

        self._do(start())

    @rule(items=st.lists(_ITEMS, min_size=1, max_size=8), rest=st.sampled_from("xy"))
    def send(self, items: list[int], rest: str) -> None:
        async def sending() -> None:
            for item in items:
                task_id = str(len(self.sent))
                self.sent[task_id] = (item, rest)
                await self.task.kicker().with_task_id(task_id).kiq(item, rest)

        self._do(sending())

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self._do(asyncio.sleep(seconds))

    @invariant()
    def calls_keep_to_the_limits(self) -> None:
        if self.listening is None:
            return
        config = self.config
        limit = min(config.concurrency or 100, self.options.max_async_tasks)
        assert self.most_running <= limit
        for call in self.calls:
            assert 1 <= len(call.items) <= config.size
            if config.max_weight is not None and len(call.items) > 1:
                assert sum(map(weight_of, call.items)) <= config.max_weight
            if config.key is not None:
                assert len({item % 2 for item in call.items}) == 1
            if config.coalesce is not None:
                assert len(set(call.items)) == len(call.items)

    @invariant()
    def nothing_is_settled_twice(self) -> None:
        assert all(count == 1 for count in Counter(self.backend.saved).values())
        if self.listening is not None:
            assert all(count == 1 for count in Counter(self.broker.acked).values())
            if self.options.ack_type is AcknowledgeType.WHEN_SAVED:
                assert self.broker.acked == [
                    i for i in self.backend.saved if i in set(self.broker.acked)
                ]

    def _check_outcome(self, task_id: str) -> None:
        item, rest = self.sent[task_id]
        result = self.backend.results[task_id]
        error = result.error
        config = self.config
        isolates = self._isolates
        if config.key is not None and item % 10 == _UNKEYED:
            assert isinstance(error, LookupError)
        elif config.weight is not None and item % 10 == _UNWEIGHED:
            assert isinstance(error, ValueError)
        elif item % 10 == _POISON:
            assert isinstance(error, PoisonError)
            # Of so few items all culprits are found within the bound.
            assert not isolates or error.args[0].items == (item,)
        elif isinstance(error, PoisonError):
            assert not isolates
            assert item in error.args[0].items
            assert error.args[0].rest == rest
        elif config.results == "each" and item % 10 == _ENTRY_ERROR:
            assert isinstance(error, ValueError)
            assert error.args == (item,)
        else:
            assert error is None
            value = result.return_value
            assert value == item if config.results == "each" else item in value

    @property
    def _isolates(self) -> bool:
        return self.config.isolate_errors in (True, (PoisonError, OSError))

    def _check_hooks(self) -> None:
        """Every message that could be placed was told of in one batch, to its end."""
        batches = self.batches
        started = Counter(batch.batch_id for batch in batches.started)
        assert set(started.values()) <= {1}
        assert started == Counter(batch.batch_id for batch, _ in batches.ended)
        extra_calls = sum(batch.isolation_calls for batch, _ in batches.ended)
        assert len(self.calls) == len(batches.started) + extra_calls
        assert self._isolates or extra_calls == 0
        told: Counter[str] = Counter()
        for batch, results in batches.ended:
            for message, result in zip(batch.messages, results, strict=True):
                assert result is self.backend.results[message.task_id], "not aligned"
                told[message.task_id] += 1
        assert told == Counter(
            task_id
            for task_id, (item, _) in self.sent.items()
            if (self.config.key is None or item % 10 != _UNKEYED)
            and (self.config.weight is None or item % 10 != _UNWEIGHED)
        )

    def teardown(self) -> None:
        try:
            if self.listening is not None:
                self._do(self._stop(self.listening))
                self.calls_keep_to_the_limits()
                self.nothing_is_settled_twice()
                assert set(self.broker.acked) == set(self.sent)
                assert set(self.backend.results) == set(self.sent)
                for task_id in self.sent:
                    self._check_outcome(task_id)
                self._check_hooks()
                assert self.receiver.batch_statistics().is_idle
                assert asyncio.all_tasks(self.loop) == set()
        finally:
            self.loop.close()

    async def _stop(self, listening: asyncio.Task[None]) -> None:
        while len(self.broker.delivered) < len(self.sent):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(1)
        self.finish.set()
        await listening


def test_the_machine_mixes_every_argument_there_is() -> None:
    options = find(_OPTIONS, lambda _: True)
    assert options.arguments().keys() == {
        f"batch_{field.name}" for field in fields(BatchConfig)
    }


def test_any_mix_of_options_gives_each_message_its_one_outcome() -> None:
    examples = settings().max_examples * 3 // 2
    logging.disable(logging.CRITICAL)
    try:
        run_state_machine_as_test(
            Worker,
            settings=settings(
                max_examples=examples,
                stateful_step_count=12,
                deadline=None,
            ),
        )
    finally:
        logging.disable(logging.NOTSET)
