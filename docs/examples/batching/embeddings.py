"""Inference with a NumPy model: texts become vectors, a matrix product at a time.

Run it with ``python docs/examples/batching/embeddings.py``. The function is not async:
it runs in a thread of the worker. Texts are long and short, so a batch is bounded by
its tokens, too: the memory of a call is that of its padded matrix.
"""

from __future__ import annotations

import asyncio
import zlib

import numpy as np
import numpy.typing as npt

from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqEvents, TaskiqState

TEXTS = 500
MOST_TOKENS = 512
VOCABULARY, WIDTH, DIMENSIONS = 5000, 64, 8

Vector = list[float]


class Model:
    """Embeds tokens, takes their mean, and projects it: a small sentence encoder."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.tokens = random.normal(size=(VOCABULARY + 1, WIDTH))
        self.tokens[0] = 0  # padding
        self.projection = random.normal(size=(WIDTH, DIMENSIONS))

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float64]:
        """Return one vector of length 1 per text."""
        ids = [token_ids(text) for text in texts]
        padded = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
        for row, numbers in zip(padded, ids, strict=True):
            row[: len(numbers)] = numbers
        lengths = (padded > 0).sum(axis=1, keepdims=True)
        means = self.tokens[padded].sum(axis=1) / np.maximum(lengths, 1)
        vectors: npt.NDArray[np.float64] = np.tanh(means @ self.projection)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def token_ids(text: str) -> list[int]:
    """Number the words of a text, from 1."""
    return [1 + zlib.crc32(word.encode()) % VOCABULARY for word in text.split()]


def count_tokens(text: str) -> int:
    """What a text adds to its call."""
    return len(text.split())


broker = InMemoryBroker()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
def load_model(state: TaskiqState) -> None:
    """Load the weights once per worker process."""
    state.model = Model()
    state.calls = []


@broker.task(
    batch=True,
    batch_size=64,
    batch_timeout=0.05,
    batch_weight=count_tokens,
    batch_max_weight=MOST_TOKENS,
    batch_concurrency=1,  # the model uses all cores by itself
)
def embed(
    texts: list[str],
    context: Context = TaskiqDepends(),
) -> list[Vector]:
    """Embed many texts; each message gets the vector of its own text."""
    context.state.calls.append(sum(map(count_tokens, texts)))
    vectors: list[Vector] = context.state.model(texts).tolist()
    return vectors


async def main() -> None:
    """Embed texts by messages, and compare with embedding them one by one."""
    await broker.startup()
    texts = [" ".join(f"word{n * k}" for k in range(1 + n % 30)) for n in range(TEXTS)]
    handles = [await embed.kiq(text) for text in texts]
    results = [await handle.wait_result(timeout=60) for handle in handles]
    vectors = [result.raise_for_error().return_value for result in results]
    model, calls = broker.state.model, broker.state.calls
    await broker.shutdown()

    alone = [model([text])[0] for text in texts]
    print(f"{TEXTS} texts, calls: {len(calls)}")
    print(f"most tokens in a call: {max(calls)}, at most {MOST_TOKENS}")
    print(f"same vectors as one by one: {np.allclose(vectors, alone)}")


if __name__ == "__main__":
    asyncio.run(main())
