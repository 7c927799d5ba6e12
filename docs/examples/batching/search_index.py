"""Bulk indexing as in Elasticsearch: one `_bulk` request per batch.

Run it with ``python docs/examples/batching/search_index.py``. A bulk answer has a
status per document. A document that the index refuses fails its own message; when the
whole request fails with 503, every message of it is sent again by the retry middleware.
Documents of different indexes go into different requests.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from pydantic import BaseModel

from taskiq import (
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqEvents,
    TaskiqState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DOCUMENTS = 1000
OUTAGE = 503

broker = InMemoryBroker().with_middlewares(
    SimpleRetryMiddleware(default_retry_count=5),
)


class Document(BaseModel):
    """What is indexed, and where."""

    index: str
    id: int
    fields: dict[str, Any]


class RefusedError(Exception):
    """The index does not take the document; sending it again does not help."""


class UnavailableError(Exception):
    """The server takes nothing now; sending it again may help."""


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
def open_session(state: TaskiqState) -> None:
    """One HTTP session for all calls."""
    state.session = aiohttp.ClientSession()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    """Close its connections."""
    await state.session.close()


def index_of(document: Document) -> str:
    """Name the index of a document: a request is for one."""
    return document.index


@broker.task(
    batch=True,
    batch_size=200,
    batch_timeout=0.2,
    batch_key=index_of,
    retry_on_error=True,
    types_of_exceptions=(UnavailableError,),
)
async def index(
    documents: list[Document],
    context: Context = TaskiqDepends(),
) -> list[int | Exception]:
    """Index documents with one request; return the version of each."""
    lines: list[dict[str, Any]] = []
    for document in documents:
        lines += [{"index": {"_id": str(document.id)}}, document.fields]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    url = f"{context.state.server}/{documents[0].index}/_bulk"
    headers = {"Content-Type": "application/x-ndjson"}
    async with context.state.session.post(url, data=body, headers=headers) as response:
        if response.status == OUTAGE:
            raise UnavailableError
        response.raise_for_status()
        answer = await response.json()
    entries = [item["index"] for item in answer["items"]]
    return [
        RefusedError(entry["error"]["reason"])
        if "error" in entry
        else entry["_version"]
        for entry in entries
    ]


async def main() -> None:
    """Send documents of two indexes, one of them bad; print what became of them."""
    async with stub_server() as (url, stored, requests):
        broker.state.server = url
        await broker.startup()
        handles = [
            await index.kiq(
                Document(index=("books", "films")[n % 2], id=n, fields={"year": n}),
            )
            for n in range(DOCUMENTS)
        ]
        bad = await index.kiq(
            Document(index="books", id=-1, fields={"year": "unknown"}),
        )
        for handle in handles:
            result = await handle.wait_result(timeout=60)
            if result.raise_for_error().return_value != 1:
                raise RuntimeError("a document was indexed twice")
        refused = await bad.wait_result(timeout=60)
        await broker.shutdown()

    print(f"{DOCUMENTS + 1:,} messages, {len(stored):,} documents")
    print(f"requests: {requests.count(200)}, and {requests.count(OUTAGE)} in an outage")
    print(f"failed: {refused.error}")


@asynccontextmanager
async def stub_server() -> AsyncGenerator[
    tuple[str, dict[tuple[str, str], int], list[int]],
    None,
]:
    """Serve `_bulk` on a free port; its second request meets an outage.

    Gives the URL, the versions of what is stored, and the status of each answer.
    """
    stored: dict[tuple[str, str], int] = {}
    answered: list[int] = []

    async def bulk(request: web.Request) -> web.Response:
        if len(answered) == 1:
            answered.append(OUTAGE)
            return web.Response(status=OUTAGE)
        name = request.match_info["index"]
        lines = [json.loads(line) for line in (await request.text()).splitlines()]
        items = [
            {"index": store(name, action["index"]["_id"], fields)}
            for action, fields in zip(lines[::2], lines[1::2], strict=True)
        ]
        answered.append(200)
        errors = any("error" in item["index"] for item in items)
        return web.json_response({"errors": errors, "items": items})

    def store(name: str, key: str, fields: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(fields["year"], int):
            reason = f"failed to parse field [year] of document {key}"
            return {"_id": key, "status": 400, "error": {"reason": reason}}
        stored[name, key] = version = stored.get((name, key), 0) + 1
        return {"_id": key, "status": 201, "_version": version}

    app = web.Application()
    app.router.add_post("/{index}/_bulk", bulk)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", stored, answered
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
