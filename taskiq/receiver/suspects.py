"""Which messages of a batch run together when one of them may kill its process.

Decisions only. A process that dies says nothing of what it died of, but a broker that
counts deliveries delivers again what the process held, counted up. A message that was
delivered `n` times may have been in `n - 1` calls that never ended. So it shares its
next call with no more than a `2 ** (n - 1)`th of a batch, and only with messages of
which the same is known: the one that kills is alone after `log2(size) + 1` deaths, and
what has not been delivered before runs apart from all of them, and begins first. Where
`max_deliveries` leaves less time, parts shrink faster: at its last delivery each
message is alone.

Most of what a process held when it died was only waiting. Where the main process knows
what was running (`taskiq.receiver.casualties`), a delivery that ended with the death of
a process in which the message was not running does not count: it is no suspect, and is
not dead for `max_deliveries` either.

A message of a plain task is in no batch that could be parted. Of those with
`max_deliveries` it is known, too, what ran in a process that died, and such run ever
fewer at once, until each is alone in its process at its last delivery. So are those of
batches that ran in a process that died.

Whatever has died twice, or is delivered for the last time, runs one call after another
in a process, so that the next death says more. What has died once does not: mostly its
process was killed by somebody, and hundreds of messages are to run again as soon as
there are slots.

Calls with equally many deliveries are made in random order. A broker delivers again in
the order it had: the one that kills might always be first, and nobody behind it would
ever run. So half of them do before each death, on average.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskiq.receiver.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskiq.receiver.casualties import Death

#: So many deliveries that ended with a death are excused at most: what kills before it
#: runs, such as a value that cannot be cast, is never seen running.
_MOST_EXCUSED: Final = 16

#: Of so many deliveries on the calls of a message are made one at a time.
_ONE_AT_A_TIME: Final = 3


class Part(NamedTuple):
    """Messages of a batch that share a call.

    :ivar indexes: which of the batch.
    :ivar is_exclusive: whether no other such call runs in the process meanwhile; the
        others may run side by side.
    """

    indexes: Sequence[int]
    is_exclusive: bool


def counted(deliveries: int, task_id: str, deaths: Sequence[Death]) -> int:
    """Count deliveries in which a message may have run.

    :param deliveries: all of them, 1 for the first.
        Some brokers only know that there were two or more.
    :param deaths: those of processes that it may have been delivered to.
    """
    waited = sum(each.ids is not None and task_id not in each.ids for each in deaths)
    died = len(deaths) - waited
    return max(deliveries - min(waited, _MOST_EXCUSED), died + 1)


def has_died(task_id: str, deaths: Sequence[Death]) -> bool:
    """Whether it is known of a message that a process died while it ran there."""
    return any(each.ids is not None and task_id in each.ids for each in deaths)


def turn_of(deliveries: int, size: int, limit: int) -> Turn:
    """Say what a message of a plain task may run beside that ran when a process died.

    :param deliveries: in how many it may have run, this one included.
    :param size: how many calls run at once, otherwise.
    :param limit: `max_deliveries` of its task.
    """
    return Turn(most_together(deliveries, size, limit), deliveries >= limit)


def most_together(deliveries: int, size: int, limit: int | None = None) -> int:
    """Say how many messages may share a call.

    :param deliveries: in how many they may have run, 1 for the first time.
    :param size: most items of a batch.
    :param limit: `max_deliveries` of their task.
    """
    before = max(deliveries - 1, 0)
    most = size >> before
    if before and limit is not None:
        # By as much each time that one is left at the last.
        share = max(1 - before / max(limit - 1, 1), 0)
        most = min(most, int(size**share))
    return max(most, 1)


def parts(
    deliveries: Sequence[int],
    size: int,
    limit: int | None = None,
    shuffle: Callable[[list[Any]], None] = random.shuffle,
) -> list[Part]:
    """Part the messages of a batch into calls.

    :param deliveries: for each message in how many it may have run.
    :param size: most items of a batch.
    :param limit: `max_deliveries` of their task.
    :param shuffle: puts calls in random order.
    :returns: the calls, those least suspect first.
    """
    by_most: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for index, count in enumerate(deliveries):
        most = most_together(count, size, limit)
        is_last = limit is not None and count >= limit
        is_exclusive = count >= _ONE_AT_A_TIME or (count > 1 and is_last)
        by_most[most, is_exclusive].append(index)
    calls: list[Part] = []
    least_suspect = sorted(by_most.items(), key=lambda each: (-each[0][0], each[0][1]))
    for (most, is_exclusive), indexes in least_suspect:
        alike = [
            Part(indexes[start : start + most], is_exclusive)
            for start in range(0, len(indexes), most)
        ]
        shuffle(alike)
        calls += alike
    return calls


def runs(calls: Sequence[Part]) -> list[list[Part]]:
    """Say which of the calls of a batch are made one after another.

    :param calls: those least suspect first.
    :returns: runs, which may go side by side. What is exclusive is in the last one,
        behind the others: those have ended by then, or soon will.
    """
    free = [[call] for call in calls if not call.is_exclusive]
    exclusive = [call for call in calls if call.is_exclusive]
    if not free:
        return [exclusive]
    free[-1] += exclusive
    return free
