"""Draw how a message that fails can end: python docs/endings.py

Writes docs/images/endings.svg, which `tests/test_policies.py` compares with what is
drawn. Nothing is known here of how a message ends: for each thing that can happen, and
each policy that it can happen under, the code that decides it is asked.
"""

from __future__ import annotations

import asyncio
import runpy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from taskiq import AckableMessage, InMemoryBroker, TaskiqMessage
from taskiq.exceptions import DeadLetteredError, MessageNackedError, NoResultError
from taskiq.policies import (
    Action,
    FailurePolicy,
    Reason,
    combined,
    decide,
    for_refused,
    mark_sent_again,
    read_policy,
)
from taskiq.receiver.endings import Endings

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCS: Final = Path(__file__).parent
TARGET: Final = DOCS / "images" / "endings.svg"
PICTURES: Final[dict[str, Any]] = runpy.run_path(str(DOCS / "pictures.py"))

#: The limit of the policies that have one.
LIMIT: Final = 3
#: What is written where a message ends as one that succeeded, but for its result.
NO_RESULT: Final = "no result"
#: What is written where it cannot happen: there is no limit, or no task.
NEVER: Final = "-"

# -- What can happen, and under which policy ------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a task and its broker say of messages that fail.

    :ivar lines: how they say it.
    """

    lines: tuple[str, str]
    own: FailurePolicy | None = None
    default: FailurePolicy | None = None

    @property
    def limit(self) -> int | None:
        """Give `max_deliveries` of them together."""
        policy = combined(self.own, self.default)
        return None if policy is None else policy.max_deliveries


COLUMNS: Final = (
    Said(("nothing", "is said")),
    Said(("on_failure", "not said"), read_policy("t", LIMIT, None)),
    Said(("on_failure=", '"ack"'), read_policy("t", LIMIT, "ack")),
    Said(("on_failure=", '"requeue"'), read_policy("t", LIMIT, "requeue")),
    Said(("on_failure=", '"dead_letter"'), read_policy("t", LIMIT, "dead_letter")),
    Said(
        ("nothing", "more"),
        default=InMemoryBroker().with_dead_letters().failure_policy,
    ),
    Said(
        ("on_failure=", '"ack"'),
        default=InMemoryBroker().with_dead_letters(on_failure="ack").failure_policy,
    ),
)
#: Titles of some columns together: the first, the one behind the last, and the title.
GROUPS: Final = (
    (1, 5, f"the task says max_deliveries={LIMIT}, and"),
    (5, 7, "with_dead_letters(), and"),
)


@dataclass(frozen=True)
class End:
    """How a message ends, in a word, and for which reason."""

    word: str
    reason: str | None = None

    @classmethod
    def of(cls, action: Action, reason: Reason) -> End:
        """Give the words for what was decided."""
        return cls(word(action), reason.value)


def word(action: Action) -> str:
    """Give the word for what becomes of a message."""
    return action.value.replace("_", " ")


@dataclass(frozen=True)
class Refused:
    """Nobody can run it."""

    title: str
    reason: Reason
    has_task: bool = False

    async def end(self, said: Said, deliveries: int) -> End:
        """Say how it ends."""
        del deliveries
        if said.own is not None and not self.has_task:
            return End(NEVER)
        policy = for_refused(said.own, said.default)
        return End.of(decide(policy, self.reason, None), self.reason)


@dataclass(frozen=True)
class Ran:
    """It came too often to be run, or a run of it has ended so.

    :ivar error: what its result has.
    :ivar is_sent_again: whether a hook has sent it again.
    """

    title: str
    error: Exception
    reason: Reason = Reason.ERROR
    is_sent_again: bool = False

    async def end(self, said: Said, deliveries: int) -> End:
        """Say how it ends."""
        if self.reason is Reason.MAX_DELIVERIES and said.limit is None:
            return End(NEVER)
        message = TaskiqMessage(
            task_id="1", task_name="t", labels={}, args=[], kwargs={}
        )
        if self.is_sent_again:
            mark_sent_again(message)
        broker: Any = SimpleNamespace(failure_policy=said.default)
        delivery: Any = SimpleNamespace(
            message=message,
            reason=self.reason,
            task=SimpleNamespace(policy=combined(said.own, said.default)),
            raw=AckableMessage(data=b"", ack=lambda: None, deliveries=deliveries),
        )
        delivery.whole = delivery  # no item of a chunk
        no_keys: Any = None  # none is released where nothing ends
        endings = Endings(broker, None, no_keys)
        ending = await endings._ending_of(delivery, self.error)  # noqa: SLF001 - it says
        return (
            End(NO_RESULT) if ending is None else End.of(ending.action, ending.reason)
        )


ROWS: Final[tuple[Refused | Ran, ...]] = (
    Refused("it cannot be read", Reason.UNPARSABLE),
    Refused("no task has its name", Reason.UNKNOWN_TASK),
    Refused("a label has a bad value", Reason.BAD_LABEL, has_task=True),
    Ran("it came too often", ValueError(), Reason.MAX_DELIVERIES),
    Ran("it failed, a retry follows", ValueError(), is_sent_again=True),
    Ran("it failed, and no retry follows", ValueError()),
    Ran("ctx.nack()", MessageNackedError(delay=None)),
    Ran("ctx.dead_letter()", DeadLetteredError(reason="")),
    Ran("ctx.requeue()", NoResultError(), is_sent_again=True),
    Ran("raise NoResultError", NoResultError()),
)


async def endings_of(happened: Refused | Ran) -> list[list[End]]:
    """Give for each column how it ends: once, or below the limit and at it."""
    ends: list[list[End]] = []
    for said in COLUMNS:  # in turn: Python 3.10 takes no await within two lists
        limits = (1, said.limit or 1)
        ends.append([await happened.end(said, each) for each in limits])
    return ends


# -- Drawing --------------------------------------------------------------------------

#: Pixels: the first column, the others, a row, what is above the first one.
FIRST, STEP, ROW, TOP = 196, 94, 44, 78
#: Pixels: the margin, and the height of a box and its distance to the next.
MARGIN, BOX, GAP = 10, 18, 2

COLOURS: Final = {
    word(Action.ACK): "#7a7a7a",
    word(Action.SENT_AGAIN): "#3d6b8f",
    word(Action.GIVE_BACK): "#3b8a6a",
    word(Action.DEAD_LETTER): "#b0643c",
    NO_RESULT: "#7a7a7a",
    NEVER: "none",
}

STYLE: Final = """
text { font: 12px sans-serif; fill: #7a7a7a }
.title { font-weight: 600; fill: #3d6b8f }
.code { font: 11px monospace }
.word { font-size: 11px; text-anchor: middle }
.line { stroke: #7a7a7a; stroke-opacity: 0.3 }
rect { fill-opacity: 0.12; stroke-width: 1 }
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """Draw a line of text."""
    escaped = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escaped}</text>'


def cell(x: int, y: int, words: Sequence[str]) -> list[str]:
    """Draw the endings of one row and column, one above the other."""
    drawn = []
    height = len(words) * BOX + (len(words) - 1) * GAP
    top = y + (ROW - height) // 2
    for number, each in enumerate(words):
        edge = top + number * (BOX + GAP)
        colour = COLOURS[each]
        if colour != "none":
            drawn.append(
                f'<rect x="{x}" y="{edge}" width="{STEP - 8}" height="{BOX}" rx="5" '
                f'fill="{colour}" stroke="{colour}"/>',
            )
        drawn.append(text(x + (STEP - 8) / 2, edge + 13, each, "word"))
    return drawn


def heads() -> list[str]:
    """Draw the titles of the columns."""
    drawn = [text(MARGIN, 64, "what happened", "title")]
    for begin, end, title in GROUPS:
        x = MARGIN + FIRST + STEP * begin
        drawn.append(text(x, 16, title, "title"))
        drawn.append(
            f'<path class="line" d="M{x} 24 H{x + STEP * (end - begin) - 8}"/>',
        )
    for place, said in enumerate(COLUMNS):
        x = MARGIN + FIRST + STEP * place
        kind = "code" if "_" in said.lines[0] else "title"
        drawn += [
            text(x, 48 + 16 * number, line, kind)
            for number, line in enumerate(said.lines)
        ]
    return drawn


def draw() -> str:
    """Give the picture of all endings."""
    width = 2 * MARGIN + FIRST + STEP * len(COLUMNS)
    height = TOP + ROW * len(ROWS) + 30
    drawn = heads()
    for number, happened in enumerate(ROWS):
        y = TOP + ROW * number
        drawn.append(f'<path class="line" d="M{MARGIN} {y} H{width - MARGIN}"/>')
        kind = "code" if happened.title.startswith("ctx.") else ""
        drawn.append(text(MARGIN, y + 19, happened.title, kind))
        cells = asyncio.run(endings_of(happened))
        reasons = dict.fromkeys(end.reason for ends in cells for end in ends)
        told = ", ".join(reason for reason in reasons if reason)
        drawn.append(text(MARGIN, y + 35, told, "code"))
        for place, ends in enumerate(cells):
            words = list(dict.fromkeys(end.word for end in ends))
            drawn += cell(MARGIN + FIRST + STEP * place, y, words)
    legend = "Two in a cell: below the limit, and at it. Where it cannot happen: -"
    drawn.append(text(MARGIN, height - 8, legend))
    title = "How a message that fails ends"
    return PICTURES["picture"](title, width, height, drawn, style=STYLE)


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
