"""An event loop whose clock moves only when there is nothing left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, TypeVar

import pytest

from taskiq.cli.scheduler import run

_T = TypeVar("_T")

_MAX_ROUNDS_AT_ONCE = 10_000
START = datetime(2024, 5, 7, 12, 0, 0, tzinfo=timezone.utc)


class _IdleSelector(selectors.DefaultSelector):
    """Moves the clock on instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self._rounds_at_once = 0

    def select(
        self,
        timeout: float | None = None,
    ) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("nothing is left that could happen")
        if not events and timeout:
            self.time += timeout
            self._rounds_at_once = 0
        self._rounds_at_once += 1
        if self._rounds_at_once > _MAX_ROUNDS_AT_ONCE:
            raise RuntimeError("the loop spins")
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in order, at once."""

    def __init__(self) -> None:
        self._idle_selector = _IdleSelector()
        super().__init__(self._idle_selector)

    def time(self) -> float:
        return self._idle_selector.time


class World:
    """Runs coroutines in virtual time; the scheduler sees it as the time of day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = VirtualTimeLoop()
        self.start = START
        world = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                assert tz is timezone.utc
                return world.now()

        monkeypatch.setattr(run, "datetime", Clock)

    def now(self) -> datetime:
        """Give the time of day."""
        return self.start + timedelta(seconds=round(self.loop.time(), 6))

    def seconds(self) -> float:
        """Give the virtual seconds that have passed."""
        return round(self.loop.time(), 6)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end, in virtual time."""
        return self.loop.run_until_complete(coroutine)

    def run_for(self, seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run for some virtual seconds, then cancel; an error before that is raised."""

        async def limited() -> None:
            job = asyncio.ensure_future(coroutine)
            await asyncio.wait({job}, timeout=seconds)
            if not job.done():
                job.cancel()
                await asyncio.wait({job})
            if not job.cancelled():
                job.result()

        self.run(limited())
