"""A store of rates for workers of one process, which can be slow and can be away."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from taskiq.rates import LATENESS, RateStore, Request, Turns

if TYPE_CHECKING:
    from taskiq import AsyncBroker


class Turnstile(RateStore):
    """Counts by the time of the event loop.

    :param seconds: how long an answer takes.
    :ivar is_away: whether it fails.
    :ivar hangs: whether it never answers.
    :ivar requests: what it was asked, in order.
    :ivar next_at: the next turn of each task.
    """

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.is_away = self.hangs = False
        self.requests: list[Request] = []
        self.next_at: dict[str, float] = {}

    async def reserve(self, request: Request) -> Turns:
        self.requests.append(request)
        await self._answer()
        name, interval, count, started = request
        now = asyncio.get_running_loop().time()
        first = self.next_at.get(name, -math.inf)
        if started is not None:
            first = max(first, now - started + interval)
        if now - first > LATENESS:
            first = now
        self.next_at[name] = first + count * interval
        return Turns(first - now, str(self.next_at[name]))

    async def give_back(self, request: Request, mark: str) -> None:
        await self._answer()
        if str(self.next_at[request.task_name]) == mark:
            self.next_at[request.task_name] -= request.turns * request.interval

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.seconds)
        if self.is_away:
            raise ConnectionError("nobody is there")


def with_store(*brokers: AsyncBroker, store: RateStore | None = None) -> Turnstile:
    """Give brokers one store."""
    shared = Turnstile() if store is None else store
    for broker in brokers:
        broker.with_rate_store(shared)
    assert isinstance(shared, Turnstile)
    return shared
