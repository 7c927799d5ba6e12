"""Whole schedules of a worker: what arrives, what happens to it, how it is stopped.

A schedule is plain data, so that hypothesis can draw it and shrink it. It is played by
`tests.batching.playing`; what has to be true then is for the tests to say.
"""

from __future__ import annotations

import asyncio
import enum
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from taskiq.acks import AcknowledgeType
from taskiq.rates import read_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A pause of this length takes one turn of the loop and no time.
ONE_TURN: Final = -1.0

#: A pause of this length ends with a cancellation only.
FOREVER: Final = math.inf


async def pause(seconds: float) -> None:
    """Wait so many seconds: 0 does not even yield, `ONE_TURN` yields once."""
    if seconds == FOREVER:
        await asyncio.Event().wait()
    elif seconds:
        await asyncio.sleep(max(seconds, 0))


class AlphaError(Exception):
    """The entry of one item."""


class CallError(Exception):
    """What a whole call fails with."""


class HookError(Exception):
    """What a hook fails with."""


class PlacingError(Exception):
    """What working out where a message belongs fails with."""


class PoisonError(Exception):
    """What a call with a poisoned item fails with."""


class BrokerLostError(Exception):
    """What the broker's generator fails with."""


class PanicError(BaseException):
    """What no `except Exception` sees, as the panic of an extension in Rust."""


class Kind(enum.Enum):
    """Whom a message is for."""

    ALPHA = "alpha"  # a batch task that gives each item its own result
    BETA = "beta"  # a batch task with one result for all, and limits of its own
    PLAIN = "plain"
    GARBAGE = "garbage"  # cannot be decoded
    STRANGER = "stranger"  # names a task that does not exist


BATCHED: Final = (Kind.ALPHA, Kind.BETA)
REFUSED: Final = (Kind.GARBAGE, Kind.STRANGER)


class Error(enum.Enum):
    """How something fails that fails."""

    ORDINARY = "an exception of its own"
    SYSTEM_EXIT = SystemExit
    GENERATOR_EXIT = GeneratorExit
    PANIC = PanicError
    CANCELLED = asyncio.CancelledError
    OWN_CANCEL = "it cancels its own asyncio task"

    def kind(self, ordinary: type[Exception]) -> type[BaseException]:
        """The class of what is raised in the end."""
        if self is Error.ORDINARY:
            return ordinary
        if self is Error.OWN_CANCEL:
            return asyncio.CancelledError
        kind: type[BaseException] = self.value
        return kind

    async def happen(self, ordinary: type[Exception], *args: object) -> None:
        """Fail so."""
        if self is Error.OWN_CANCEL:
            cancel_oneself()
            await asyncio.sleep(0)
        raise self.kind(ordinary)(*args)


def cancel_oneself() -> None:
    """Cancel the running asyncio task."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


class Fault(enum.Enum):
    """What goes wrong for one message, and for no other."""

    ACK_LABEL = enum.auto()  # says no moment to acknowledge at
    TIMEOUT_LABEL = enum.auto()  # is no number of seconds
    CASTING = enum.auto()
    KEYING = enum.auto()
    HASHING_KEY = enum.auto()
    COMPARING_KEY = enum.auto()
    WEIGHING = enum.auto()
    COALESCING = enum.auto()
    HASHING = enum.auto()  # what equal items are found by
    COMPARING = enum.auto()
    PRE_EXECUTE = enum.auto()
    ACK = enum.auto()
    SAVE = enum.auto()
    SAVE_IS_STUBBORN = enum.auto()  # it ends in its own time, however it is cancelled
    HOOKS = enum.auto()  # each of on_error, post_execute, post_save raises


class Entry(enum.Enum):
    """What alpha gives one item."""

    VALUE = enum.auto()
    ERROR = enum.auto()
    SET_RESULT = enum.auto()
    FAIL = enum.auto()
    REJECT = enum.auto()
    POISON = enum.auto()  # any call with it fails, of every task


class Ending(enum.Enum):
    """How a call ends whose first item is this one."""

    RETURN = enum.auto()
    RAISE = enum.auto()
    WRONG_LENGTH = enum.auto()
    NO_RESULT = enum.auto()
    CANCELS_ITSELF = enum.auto()  # and returns as if nothing were the matter


@dataclass(frozen=True)
class Sent:
    """One message, and what happens to it on its way.

    :ivar gap: seconds the broker takes to give it out once it was asked.
    :ivar key: the second argument: messages of one task with equal keys are a group.
    :ivar weight: what it adds to its batch; its last bit is what `batch_key` says.
    :ivar same: what items are equal by.
    :ivar timeout: its label, seconds a call may take.
    :ivar ack_type: its label.
    :ivar priority: its label.
    :ivar error: how it fails where it does.
    :ivar seconds: how long a call takes whose first item this is.
    :ivar slow_step: the step of its own that takes `slow_seconds`.
    :ivar cancelled_after: seconds from the start of its callback to its cancellation;
        only where somebody holds the callback.
    """

    kind: Kind = Kind.ALPHA
    gap: float = 0
    key: int = 0
    weight: int = 0
    same: int = 0
    timeout: float | None = None
    ack_type: AcknowledgeType | None = None
    priority: float | None = None
    fault: Fault | None = None
    error: Error = Error.ORDINARY
    entry: Entry = Entry.VALUE
    ending: Ending = Ending.RETURN
    seconds: float = 0
    slow_step: str = ""
    slow_seconds: float = 0
    cancelled_after: float | None = None

    def takes(self, step: str) -> float:
        return self.slow_seconds if step == self.slow_step else 0


#: The steps of a message that can be slow, for `Sent.slow_step`.
SLOW_STEPS: Final = (
    "pre_execute",
    "ack",
    "save",
    "on_error",
    "post_execute",
    "post_save",
    "batch hooks",
)


@dataclass(frozen=True)
class Limits:
    """What a batch task is registered with, and which functions of its own it has."""

    size: int = 3
    spare: int = 2
    timeout: float = 1.0
    idle: float | None = None
    concurrency: int | None = None
    has_key: bool = False
    max_weight: float | None = None
    coalesces: bool = False
    isolates: bool | tuple[type[Exception], ...] = False
    rate: str | None = None
    priority: float | None = None

    @property
    def interval(self) -> float:
        """Seconds from one call to the next, at least."""
        return 0 if self.rate is None else read_interval(self.rate)

    @property
    def max_buffered(self) -> int:
        return self.size + self.spare

    @property
    def patience(self) -> float:
        """Seconds after which one that waits for room makes way for others."""
        return self.timeout or 0.1

    @property
    def is_coalescing(self) -> bool:
        return self.coalesces and self.size > 1

    @property
    def isolates_poison(self) -> bool:
        return self.isolates in (True, (PoisonError, OSError))


class Hooks(enum.Enum):
    """Which hooks the middleware has."""

    NONE = enum.auto()
    BATCHES = enum.auto()  # those of batches only
    ALL = enum.auto()


class Entrance(enum.Enum):
    """Where messages come in."""

    LISTEN = enum.auto()
    KICK = enum.auto()  # in process
    IN_PLACE = enum.auto()  # in process, each waited for by who sends it
    CALLBACK = enum.auto()  # somebody calls the receiver's `callback`


class Stop(enum.Enum):
    """What ends the listening."""

    BROKER_ENDS = enum.auto()
    FINISH_EVENT = enum.auto()
    LIMIT = enum.auto()  # `max_tasks_to_execute`
    BROKER_FAILS = enum.auto()  # another `listen` follows, and ends what still runs
    CANCELLATION = enum.auto()  # in process: the loop ends with whatever is pending


GRACEFUL: Final = (Stop.BROKER_ENDS, Stop.FINISH_EVENT, Stop.LIMIT)


@dataclass(frozen=True)
class Schedule:
    """One life of a receiver.

    :ivar beside: messages of a second event loop, beside the first: sent in process as
        the others, or given to the `callback` of a receiver that listens.
    :ivar sent_later: messages of a second `listen` of the same receiver.
    :ivar stop_at: seconds from the start to the finish event or the cancellation.
    :ivar stop_again_after: seconds from a cancellation to a second one, if any.
    """

    sent: tuple[Sent, ...]
    sent_later: tuple[Sent, ...] = ()
    beside: tuple[Sent, ...] = ()
    entrance: Entrance = Entrance.LISTEN
    alpha: Limits = field(default_factory=Limits)
    beta: Limits = field(default_factory=Limits)
    max_async_tasks: int | None = 2
    max_prefetch: int = 0
    ack_type: AcknowledgeType | None = None
    is_ackable: bool = True
    hooks: Hooks = Hooks.ALL
    has_own_callback: bool = False
    has_eager_tasks: bool = False
    save_timeout: float | None = None
    stop: Stop = Stop.BROKER_ENDS
    stop_at: float = 0
    stop_again_after: float | None = None
    limit: int | None = None
    wait_tasks_timeout: float | None = None

    def ack_type_of(self, sent: Sent) -> AcknowledgeType:
        label = None if sent.fault is Fault.ACK_LABEL else sent.ack_type
        return label or self.ack_type or AcknowledgeType.WHEN_SAVED

    @property
    def is_cut(self) -> bool:
        """Whether the stop comes by itself, and ends what does not."""
        if self.stop is Stop.CANCELLATION:
            return True
        if self.entrance is not Entrance.LISTEN or self.wait_tasks_timeout is None:
            return False
        # The others come when all is read, which what does not end may keep from it.
        return self.stop is Stop.FINISH_EVENT or self.max_async_tasks is None

    def made_finite(self) -> Schedule:
        """Let everything end: what no stop and no limit ends takes 2 seconds."""
        return replace(
            self,
            sent=tuple(self._finite(each, is_cut=self.is_cut) for each in self.sent),
            beside=tuple(self._finite(each, is_cut=False) for each in self.beside),
        )

    def _finite(self, sent: Sent, *, is_cut: bool) -> Sent:
        if is_cut:
            return sent
        is_limited = self.save_timeout is not None and (
            sent.slow_step == "save"
            or (
                sent.slow_step == "ack"
                and self.ack_type_of(sent) is not AcknowledgeType.MANUAL
            )
        )
        seconds = sent.slow_seconds if is_limited else min(sent.slow_seconds, 2.0)
        return replace(sent, seconds=min(sent.seconds, 2.0), slow_seconds=seconds)


def runs_of(schedule: Schedule) -> Sequence[range]:
    """The numbers of the messages that are sent at first, later, and beside."""
    first = len(schedule.sent)
    later = first + len(schedule.sent_later)
    return range(first), range(first, later), range(later, later + len(schedule.beside))


def arguments_of(limits: Limits, functions: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a batch task but `batch_results`; what is off is `None`.

    :param functions: the task's own: `key`, `weight` and `coalesce`.
    """
    is_single = limits.size == 1
    has_weight = limits.max_weight is not None
    return {
        "batch_size": limits.size,
        "batch_timeout": limits.timeout,
        "batch_idle_timeout": limits.idle,
        "batch_concurrency": limits.concurrency,
        "batch_max_buffered": limits.max_buffered,
        "batch_key": functions["key"] if limits.has_key else None,
        "batch_weight": functions["weight"] if has_weight else None,
        "batch_max_weight": limits.max_weight,
        "batch_coalesce": functions["coalesce"] if limits.is_coalescing else None,
        "batch_isolate_errors": None if is_single else limits.isolates,
        "batch_rate": limits.rate,
        "batch_priority": limits.priority,
    }
