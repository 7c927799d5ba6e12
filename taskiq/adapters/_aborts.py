"""Marks of aborted messages: what stores on different servers have in common."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskiq.aborts import Aborts

logger = logging.getLogger("taskiq.adapters")


def as_payload(task_id: str) -> str:
    """Make the text that tells of a mark."""
    return json.dumps([task_id])


def hear_payload(aborts: Aborts, payload: str | bytes) -> None:
    """Note the marks that a text tells of.

    Anyone can publish there: what is not understood is logged.
    """
    try:
        told: Any = json.loads(payload)
        if not isinstance(told, list):
            raise TypeError("it must be a list of ids")  # noqa: TRY301 - as below
        aborts.hear(map(str, told))  # pyright: ignore[reportUnknownArgumentType]
    except (TypeError, ValueError) as exc:
        logger.warning("Not a list of messages that are aborted: %s", exc)
