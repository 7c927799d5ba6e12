"""Keys of unique tasks: what stores on different servers have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from taskiq.bulk import GroupCommit
from taskiq.unique import Claim, UniqueStore

if TYPE_CHECKING:
    from collections.abc import Sequence


class GroupedUniqueKeys(UniqueStore):
    """Claims, renews and releases in one round trip what is asked at the same time.

    A group may have the same key several times.
    """

    def __init__(self) -> None:
        self._claims: GroupCommit[Claim, str] = GroupCommit(self.claim_many)
        self._releases: GroupCommit[tuple[str, str], None] = GroupCommit(
            self._release_many,
        )
        self._renewals: GroupCommit[Claim, None] = GroupCommit(self._renew_many)

    async def claim(self, claim: Claim) -> str:
        """Take a key if nobody holds it, with others that are claimed meanwhile."""
        return await self._claims.submit(claim)

    @abstractmethod
    async def claim_many(self, claims: Sequence[Claim]) -> Sequence[str | Exception]:
        """Take keys in one round trip."""

    async def release(self, key: str, token: str) -> None:
        """Let go of a key, with others that are released meanwhile."""
        await self._releases.submit((key, token))

    @abstractmethod
    async def _release_many(
        self,
        held: Sequence[tuple[str, str]],
    ) -> Sequence[Any]:
        """Let go of keys that are held under these tokens, in one round trip.

        :returns: for each one, in order, `None` or why it failed.
        """

    async def renew(self, claim: Claim) -> None:
        """Hold a key on, with others that are renewed meanwhile."""
        await self._renewals.submit(claim)

    @abstractmethod
    async def _renew_many(self, claims: Sequence[Claim]) -> Sequence[Any]:
        """Hold keys on that are held under these tokens, in one round trip.

        :returns: for each one, in order, `None` or why it failed.
        """
