"""The example application, as its page says to start it, answers real requests."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.support.commands import RunningCommand
from tests.support.environments import CHECKOUT

from .servers import REDIS
from .stage import show

EXAMPLE = CHECKOUT / "docs" / "examples" / "fastapi_app"


@pytest.fixture
def url() -> Iterator[str]:
    """Where the application listens."""
    if reason := REDIS.unavailable():
        pytest.skip(reason)
    queue = f"taskiq-plugins-{uuid.uuid4().hex}"
    environment = {"REDIS_URL": REDIS.url, "QUEUE": queue}

    def run(*arguments: str) -> RunningCommand:
        running = RunningCommand(["-m", *arguments], EXAMPLE, environment)
        stack.callback(running.clean_up)
        stack.callback(lambda: show(running))
        return running

    with ExitStack() as stack:
        stack.callback(REDIS.remove, queue)
        web = run("uvicorn", "app:app", "--port=0")
        web.wait_for_line("Uvicorn running on")
        worker = run("taskiq", "worker", "app:broker", "--workers=1")
        worker.wait_for_line("Listening started")
        found = re.search(r"running on (http://\S+)", web.output)
        assert found is not None
        yield found[1]
        assert worker.stop() == 0
        assert web.stop() in (0, -15)
        assert "Traceback" not in worker.output + web.output


async def test_each_request_gets_its_own_answer_out_of_shared_calls(url: str) -> None:
    texts = [f"{'x' * size} yy" for size in range(1, 65)]
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answers = await asyncio.gather(
            *(client.get("/score", params={"text": text}) for text in texts)
        )
    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    assert [body["score"] for body in bodies] == [(n + 2) / 2 for n in range(1, 65)]
    assert max(body["of"] for body in bodies) > 1
    assert max(body["of"] for body in bodies) <= 32


async def test_a_bad_request_fails_alone(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        good, bad = await asyncio.gather(
            client.get("/score", params={"text": "four five"}),
            client.get("/score", params={"text": " "}),
        )
    assert (good.status_code, good.json()["score"]) == (200, 4.0)
    assert (bad.status_code, bad.json()) == (422, {"detail": "a text without words"})
