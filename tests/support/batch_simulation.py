"""Batches of one task at one worker, simulated: what a rule for leaving is worth.

Time is a number that the events carry, so a minute of messages takes milliseconds, and
each run of a trace is the same. A trace says when messages arrive and what a call
costs. A rule says when a batch leaves. The simulation does what the batcher does: a
batch that is due fills on until a call may start, one that is full lets the next one
open, and an alarm is set once a batch and asks again when it rings.

How rules are compared was written down before the first run:

* What counts is the number of calls, for that is what a batch saves, among the rules
  that hold the target: the 99th percentile of the seconds from a message's arrival to
  the end of its call.
* A rule is held against the best fixed pair of size and timeout of that trace and
  target, chosen with the whole trace known. The pair may be as late as the rule is: its
  99th percentile is at most the target, or the rule's own if that is higher.
* Where no pair holds the target, the lowest 99th percentile counts instead.
* The figure of a trace is the geometric mean of the rule's ratios to the best pair over
  all targets. Below 0.99 the rule wins the trace. A ratio above 1.1 in one cell, or a
  percentile above 1.1 times a target that a pair could hold, is a loss.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Most messages in one call of any rule: the `batch_size` of the task.
SIZE: Final = 1000

_NEVER: Final = math.inf
#: Seconds by which a batch must leave earlier for its alarm to be set again.
_EARLIER: Final = 0.001


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls cost from a moment on: seconds for each, and for each item."""

    since: float
    fixed: float = 0.005
    item: float = 0.00005


@dataclass(frozen=True, slots=True)
class Trace:
    """Messages and the calls they need.

    :ivar arrivals: seconds, in order.
    :ivar costs: in order; the last that has begun counts.
    :ivar stalls: moments; the first call after each takes `stall` seconds longer.
    :ivar noise: a call takes up to this part more or less than it should.
    """

    name: str
    arrivals: Sequence[float]
    costs: Sequence[Cost] = (Cost(0.0),)
    stalls: Sequence[float] = ()
    stall: float = 0.0
    noise: float = 0.1

    def cost(self, moment: float) -> Cost:
        """What counts at a moment."""
        costs = [cost for cost in self.costs if cost.since <= moment]
        return costs[-1]


class Rule(Protocol):
    """Decides when a batch leaves."""

    def arrived(self, now: float, /) -> None:
        """Learn that a message was admitted."""

    def most(self) -> int:
        """Say how many messages a call may have now."""
        ...

    def leaves_at(self, opened: float, messages: int, now: float, /) -> float:
        """Say when a batch of that many leaves if nobody else joins."""
        ...

    def ended(self, messages: int, started: float, ended: float, opened: float) -> None:
        """Learn of a call: its size, its moments, and when its first one arrived."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: which messages, and when."""

    first: int
    stop: int
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a trace under a rule.

    :ivar latencies: seconds of each message that was called, sorted.
    """

    trace: Trace
    calls: Sequence[Call]
    latencies: Sequence[float]

    @property
    def p99(self) -> float:
        """Seconds that 99 of 100 messages take at most."""
        return percentile(self.latencies, 0.99)

    @property
    def mean(self) -> float:
        """Seconds that a message takes on average."""
        return sum(self.latencies) / len(self.latencies)

    def late(self, target: float) -> float:
        """Part of the messages that take longer than the target."""
        return 1 - bisect_right(self.latencies, target) / len(self.latencies)


def percentile(ordered: Sequence[float], part: float) -> float:
    """Give the least of sorted values that this part of them do not exceed."""
    return ordered[max(math.ceil(len(ordered) * part) - 1, 0)]


@dataclass
class Fixed:
    """A size and a timeout that do not change."""

    size: int
    timeout: float

    def arrived(self, now: float, /) -> None:
        pass

    def most(self) -> int:
        return self.size

    def leaves_at(self, opened: float, messages: int, now: float, /) -> float:
        return opened + self.timeout

    def ended(self, messages: int, started: float, ended: float, opened: float) -> None:
        pass


class _Clockwork:
    """How long each call of one run takes."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._random = random.Random(trace.name)  # noqa: S311
        self._stalls = deque(trace.stalls)

    def call(self, started: float, messages: int) -> float:
        trace = self._trace
        cost = trace.costs[0] if len(trace.costs) == 1 else trace.cost(started)
        seconds = cost.fixed + cost.item * messages
        seconds *= 1 + trace.noise * (2 * self._random.random() - 1)
        if self._stalls and self._stalls[0] <= started:
            while self._stalls and self._stalls[0] <= started:
                self._stalls.popleft()
            seconds += trace.stall
        return seconds


def simulate(trace: Trace, rule: Rule, slots: int = 1) -> Run:
    """Run a trace under a rule with at most so many calls at once."""
    return _Worker(trace, rule, slots).run()


class _Worker:
    """The state of one simulation."""

    def __init__(self, trace: Trace, rule: Rule, slots: int) -> None:
        self.trace = trace
        self.rule = rule
        self.free = slots
        self.clockwork = _Clockwork(trace)
        # Calls that run, by their end, and those that have ended, in that order.
        self.running: list[tuple[float, Call]] = []
        self.calls: list[Call] = []
        # Full batches that wait for a call, as ranges of messages.
        self.full: deque[tuple[int, int]] = deque()
        # The open batch: its first message, and whether it has a reason to leave.
        self.first = 0
        self.is_due = False
        self.joined = 0
        self.alarm = _NEVER

    def run(self) -> Run:
        arrivals = self.trace.arrivals
        while self.joined < len(arrivals) or self.running or self.first < self.joined:
            arrival = arrivals[self.joined] if self.joined < len(arrivals) else _NEVER
            end = self.running[0][0] if self.running else _NEVER
            now = min(arrival, end, self.alarm)
            if end == now:
                self._end()
            elif arrival == now:
                self._admit(now)
            else:
                self._ring(now)
            self._start(now)
        return self._result()

    def _admit(self, now: float) -> None:
        rule = self.rule
        rule.arrived(now)
        self.joined += 1
        messages = self.joined - self.first
        if messages >= rule.most():
            self.full.append((self.first, self.joined))
            self._open_next()
        elif not self.is_due:
            moment = rule.leaves_at(self.trace.arrivals[self.first], messages, now)
            if moment <= now:
                self._fall_due()
            elif messages == 1 or moment < self.alarm - _EARLIER:
                self.alarm = moment

    def _ring(self, now: float) -> None:
        messages = self.joined - self.first
        moment = self.rule.leaves_at(self.trace.arrivals[self.first], messages, now)
        if moment <= now:
            self._fall_due()
        else:
            self.alarm = moment

    def _fall_due(self) -> None:
        self.is_due, self.alarm = True, _NEVER

    def _open_next(self) -> None:
        self.first, self.is_due, self.alarm = self.joined, False, _NEVER

    def _start(self, now: float) -> None:
        while self.free and (self.full or self.is_due):
            if self.full:
                first, stop = self.full.popleft()
            else:
                first, stop = self.first, self.joined
                self._open_next()
            self.free -= 1
            end = now + self.clockwork.call(now, stop - first)
            heapq.heappush(self.running, (end, Call(first, stop, now, end)))

    def _end(self) -> None:
        _, call = heapq.heappop(self.running)
        self.free += 1
        self.calls.append(call)
        opened = self.trace.arrivals[call.first]
        self.rule.ended(call.stop - call.first, call.started, call.ended, opened)

    def _result(self) -> Run:
        arrivals = self.trace.arrivals
        latencies = [
            call.ended - arrivals[each]
            for call in self.calls
            for each in range(call.first, call.stop)
        ]
        return Run(self.trace, self.calls, sorted(latencies))


def simulate_fixed(trace: Trace, size: int, timeout: float, slots: int = 1) -> Run:
    """Do what `simulate` does for a fixed pair, a batch at a time: much faster."""
    arrivals, clockwork = trace.arrivals, _Clockwork(trace)
    free = [0.0] * slots
    calls: list[Call] = []
    first = 0
    while first < len(arrivals):
        due = arrivals[first] + timeout
        if first + size <= len(arrivals):
            due = min(due, arrivals[first + size - 1])
        started = max(due, heapq.heappop(free))
        stop = min(bisect_right(arrivals, started, first), first + size)
        ended = started + clockwork.call(started, stop - first)
        heapq.heappush(free, ended)
        calls.append(Call(first, stop, started, ended))
        first = stop
    latencies = [
        call.ended - arrival
        for call in calls
        for arrival in arrivals[call.first : call.stop]
    ]
    return Run(trace, calls, sorted(latencies))


def optimum(trace: Trace, target: float) -> int:
    """Count the fewest calls with which every message can be within the target.

    With everything known, no noise, no slow call, and any number of calls at once.
    """
    arrivals, calls, first = trace.arrivals, 0, 0
    while first < len(arrivals):
        cost, stop = trace.cost(arrivals[first]), first + 1
        limit = arrivals[first] + target - cost.fixed
        while (
            stop < len(arrivals)
            and stop - first < SIZE
            and arrivals[stop] + cost.item * (stop + 1 - first) <= limit
        ):
            stop += 1
        first, calls = stop, calls + 1
    return calls


@dataclass
class Arrivals:
    """Makes the arrivals of a trace, the same ones each time."""

    seed: str
    now: float = 0.0
    made: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311

    def at_rate(self, rate: float, *, seconds: float) -> Arrivals:
        """Let messages arrive independently of each other for some time."""
        end = self.now + seconds
        while True:
            self.now += self._random.expovariate(rate)
            if self.now >= end:
                self.now = end
                return self
            self.made.append(self.now)

    def burst(self, messages: int, *, seconds: float) -> Arrivals:
        """Let that many arrive in a short time, which takes nothing of the others'."""
        self.made += [
            self.now + seconds * self._random.random() for _ in range(messages)
        ]
        return self

    def sorted(self) -> list[float]:
        return sorted(self.made)


def _ramp(scale: float, seed: str) -> list[float]:
    arrivals = Arrivals(seed)
    for rate in (2, 20, 200, 2000, 20_000, 2000, 200, 20, 2):
        arrivals.at_rate(rate, seconds=2000 * scale / rate)
    return arrivals.sorted()


def _steps(scale: float, seed: str) -> list[float]:
    arrivals = Arrivals(seed)
    for _ in range(2):
        arrivals.at_rate(200, seconds=10 * scale).at_rate(2000, seconds=5 * scale)
    return arrivals.sorted()


def _bursts(scale: float, seed: str) -> list[float]:
    arrivals = Arrivals(seed)
    for _ in range(int(50 * scale)):
        arrivals.burst(300, seconds=0.005).at_rate(100, seconds=0.5)
    return arrivals.sorted()


def _steady(rate: float, seconds: float, seed: str) -> list[float]:
    return Arrivals(seed).at_rate(rate, seconds=seconds).sorted()


def traces(scale: float = 1.0, seed: str = "") -> list[Trace]:
    """Make the six traces, of some 20,000 messages each.

    :param scale: how many messages, and for how long.
    :param seed: another one makes other traces of the same kinds.
    """
    third = 15 * scale
    return [
        Trace("ramp", _ramp(scale, f"ramp{seed}")),
        Trace("steady", _steady(1000, 20 * scale, f"steady{seed}")),
        Trace("steps", _steps(scale, f"steps{seed}")),
        Trace("bursts", _bursts(scale, f"bursts{seed}")),
        Trace(
            "slow calls",
            _steady(1000, 30 * scale, f"slow calls{seed}"),
            stalls=(1, 11, 21),
            stall=0.06,
        ),
        Trace(
            "cost changes",
            _steady(500, 3 * third, f"cost changes{seed}"),
            costs=[Cost(0.0), Cost(third, 0.010, 0.0001), Cost(2 * third)],
        ),
    ]


def lone_messages() -> Trace:
    """One message every ten seconds or so."""
    return Trace("lone", _steady(0.1, 1000.0, "lone"))


#: Parts of the target, and of a thousand messages, that fixed pairs are tried with.
TIMEOUTS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, *(n / 50 for n in range(30, 51)))
SIZES: Final = (1, 4, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 500, 700, SIZE)


@dataclass(frozen=True, slots=True)
class Pair:
    """A fixed pair and what it comes to."""

    size: int
    timeout: float
    p99: float
    mean: float
    calls: int


def grid(
    trace: Trace,
    target: float,
    slots: int = 1,
    sizes: Sequence[int] = SIZES,
    timeouts: Sequence[float] = TIMEOUTS,
) -> list[Pair]:
    """Run a trace with every fixed pair."""
    pairs = []
    for size in sizes:
        for part in timeouts if size > 1 else (0.0,):
            run = simulate_fixed(trace, size, part * target, slots)
            pairs.append(Pair(size, part * target, run.p99, run.mean, len(run.calls)))
    return pairs


def best(pairs: Sequence[Pair], most: float) -> Pair:
    """Choose the pair with the fewest calls within `most`, else the least late one."""
    holding = [pair for pair in pairs if pair.p99 <= most]
    if holding:
        return min(holding, key=lambda pair: (pair.calls, pair.p99))
    return min(pairs, key=lambda pair: (pair.p99, pair.calls))


@dataclass(frozen=True, slots=True)
class Cell:
    """A rule and the best fixed pair on one trace and target.

    :ivar reachable: whether a fixed pair holds the target.
    """

    target: float
    run: Run
    best: Pair
    reachable: bool

    @property
    def ratio(self) -> float:
        """Calls of the rule to those of the pair; of the latencies if none holds."""
        if self.reachable:
            return len(self.run.calls) / self.best.calls
        return self.run.p99 / self.best.p99

    @property
    def is_loss(self) -> bool:
        """Whether the rule is more than 10 % worse, or that much too late."""
        too_late = self.reachable and self.run.p99 > 1.1 * self.target
        return too_late or self.ratio > 1.1


def compare(run: Run, pairs: Sequence[Pair], target: float) -> Cell:
    """Hold a run against the best of the fixed pairs."""
    reachable = any(pair.p99 <= target for pair in pairs)
    most = max(target, run.p99) if reachable else 0.0
    return Cell(target, run, best(pairs, most), reachable)


def trace_ratio(cells: Sequence[Cell]) -> float:
    """Geometric mean of the ratios of a trace's cells."""
    return math.exp(sum(math.log(cell.ratio) for cell in cells) / len(cells))
