"""A web application whose requests share calls of one batch task.

Each request sends its text as a message of its own. The worker gathers what arrives
within 50 ms, calls the model once for all of it, and each request gets its own result.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator  # noqa: TC003 - FastAPI looks at it
from contextlib import asynccontextmanager
from typing import Any

import taskiq_fastapi
from fastapi import FastAPI, HTTPException, Request
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from taskiq import TaskiqDepends

REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379")
QUEUE = os.environ.get("QUEUE", "fastapi-example")

results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(
    REDIS, prefix_str=QUEUE, result_ex_time=60
)
broker = RedisStreamBroker(
    REDIS, queue_name=f"{QUEUE}-stream", consumer_group_name=f"{QUEUE}-group"
).with_result_backend(results)


class Model:
    """Stands for what is slow to load, and much faster for many texts at once."""

    def score(self, texts: list[str]) -> list[float | Exception]:
        return [
            sum(map(len, text.split())) / len(text.split())
            if text.split()
            else ValueError("a text without words")
            for text in texts
        ]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Load the model in the worker, and connect to the broker in the web server."""
    if broker.is_worker_process:
        app.state.model = Model()
        yield
        return
    await broker.startup()
    yield
    await broker.shutdown()


app = FastAPI(lifespan=lifespan)
# Tasks may depend on the application and its state, as handlers do.
taskiq_fastapi.init(broker, "app:app")


def loaded_model(request: Request = TaskiqDepends()) -> Model:
    model: Model = request.app.state.model
    return model


@broker.task(batch=True, batch_size=32, batch_timeout=0.05)
async def score(
    texts: list[str],
    model: Model = TaskiqDepends(loaded_model),
) -> list[dict[str, float] | Exception]:
    """Score many texts with one call of the model; a text without words fails alone."""
    return [
        value if isinstance(value, Exception) else {"score": value, "of": len(texts)}
        for value in model.score(texts)
    ]


@app.get("/score")
async def get_score(text: str) -> dict[str, float]:
    """Answer with the score of the text, and how many requests shared the call."""
    handle = await score.kiq(text)
    result = await handle.wait_result(check_interval=0.01, timeout=10)
    if result.error is not None:
        raise HTTPException(422, str(result.error))
    answer: dict[str, float] = result.return_value
    return answer
