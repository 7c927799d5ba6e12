"""Dead letters: messages that are put aside, with their bytes as they were."""

from taskiq.dead_letters.letter import DeadLetter
from taskiq.dead_letters.store import (
    DeadLetterStore,
    InMemoryDeadLetters,
    store_of,
)

__all__ = ["DeadLetter", "DeadLetterStore", "InMemoryDeadLetters", "store_of"]
