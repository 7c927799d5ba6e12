"""Which batch starts next where priorities differ, and why none waits for ever.

Of the batches that are due and may start, the one with the highest priority is next.
One that has waited for `AGED_AFTER` times its task's timeout, since its first member
joined it, counts as one of the highest priority, whatever that is. Among those of the
highest priority groups take turns, as they do without priorities; and of a group the
oldest is next.

What that promises a batch that is the oldest of its group, may start and has aged:

* each group that waits with it starts one more batch before it at most, and a group
  that comes later none. Once more for each call of its own group that ends meanwhile:
  such a call has been its group's turn;
* so it starts within ten times its timeout, if the worker gets through one call of each
  group that waits in half of that.

Nothing can promise more: a worker whose slots are all taken starts nothing, and one
that is given more than it can do lets everybody wait. While it is at its task's own
limits a batch may not start, and ages all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.receiver.batcher import Batch, Lane, Member

    _Member = TypeVar("_Member", bound=Member)

#: How many times its timeout a batch waits until it counts as of the highest priority:
#: half of the ten that it is to start in, for there may be others who have aged.
AGED_AFTER: Final = 5

#: The timeout of a task whose batches do not wait for company, in seconds.
_LEAST_TIMEOUT: Final = 1.0


def has_aged(batch: Batch[Any], now: float) -> bool:
    """Whether a batch has waited so long that its own priority counts no more."""
    timeout = batch.lane.config.timeout or _LEAST_TIMEOUT
    return now - batch.opened_at >= AGED_AFTER * timeout


def foremost(lanes: Sequence[Lane[_Member]], now: float) -> Batch[_Member]:
    """Choose the batch that starts next.

    Lanes with one priority for all are looked through only where another one is higher.

    :param lanes: those that have a due batch, and may start one; at least one.
    :param now: the present moment, in seconds.
    """
    highest = max(_highest(lane) for lane in lanes)
    chosen: tuple[float, Batch[_Member]] | None = None
    for lane in lanes:
        if not lane.is_mixed and lane.priority == highest:
            first = lane.first_in_turn()
            found = [(first.turn, first)]
        else:
            found = _of_lane(lane, highest, now)
        for candidate in found:
            if chosen is None or candidate[0] < chosen[0]:
                chosen = candidate
    assert chosen is not None  # noqa: S101 - somebody has the highest
    return chosen[1]


def _highest(lane: Lane[Any]) -> float:
    if not lane.is_mixed:
        return lane.priority
    return max(b.highest_priority() for group in lane.due for b in group.queue)


def _of_lane(
    lane: Lane[_Member],
    highest: float,
    now: float,
) -> list[tuple[float, Batch[_Member]]]:
    """List the batch of each group that may be next, with the turn of the group."""
    found: list[tuple[float, Batch[_Member]]] = []
    for group in lane.due:
        first = group.queue[0]
        # In order of arrival: where one has aged, the first has.
        if has_aged(first, now):
            found.append((first.turn, first))
        elif lane.is_mixed:
            queue = group.queue
            found += [(first.turn, b) for b in queue if b.priority == highest][:1]
    return found
