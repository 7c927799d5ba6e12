"""What the adapters of plugins are made of: waiting, chunks, signs of life.

Against real servers: `pytest tests/plugins`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import TaskiqResult, TaskiqResultTimeoutError
from taskiq.adapters._abandoned import Versions
from taskiq.adapters._bulk import chunks, in_chunks, load_all
from taskiq.adapters._feed import ResultFeed, Waiters, payloads
from taskiq.exceptions import ResultIsReadyError
from tests.support.virtual_time import virtual

# -- Waiting for results ----------------------------------------------------


class Server:
    """Stores results, and tells those who are subscribed; both can fail.

    :ivar looks: when somebody looked for a result, by its id.
    :ivar subscriptions: when somebody subscribed.
    """

    def __init__(self, *, connecting: float = 0.01) -> None:
        self.connecting = connecting
        self.stored: dict[str, str] = {}
        self.looks: list[tuple[float, str]] = []
        self.subscriptions: list[float] = []
        self.failing_looks = 0
        self.away_until = 0.0
        self.feed = ResultFeed(self.follow, self._look)
        self._waiters: Waiters | None = None
        self._cut = asyncio.Event()

    async def follow(self, waiters: Waiters) -> None:
        await asyncio.sleep(self.connecting)
        self.subscriptions.append(now())
        self._waiters = waiters
        waiters.connected()
        await self._cut.wait()
        self._cut.clear()
        self._waiters = None
        raise ConnectionError("cut")

    def cut(self) -> None:
        self._cut.set()

    def save(self, task_id: str, *, tells: bool = True) -> None:
        self.stored[task_id] = f"result of {task_id}"
        if tells:
            self.tell(task_id)

    def tell(self, task_id: str) -> None:
        if self._waiters is not None:
            self._waiters.tell([task_id])

    async def wait(self, task_id: str, timeout: float = -1) -> str:
        return await self.feed.wait(task_id, timeout)

    async def _look(self, task_id: str) -> str | None:
        self.looks.append((now(), task_id))
        if self.failing_looks or now() < self.away_until:
            self.failing_looks = max(0, self.failing_looks - 1)
            raise ConnectionError("no server")
        return self.stored.get(task_id)


def now() -> float:
    return asyncio.get_running_loop().time()


async def waiting(server: Server, count: int) -> list[asyncio.Task[str]]:
    """Let so many wait, each for another result, until they only wait."""
    tasks = [asyncio.create_task(server.wait(f"{number}")) for number in range(count)]
    await asyncio.sleep(0.5)
    return tasks


@virtual
async def test_who_waits_looks_once_when_subscribed_and_once_when_told() -> None:
    server = Server()
    (waiter,) = await waiting(server, 1)
    assert server.looks == [(0.01, "0")]

    server.save("0")
    assert await waiter == "result of 0"
    assert server.looks == [(0.01, "0"), (0.5, "0")]
    await server.feed.close()


@virtual
async def test_a_thousand_who_wait_share_a_subscription_and_are_told_of_their_own() -> (
    None
):
    server = Server()
    waiters = await waiting(server, 1000)
    server.looks.clear()

    for number in reversed(range(1000)):
        server.save(f"{number}")
    results = await asyncio.gather(*waiters)

    assert results == [f"result of {number}" for number in range(1000)]
    assert len(server.subscriptions) == 1
    assert len(server.looks) == 1000
    await server.feed.close()


@virtual
async def test_a_result_stored_before_the_subscription_is_found_at_once() -> None:
    server = Server()
    server.save("0")
    assert await server.wait("0") == "result of 0"
    assert now() == 0.01
    await server.feed.close()


@virtual
async def test_a_result_nobody_tells_of_is_found_within_two_seconds() -> None:
    server = Server()
    (waiter,) = await waiting(server, 1)
    server.save("0", tells=False)
    assert await waiter == "result of 0"
    assert now() == 0.01 + 2
    await server.feed.close()


@virtual
async def test_who_is_told_too_early_looks_again_soon() -> None:
    server = Server()
    (waiter,) = await waiting(server, 1)
    server.tell("0")
    await asyncio.sleep(0.02)
    server.save("0", tells=False)
    assert await waiter == "result of 0"
    assert now() <= 0.55
    await server.feed.close()


@virtual
async def test_without_a_subscription_results_are_looked_for() -> None:
    """Each 0.2 s at last; nothing waits for a server that does not let subscribe."""
    server = Server(connecting=1000)
    (waiter,) = await waiting(server, 1)
    server.save("0")
    assert await waiter == "result of 0"
    assert now() <= 0.7
    await server.feed.close()


@virtual
async def test_when_a_subscription_dies_those_who_wait_get_their_results(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    waiters = await waiting(server, 100)
    server.cut()
    for number in range(50):
        server.save(f"{number}", tells=False)
    early = await asyncio.gather(*waiters[:50])
    assert now() <= 0.8

    await asyncio.sleep(1)
    assert len(server.subscriptions) == 2
    server.looks.clear()
    for number in range(50, 100):
        server.save(f"{number}")
    late = await asyncio.gather(*waiters[50:])

    assert early + late == [f"result of {number}" for number in range(100)]
    assert len(server.looks) == 50
    assert "No longer told of results: ConnectionError('cut')" in caplog.text
    await server.feed.close()


@virtual
async def test_a_server_that_is_away_for_a_moment_ends_no_wait() -> None:
    server = Server()
    waiters = await waiting(server, 3)
    server.cut()
    server.away_until = now() + 0.3
    await asyncio.sleep(0.3)
    for number in range(3):
        server.save(f"{number}")
    assert len(await asyncio.gather(*waiters)) == 3
    assert now() <= 1
    await server.feed.close()


@virtual
async def test_a_wait_ends_at_its_timeout() -> None:
    server = Server()
    with pytest.raises(TaskiqResultTimeoutError):
        await server.wait("0", timeout=3)
    assert now() == pytest.approx(3, abs=0.2)
    await server.feed.close()


@virtual
async def test_three_failed_looks_in_a_row_end_a_wait_and_one_does_not() -> None:
    server = Server()
    server.failing_looks = 1
    server.save("0")
    assert await server.wait("0") == "result of 0"

    server.failing_looks = 3
    with pytest.raises(ResultIsReadyError):
        await server.wait("1")
    await server.feed.close()


def test_a_feed_ends_with_its_event_loop() -> None:
    """Without being closed, and does not keep the loop."""
    server = Server()
    for task_id in "01":
        server.save(task_id)
        assert asyncio.run(server.wait(task_id)) == f"result of {task_id}"
    assert len(server.subscriptions) == 2
    assert len(server.feed._waiters) == 0


@pytest.mark.parametrize("payload", ["", "{}", "7", '["0"', b"\xff"])
def test_what_is_not_understood_tells_nobody(
    payload: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Waiters().tell_payload(payload)
    assert "Not a list of results that are ready" in caplog.text


@given(ids=st.lists(st.text(max_size=30)), max_size=st.integers(2, 60))
def test_each_id_is_told_of_once_in_texts_that_are_not_too_long(
    ids: list[str], max_size: int
) -> None:
    texts = payloads(ids, max_size)
    assert all(len(text.encode()) <= max_size for text in texts)
    assert [each for text in texts for each in json.loads(text)] == [
        each for each in ids if len(json.dumps(each)) + 2 <= max_size
    ]


# -- Chunks ----------------------------------------------------

MEGABYTE = 1 << 20


@given(st.lists(st.integers(0, 6 * MEGABYTE), max_size=50))
def test_chunks_are_bounded_and_what_is_too_large_is_alone(sizes: list[int]) -> None:
    cut = [list(chunk) for chunk in chunks(sizes, lambda size: size)]
    assert [size for chunk in cut for size in chunk] == sizes
    assert all(cut)
    assert all(sum(chunk) <= 4 * MEGABYTE or len(chunk) == 1 for chunk in cut)


def test_a_hundred_thousand_entries_are_done_a_thousand_at_a_time() -> None:
    cut = list(chunks(range(100_000), lambda _: 0))
    assert {len(chunk) for chunk in cut} == {1000}
    assert [entry for chunk in cut for entry in chunk] == list(range(100_000))


async def test_a_chunk_that_fails_fails_its_own_entries() -> None:
    async def operation(chunk: Sequence[int]) -> list[None]:
        if 1500 in chunk:
            raise ConnectionError("cut")
        return [None] * len(chunk)

    outcomes = await in_chunks(operation, range(2500))
    assert outcomes[:1000] == [None] * 1000
    assert all(isinstance(each, ConnectionError) for each in outcomes[1000:2000])
    assert outcomes[2000:] == [None] * 500


@pytest.mark.parametrize("sizes", [[1] * 1000, [4 * MEGABYTE], [2 * MEGABYTE] * 2])
async def test_what_fits_is_one_round_trip_and_nothing_is_none(
    sizes: list[int],
) -> None:
    done: list[Sequence[int]] = []

    async def operation(chunk: Sequence[int]) -> list[None]:
        done.append(chunk)
        return [None] * len(chunk)

    assert await in_chunks(operation, [], lambda size: size) == []
    assert not done
    assert await in_chunks(operation, sizes, lambda size: size) == [None] * len(sizes)
    assert done == [sizes]


@pytest.mark.parametrize("sizes", [[1] * 1001, [4 * MEGABYTE, 1]])
async def test_what_does_not_fit_is_two_round_trips(sizes: list[int]) -> None:
    done: list[int] = []

    async def operation(chunk: Sequence[int]) -> list[None]:
        done.append(len(chunk))
        return [None] * len(chunk)

    outcomes = await in_chunks(operation, sizes, lambda size: size)
    assert outcomes == [None] * len(sizes)
    assert done == [len(sizes) - 1, 1]


async def test_an_entry_that_cannot_be_sent_fails_alone_and_is_not_tried() -> None:
    async def operation(chunk: Sequence[str]) -> list[str]:
        return [entry.upper() for entry in chunk]

    outcomes = await in_chunks(
        operation, ["a", "\ud800", "b"], lambda entry: len(entry.encode())
    )
    assert (outcomes[0], outcomes[2]) == ("A", "B")
    assert isinstance(outcomes[1], UnicodeEncodeError)


def test_results_that_cannot_be_read_are_left_out_unless_there_are_no_others() -> None:
    result: TaskiqResult[Any] = TaskiqResult(
        is_err=False, return_value=1, execution_time=0
    )

    def load(data: bytes) -> TaskiqResult[Any]:
        if data == b"bad":
            raise ValueError("bad")
        return result

    assert load_all(["a", "b", "c"], [b"bad", b"good", None], load) == {"b": result}
    assert load_all(["a"], [None], load) == {}
    with pytest.raises(ValueError, match="bad"):
        load_all(["a", "b"], [b"bad", None], load)


# -- Signs of life ----------------------------------------------------


def test_what_does_not_change_for_long_is_abandoned() -> None:
    versions = Versions(patience=600)
    assert versions.unchanged({1: "a", 2: "a"}, now=0) == []
    assert versions.unchanged({1: "a", 2: "b"}, now=300) == []
    assert versions.unchanged({1: "a", 2: "b", 3: "a"}, now=600) == [1]
    assert versions.unchanged({2: "c", 3: "a"}, now=1200) == [3]


def test_what_was_gone_meanwhile_is_new() -> None:
    versions = Versions(patience=600)
    versions.unchanged({1: "a"}, now=0)
    versions.unchanged({}, now=300)
    assert versions.unchanged({1: "a"}, now=600) == []


@pytest.mark.parametrize("last_change", range(0, 41, 5))
def test_what_nobody_works_on_is_found_soon_after_it_is_abandoned(
    last_change: int,
) -> None:
    """Within 35 seconds where the patience is 30, whenever the looks are."""
    versions = Versions(patience=600)
    for second in range(last_change, 10_000):
        if versions.is_due(second) and versions.unchanged(
            {1: f"{min(second, last_change)}"}, second
        ):
            break
    assert 600 <= second - last_change <= 600 * 34 / 30
    assert versions.interval == 200


# -- Plugins that are not there ----------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "module", "distribution"),
    [
        ("redis", "taskiq_redis", "taskiq-redis"),
        ("nats", "taskiq_nats", "taskiq-nats"),
        ("rabbitmq", "taskiq_aio_pika", "taskiq-aio-pika"),
        ("postgres", "taskiq_pg", r"taskiq-postgres\[asyncpg\]"),
    ],
)
def test_an_adapter_names_the_plugin_to_install(
    adapter: str, module: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"taskiq.adapters.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"pip install '{distribution}'"):
        importlib.import_module(f"taskiq.adapters.{adapter}")
