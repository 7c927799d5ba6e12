"""What the command line asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.environments import Environments


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure, and where.

    :ivar rounds: runs of each case.
    :ivar scale: what every count of messages is multiplied by.
    :ivar only: workloads of the `core` table; empty for all.
    """

    rounds: int
    scale: float
    environments: Environments
    only: tuple[str, ...] = ()

    def scaled(self, count: float) -> int:
        """A number of messages, as it was asked for; a whole number of hundreds."""
        return max(int(count * self.scale) // 100, 1) * 100
