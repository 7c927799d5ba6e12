"""Where a broker finds what it shares with other processes, such as unique keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Owner(Protocol):
    """A broker, as far as its stores are asked for."""

    @property
    def result_backend(self) -> object:
        """What may bring a store along."""
        ...


def offered(broker: Owner, attribute: str) -> Iterator[object]:
    """Give what a broker has under this name, then what its result backend has.

    :returns: objects of any type, `None` where there is nothing.
    """
    for owner in (broker, broker.result_backend):
        yield getattr(owner, attribute, None)
