"""Draw why batches leave, and what back-pressure does: python docs/flushes.py

Writes the files in TARGETS. `tests/test_site.py` compares them with what is drawn here,
and looks at the contrast of every text. Nothing is known here of when a batch leaves:
messages are given to the code that decides it, with a clock that this file moves.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from taskiq.batch import BatchConfig, FlushReason
from taskiq.receiver.batcher import Batch, Batcher, Group

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS: Final = Path(__file__).parent

#: The colours of the project, and what is behind a text.
PICTURES: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "pictures.py"))
INK, PAPER, BLUE, COPPER, MIST, CARD = (
    PICTURES[name] for name in ("INK", "PAPER", "BLUE", "COPPER", "MIST", "CARD")
)
#: What stays at the broker.
STONE: Final = "#7d909d"

WIDTH: Final = 640

STYLE: Final = f"""
.card {{ fill: {CARD} }}
.title {{ font: 600 17px system-ui, sans-serif; fill: {COPPER} }}
.reason {{ font: 600 17px system-ui, sans-serif; fill: {PAPER} }}
.code {{ font: 15px ui-monospace, Menlo, Consolas, monospace; fill: {MIST} }}
.note {{ font: 15px system-ui, sans-serif; fill: {MIST} }}
.message {{ font: 16px system-ui, sans-serif; fill: {BLUE} }}
.middle {{ text-anchor: middle }}
.end {{ text-anchor: end }}
.tick {{ stroke: {MIST}; stroke-width: 1; stroke-dasharray: 2 5; opacity: 0.5 }}
.fills {{ stroke: {BLUE}; stroke-width: 4; stroke-linecap: round }}
.due {{ stroke: {COPPER}; stroke-width: 4; stroke-linecap: round }}
.dot {{ fill: {BLUE}; stroke: {CARD}; stroke-width: 2 }}
.next {{ fill: {CARD}; stroke: {BLUE}; stroke-width: 2.5 }}
.inside {{ font: 600 13px system-ui, sans-serif; text-anchor: middle }}
.leaves {{ stroke: {COPPER}; stroke-width: 3 }}
.most {{ stroke: {PAPER}; stroke-width: 1.5; stroke-dasharray: 6 4 }}
.batches {{ fill: {BLUE} }}
.waiting {{ fill: {COPPER} }}
.broker {{ fill: {STONE} }}
"""


# -- Messages, and a clock that is moved ----------------------------------------------


@dataclass(eq=False)
class Message:
    """A message, as the batcher sees it."""

    group: Group[Message]
    at: float = 0
    weight: int = 1
    priority: float = 0
    batch: Batch[Message] | None = None
    sent_as: str = ""

    def joined(self, batch: Batch[Message]) -> None:
        """Have a place in a batch."""
        self.batch = batch

    def waits(self) -> None:
        """Have none yet."""

    def parks(self) -> None:
        """Have none for long: no case here takes that long."""
        raise AssertionError


@dataclass(order=True)
class Alarm:
    """Something that happens at a moment."""

    when: float
    order: int
    callback: Callable[[], object] = field(compare=False)

    def cancel(self) -> None:
        """Let it not happen."""
        self.callback = lambda: None


class Moments:
    """A clock that goes from one alarm to the next."""

    def __init__(self) -> None:
        self._now = 0.0
        self._alarms: list[Alarm] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Give the present moment in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        """Let something happen later."""
        alarm = Alarm(when, next(self._order), callback)
        heapq.heappush(self._alarms, alarm)
        return alarm

    def run(self, until: float) -> None:
        """Let all happen that is to happen by then."""
        while self._alarms and self._alarms[0].when <= until:
            alarm = heapq.heappop(self._alarms)
            self._now = alarm.when
            alarm.callback()
        self._now = until


# -- Why a batch leaves ---------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One batch, and why it leaves.

    :ivar said: what is set for it, or what happens to the worker.
    :ivar arrivals: when messages come, in seconds; a second number is the weight, or
        the number of the group.
    :ivar busy_until: until then every execution slot is taken.
    :ivar told: when the worker is told to let all batches go.
    """

    reason: FlushReason
    said: str
    config: BatchConfig
    arrivals: tuple[tuple[float, int], ...]
    busy_until: float = 0
    told: float | None = None

    @property
    def by_weight(self) -> bool:
        """Whether the second numbers are weights."""
        return self.config.max_weight is not None


def evenly(*moments: float) -> tuple[tuple[float, int], ...]:
    """Give messages of one group and of weight 1."""
    return tuple((moment, 1) for moment in moments)


CASES: Final = (
    Case(
        FlushReason.SIZE,
        "batch_size=4",
        BatchConfig(size=4),
        evenly(0.1, 0.25, 0.4, 0.55),
    ),
    Case(
        FlushReason.TIMEOUT,
        "batch_timeout=1",
        BatchConfig(size=4),
        evenly(0.1, 0.35, 0.8),
    ),
    Case(
        FlushReason.IDLE,
        "batch_idle_timeout=0.3",
        BatchConfig(size=4, idle_timeout=0.3),
        evenly(0.1, 0.2, 0.35),
    ),
    Case(
        FlushReason.WEIGHT,
        "batch_max_weight=9",
        BatchConfig(size=4, max_weight=9),
        ((0.1, 4), (0.35, 3), (0.7, 5)),
    ),
    Case(
        FlushReason.PRESSURE,
        "batch_max_buffered=5",
        BatchConfig(size=4, max_buffered=5),
        ((0.1, 1), (0.2, 2), (0.35, 1), (0.5, 2), (0.65, 2)),
    ),
    Case(
        FlushReason.SHUTDOWN,
        "the worker stops",
        BatchConfig(size=4),
        evenly(0.1, 0.35),
        told=0.65,
    ),
    Case(
        FlushReason.MANUAL,
        "wait_all() in a test",
        BatchConfig(size=4),
        evenly(0.1, 0.35),
        told=0.5,
    ),
    Case(
        FlushReason.TIMEOUT,
        "but no slot is free",
        BatchConfig(size=4),
        evenly(0.1, 0.35, 0.8, 1.2),
        busy_until=1.3,
    ),
)


@dataclass
class Departure:
    """What became of the first batch of a case."""

    reason: FlushReason
    first: float
    due: float
    left: float
    messages: list[Message]
    others: list[Message]


def played(case: Case) -> Departure:
    """Let the batcher decide a case."""
    clock = Moments()
    due: list[float] = []
    batcher: Batcher[Message] = Batcher(clock, lambda: due.append(clock.time()))
    taken: list[tuple[float, Batch[Message]]] = []
    messages: list[Message] = []

    def take() -> None:
        while clock.time() >= case.busy_until and (batch := batcher.take()):
            taken.append((clock.time(), batch))

    def arrive(number: int) -> None:
        group = batcher.group("task", case.config, 1 if case.by_weight else number)
        message = Message(group, clock.time(), number if case.by_weight else 1)
        messages.append(message)
        batcher.offer(message)

    for moment, number in case.arrivals:
        clock.call_at(moment, functools.partial(arrive, number))
    if case.told is not None:
        clock.call_at(case.told, lambda: batcher.drain(case.reason))
    for hundredth in range(150):  # a slot is free, or not
        clock.run(hundredth / 100)
        take()
    left, batch = taken[0]
    own = [*batch.members]
    others = [each for each in messages if each not in own]
    assert batch.reason is not None  # noqa: S101 - it was taken
    return Departure(batch.reason, own[0].at, due[0], left, own, others)


# -- Back-pressure --------------------------------------------------------------------

#: What is drawn of a task that gets more messages than it can take, for a while.
CALL_SECONDS, PER_SECOND, SENDING_SECONDS, SLOTS = 0.5, 120, 2, 20
PRESSED: Final = BatchConfig(size=20, timeout=60, concurrency=1, max_buffered=60)


@dataclass(frozen=True)
class Held:
    """Where the messages are at a moment."""

    at: float
    batches: int
    waiting: int
    broker: int


class Pressed:
    """A worker that reads messages of one task, with the batcher of a real one."""

    def __init__(self) -> None:
        self._clock = Moments()
        self._batcher: Batcher[Message] = Batcher(self._clock, lambda: None)
        self._unread = 0
        self.history: list[Held] = []
        self.done = 0

    def run(self) -> list[Held]:
        """Give where the messages were, until the last one is done."""
        total = PER_SECOND * SENDING_SECONDS
        for number in range(total):
            self._clock.call_at(number / PER_SECOND, self._arrive)
        while self.done < total:
            self._clock.run(len(self.history) / 20)
            self._note(len(self.history) / 20)
        return self.history

    def _arrive(self) -> None:
        self._unread += 1
        self._work()

    def _work(self) -> None:
        """Read what there is a slot for, and start what may start."""
        while self._unread and self._batcher.statistics().waiting < SLOTS:
            self._unread -= 1
            self._batcher.offer(Message(self._batcher.group("task", PRESSED, 1)))
        while batch := self._batcher.take():
            end = self._clock.time() + CALL_SECONDS
            self._clock.call_at(end, functools.partial(self._end, batch))

    def _end(self, batch: Batch[Message]) -> None:
        self._batcher.call_ended(batch)
        for _ in tuple(batch.members):
            batch.release()
            self.done += 1
        self._work()

    def _note(self, at: float) -> None:
        now = self._batcher.statistics()
        self.history.append(Held(at, now.buffered, now.waiting, self._unread))


# -- The drawings ---------------------------------------------------------------------

#: Pixels: a row, the first one; the time line and one second of it; the result.
ROW, TOP, LINE, SECOND, RESULT = 58, 96, 240, 210, 552
SECONDS: Final = (0, 0.5, 1)


def text(kind: str, x: float, y: float, content: str) -> str:
    """Draw a line of text."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{content}</text>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Draw a straight line."""
    ends = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line class="{kind}" {ends}/>'


def on_card(title: str, height: float, parts: list[str]) -> str:
    """Make a picture of what is drawn on a card."""
    card = f'<rect class="card" width="{WIDTH}" height="{height:g}" rx="14"/>'
    whole = [card, *parts]
    picture = PICTURES["picture"]
    drawn: str = picture(title, WIDTH, height, whole, style=STYLE, is_sized=True)
    return drawn


def place(moment: float) -> float:
    """Give the x of a moment."""
    return round(LINE + SECOND * moment, 1)


def draw_message(message: Message, y: float, *, is_own: bool, by_weight: bool) -> str:
    """Draw a message, with its weight if that counts."""
    x = place(message.at)
    radius = 10 if by_weight else 7
    kind = "dot" if is_own else "next"
    dot = f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius}"/>'
    if not by_weight:
        return dot
    colour = INK if is_own else BLUE
    return dot + (
        f'<text class="inside" fill="{colour}" x="{x:g}" y="{y + 4:g}">'
        f"{message.weight}</text>"
    )


def draw_case(case: Case, y: float) -> list[str]:
    """Draw one row."""
    departure = played(case)
    assert departure.reason is case.reason, case  # noqa: S101 - or the picture lies
    due, left = place(departure.due), place(departure.left)
    parts = [
        text("reason", 24, y - 2, departure.reason.value),
        text("code", 24, y + 16, case.said),
        line("fills", place(departure.first), y, due, y),
    ]
    if left > due:
        parts.append(line("due", due, y, left, y))
    parts.append(line("leaves", left, y - 16, left, y + 16))
    for message in [*departure.messages, *departure.others]:
        is_own = message in departure.messages
        parts.append(
            draw_message(message, y, is_own=is_own, by_weight=case.by_weight),
        )
    parts.append(text("message", RESULT, y + 5, f"{len(departure.messages)} items"))
    return parts


def draw_flushes() -> str:
    """Draw a time line for each reason that a batch can leave for."""
    bottom = TOP + ROW * len(CASES)
    parts = [
        text("title", 24, 40, "leaves by"),
        text("title", LINE, 40, "seconds"),
        text("title", RESULT, 40, "call of"),
    ]
    for moment in SECONDS:
        x = place(moment)
        parts.append(line("tick", x, TOP - 22, x, bottom - 30))
        parts.append(text("note middle", x, TOP - 30, f"{moment:g}"))
    for number, case in enumerate(CASES):
        parts += draw_case(case, TOP + ROW * number + 10)
    parts += [
        f'<circle class="dot" cx="32" cy="{bottom + 11}" r="7"/>',
        text("note", 46, bottom + 16, "of the batch"),
        f'<circle class="next" cx="176" cy="{bottom + 11}" r="7"/>',
        text("note", 190, bottom + 16, "of another batch"),
        line("due", 344, bottom + 11, 370, bottom + 11),
        text("note", 380, bottom + 16, "may leave"),
        line("leaves", 494, bottom + 1, 494, bottom + 21),
        text("note", 504, bottom + 16, "the call starts"),
    ]
    return on_card("Why a batch leaves, on a time line", bottom + 36, parts)


#: Pixels: the edges of the plot, a second of it, and how high a message is.
LEFT, FLOOR, PLOT_SECOND, MESSAGE = 64, 330, 87, 1.35


def band(kind: str, edges: list[tuple[float, int, int]]) -> str:
    """Draw how many messages are somewhere: moment, from and to."""
    there = [(at, top) for at, _, top in edges]
    back = [(at, low) for at, low, _ in reversed(edges)]
    points = " ".join(
        f"{LEFT + PLOT_SECOND * at:.1f},{FLOOR - MESSAGE * count:.1f}"
        for at, count in [*there, *back]
    )
    return f'<polygon class="{kind}" points="{points}"/>'


def draw_pressure() -> str:
    """Draw where the messages are while more arrive than can be dealt with."""
    held = Pressed().run()
    batches = [(each.at, 0, each.batches) for each in held]
    waiting = [
        (at, top, top + now.waiting)
        for (at, _, top), now in zip(batches, held, strict=True)
    ]
    broker = [
        (at, top, top + now.broker)
        for (at, _, top), now in zip(waiting, held, strict=True)
    ]
    bands = (
        ("batches", batches, "in batches: batch_max_buffered at most"),
        ("waiting", waiting, "waiting for room in slots: max_async_tasks at most"),
        ("broker", broker, "not read: the broker keeps them"),
    )
    most, right = PRESSED.max_buffered, LEFT + PLOT_SECOND * held[-1].at
    parts = [text("title", 24, 36, "messages that are not done")]
    for number, (kind, edges, said) in enumerate(bands):
        below = FLOOR + 44 + 22 * number
        parts += [
            band(kind, edges),
            f'<rect class="{kind}" x="{LEFT}" y="{below}" width="16" height="12"/>',
            text("note", LEFT + 26, below + 11, said),
        ]
    for count in (most, most + SLOTS):
        y = FLOOR - MESSAGE * count
        parts.append(line("most", LEFT, y, right, y))
        parts.append(text("note end", LEFT - 8, y + 5, str(count)))
    for second in range(int(held[-1].at) + 1):
        x = LEFT + PLOT_SECOND * second
        parts.append(text("note middle", x, FLOOR + 22, f"{second} s"))
    title = "Back-pressure: a worker reads what it has room for"
    return on_card(title, 440, parts)


TARGETS: Final[dict[Path, Callable[[], str]]] = {
    DOCS / "images" / "flushes.svg": draw_flushes,
    DOCS / "images" / "pressure.svg": draw_pressure,
}

if __name__ == "__main__":
    for target, draw in TARGETS.items():
        target.write_text(draw(), encoding="utf-8")
