"""The rules by which a broker is suspected of holding messages back."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from taskiq import TaskiqMessage
from taskiq.batch import BatchConfig, BatchInfo, FlushReason
from taskiq.receiver.diagnosis import ShortBatchWatch

_SIZE = 10
_TIMEOUT = 10.0

#: What comes as promptly as if it had waited for the acknowledgements, just still.
_PROMPT = 1.0


class Row:
    """A watch, and batches that start one after the other as it sees them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.watch = ShortBatchWatch()
        self.config = BatchConfig(size=_SIZE, timeout=_TIMEOUT)
        self.moment = 0.0
        self._caplog = caplog

    def batch(
        self,
        count: int = 3,
        *,
        reason: FlushReason = FlushReason.TIMEOUT,
        pause: float = _PROMPT,
        was_starved: bool = True,
        early: int | None = None,
    ) -> None:
        """Start a batch and settle it.

        :param pause: seconds since the batch before was settled.
        :param early: how many messages it had soon after that, all of them if `None`.
        """
        if self.watch.look_after(self.config) is not None:
            self.watch.came_early(count if early is None else early)
        message = TaskiqMessage(
            task_id="id",
            task_name="task",
            labels={},
            args=[],
            kwargs={},
        )
        info = BatchInfo("batch", "task", [message] * count, reason, _TIMEOUT)
        opened_at = self.moment + pause
        self.watch.started(info, self.config, opened_at, was_starved=was_starved)
        self.moment = opened_at + _TIMEOUT
        self.watch.settled(self.moment)

    @property
    def warnings(self) -> int:
        return sum(r.levelno == logging.WARNING for r in self._caplog.records)


@pytest.fixture
def row(caplog: pytest.LogCaptureFixture) -> Row:
    return Row(caplog)


def test_five_equal_short_batches_in_a_row_are_told_of_once(row: Row) -> None:
    for _ in range(4):
        row.batch()
    assert row.warnings == 0
    row.batch()
    assert row.warnings == 1
    for _ in range(10):
        row.batch()
    assert row.warnings == 1


@pytest.mark.parametrize(
    "other",
    [
        {"reason": FlushReason.PRESSURE},
        {"reason": FlushReason.SIZE, "count": _SIZE},
        {"count": _SIZE},
        {"was_starved": False},
    ],
    ids=str,
)
def test_a_batch_that_nothing_was_held_back_from_ends_a_row(
    row: Row,
    other: dict[str, Any],
) -> None:
    for _ in range(4):
        row.batch()
    row.batch(**other)
    for _ in range(4):
        row.batch()
    assert row.warnings == 0
    row.batch()
    assert row.warnings == 1


@pytest.mark.parametrize(
    "other",
    [{"count": 4}, {"count": 2}, {"pause": _PROMPT + 0.01}],
    ids=str,
)
def test_a_short_batch_that_differs_begins_a_row(
    row: Row,
    other: dict[str, Any],
) -> None:
    for _ in range(4):
        row.batch()
    row.batch(**other)
    count = other.get("count", 3)
    for _ in range(3):
        row.batch(count)
    assert row.warnings == 0
    row.batch(count)
    assert row.warnings == 1


def test_full_batches_that_leave_by_timeout_are_nothing_to_tell_of(
    row: Row,
) -> None:
    """They filled up while they waited for a slot."""
    for _ in range(10):
        row.batch(_SIZE)
    assert row.warnings == 0


@pytest.mark.parametrize("even", [{"early": 1}, {"count": 1}], ids=str)
def test_messages_that_come_at_even_intervals_are_not_held_back(
    row: Row,
    even: dict[str, Any],
) -> None:
    for _ in range(20):
        row.batch(**even)
    assert row.warnings == 0


def test_it_is_looked_only_while_something_is_suspected(row: Row) -> None:
    seconds: list[float | None] = []
    for _ in range(6):
        seconds.append(row.watch.look_after(row.config))
        row.batch()
    assert seconds == [None, None, None, None, 2 * _PROMPT, None]
