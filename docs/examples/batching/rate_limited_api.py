"""A rate-limited HTTP API: many lookups, few requests.

Run it with ``python docs/examples/batching/rate_limited_api.py``. The API (a stub in
this file) takes up to 50 addresses in a request and 5 requests a second; to one more it
answers 429 and says when to come back. 300 addresses one by one would take a minute.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ADDRESSES = 300
MOST_PER_REQUEST = 50
REQUESTS_PER_SECOND = 5

broker = InMemoryBroker()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
def open_session(state: TaskiqState) -> None:
    """One HTTP session for all calls."""
    state.session = aiohttp.ClientSession()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    """Close its connections."""
    await state.session.close()


@broker.task(
    batch=True,
    batch_size=MOST_PER_REQUEST,
    batch_timeout=0.5,
    batch_concurrency=1,  # requests one after the other, per worker process
)
async def locate(
    addresses: list[str],
    context: Context = TaskiqDepends(),
) -> list[dict[str, Any] | Exception]:
    """Look up many addresses; an unknown one fails by itself."""
    url = f"{context.state.api}/locate"
    while True:
        async with context.state.session.post(url, json=addresses) as response:
            if response.status == web.HTTPTooManyRequests.status_code:
                await asyncio.sleep(float(response.headers["Retry-After"]))
                continue
            response.raise_for_status()
            answers = await response.json()
        return [
            LookupError(answer["error"]) if "error" in answer else answer
            for answer in answers
        ]


async def main() -> None:
    """Send one message per address; print how many requests that took."""
    async with stub_api() as (url, requests):
        broker.state.api = url
        await broker.startup()
        names = [f"{n} Main Street" for n in range(ADDRESSES)] + ["Nowhere"]
        handles = [await locate.kiq(name) for name in names]
        results = [await handle.wait_result(timeout=60) for handle in handles]
        await broker.shutdown()

    for n, result in enumerate(results[:-1]):
        if result.raise_for_error().return_value["lat"] != n:
            raise RuntimeError("a message got the place of another one")
    print(f"{len(names)} addresses, {requests.count(200)} requests")
    print(f"failed: {sum(result.is_err for result in results)}: {results[-1].error!r}")


@asynccontextmanager
async def stub_api() -> AsyncGenerator[tuple[str, list[int]], None]:
    """Serve the API on a free port; give its URL and the status of each answer."""
    answered: list[int] = []
    recent: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        now = time.monotonic()
        recent[:] = [moment for moment in recent if moment > now - 1]
        if len(recent) >= REQUESTS_PER_SECOND:
            answered.append(429)
            wait = recent[0] + 1 - now
            return web.Response(status=429, headers={"Retry-After": f"{wait:.3f}"})
        recent.append(now)
        names = await request.json()
        if len(names) > MOST_PER_REQUEST:
            answered.append(400)
            return web.Response(status=400, text="too many addresses")
        answered.append(200)
        return web.json_response([place_of(name) for name in names])

    app = web.Application()
    app.router.add_post("/locate", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", answered
    finally:
        await runner.cleanup()


def place_of(name: str) -> dict[str, Any]:
    """What the stub knows about an address."""
    number = name.partition(" ")[0]
    if not number.isdigit():
        return {"error": f"unknown address: {name}"}
    return {"lat": int(number), "lon": 0}


if __name__ == "__main__":
    asyncio.run(main())
