"""Releasing the keys of unique tasks, by a sender or with the outcome of a message."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import anyio

from taskiq.bulk import run_bounded
from taskiq.outage import brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.unique import UniqueStore

logger = logging.getLogger("taskiq.unique")

#: Seconds that releasing keys may take: the capacity of its message is held meanwhile.
RELEASE_TIMEOUT: Final = 30.0

_RELEASES_AT_ONCE: Final = 1000


async def release(store: UniqueStore, held: Sequence[tuple[str, str]]) -> None:
    """Release keys; if that fails it is logged, and they are held until their end.

    :param held: the keys, each with the token it is held under.
    """

    async def release_one(one: tuple[str, str]) -> None:
        await store.release(*one)

    failed: list[Any]
    try:
        with anyio.fail_after(RELEASE_TIMEOUT):
            if len(held) == 1:
                await release_one(held[0])
                return
            failed = await run_bounded(release_one, held, _RELEASES_AT_ONCE)
    except Exception as exc:  # noqa: BLE001 - harms nobody but the next of these keys
        failed = [exc] * len(held)
    errors = {key: exc for (key, _), exc in zip(held, failed, strict=True) if exc}
    if errors:
        key, error = next(iter(errors.items()))
        logger.warning(
            "Cannot release the unique key %s%s: %s. Who has it holds it until its "
            "unique_ttl is over.",
            key,
            f" and {len(errors) - 1} more" if len(errors) > 1 else "",
            brief(error),
        )
