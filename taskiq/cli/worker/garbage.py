"""How often the garbage collector looks through a worker process."""

from __future__ import annotations

import gc
from typing import Final

#: Objects that have come, less those that are gone, before the youngest are looked
#: through. Messages under way are thousands of objects, nearly all of which go by
#: themselves soon after: with the 700 of Python (2,000 from 3.12 on) a worker that is
#: busy spends a fifth of its time on looking through them.
YOUNG: Final = 10_000

_FROM_START: Final = gc.get_threshold()


def spare_collections() -> None:
    """Let the garbage collector look through what came since, and less often.

    Modules, classes and tasks live as long as the process. Under a stream of messages
    it would look through all of them several times a second. An application that has
    set thresholds of its own keeps them.
    """
    gc.collect()
    gc.freeze()
    if gc.get_threshold() == _FROM_START and _FROM_START[0]:
        gc.set_threshold(max(YOUNG, _FROM_START[0]), *_FROM_START[1:])
