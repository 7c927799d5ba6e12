"""Which messages of a batch run together when one of them may kill its process.

Decisions only. A process that dies says nothing of what it died of, but a broker that
counts deliveries delivers again what the process held, counted up. A message that was
delivered `n` times may have been in `n - 1` calls that never ended. So it shares its
next call with no more than a `2 ** (n - 1)`th of a batch, and only with messages of
which the same is known: the one that kills is alone after `log2(size) + 1` deaths, and
what has not been delivered before runs apart from all of them, and first.

Calls with equally many deliveries are made in random order. A broker delivers again in
the order it had: the one that kills might always be first, and nobody behind it would
ever run. So half of them do before each death, on average.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def most_together(deliveries: int, size: int) -> int:
    """Say how many messages may share a call.

    :param deliveries: how often they were delivered, 1 for the first time.
    :param size: most items of a batch.
    """
    # No size is larger than that; a larger shift would only take long.
    return max(size >> min(max(deliveries - 1, 0), 64), 1)


def parts(
    deliveries: Sequence[int],
    size: int,
    shuffle: Callable[[list[list[int]]], None] = random.shuffle,
) -> list[list[int]]:
    """Part the messages of a batch into calls, to be made one after another.

    :param deliveries: for each message how often it was delivered.
    :param size: most items of a batch.
    :param shuffle: puts calls in random order.
    :returns: the indexes of the messages of each call, those least suspect first.
    """
    by_limit: defaultdict[int, list[int]] = defaultdict(list)
    for index, count in enumerate(deliveries):
        by_limit[most_together(count, size)].append(index)
    calls: list[list[int]] = []
    for limit, indexes in sorted(by_limit.items(), reverse=True):
        alike = [
            indexes[start : start + limit] for start in range(0, len(indexes), limit)
        ]
        shuffle(alike)
        calls += alike
    return calls
