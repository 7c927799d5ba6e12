"""The adapters of Redis in front of a cluster, and behind sentinels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import taskiq_redis
from redis.asyncio import Redis

from taskiq import AckableMessage, AsyncBroker, AsyncResultBackend, TaskiqResult
from taskiq.adapters import redis as adapted_redis
from taskiq.message import BrokerMessage
from taskiq.unique import Claim
from tests.faults.servers import OwnRedis
from tests.support.hub import HANG
from tests.support.ports import free_port

MASTER = "the-master"
#: What a cluster of two has, one half each.
SLOTS = 16384


class Node(OwnRedis):
    """A server of a cluster; the others talk to it on another port."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.bus_port = free_port()

    def _arguments(self, directory: Path, port: int) -> list[str]:
        return [
            *super()._arguments(directory, port),
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)),
        ]


class Sentinel(OwnRedis):
    """A server that knows which server is the master."""

    def __init__(self, directory: Path, master: int) -> None:
        super().__init__(directory)
        self._master = master

    def _arguments(self, directory: Path, port: int) -> list[str]:
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"port {port}\nsentinel monitor {MASTER} 127.0.0.1 {self._master} 1\n"
        )
        return [str(configuration), "--sentinel"]


def port_of(server: OwnRedis) -> int:
    return int(server.url.rpartition(":")[2])


@dataclass(frozen=True)
class Topology:
    """Makes brokers and a result backend, of the plugin or of the adapter."""

    stream: Callable[[Any], AsyncBroker]
    list_: Callable[[Any], AsyncBroker]
    results: Callable[[Any], AsyncResultBackend[Any]]


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Topology]:
    async with AsyncExitStack() as stack:
        nodes = [Node(directory / str(number)) for number in range(2)]
        clients: list[Any] = []
        for number, node in enumerate(nodes):
            await node.start()
            stack.push_async_callback(node.stop)
            client: Any = Redis.from_url(node.url)
            clients.append(await stack.enter_async_context(client))
            begin, end = (SLOTS // 2 * each for each in (number, number + 1))
            await client.execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
        other = ("127.0.0.1", port_of(nodes[1]), nodes[1].bus_port)
        await clients[0].execute_command("CLUSTER MEET", *other)
        for client in clients:
            await wait_until_formed(client)
        url = nodes[0].url
        yield Topology(
            lambda plugin: plugin.RedisStreamClusterBroker(url, queue_name="stream"),
            lambda plugin: plugin.ListQueueClusterBroker(url, queue_name="list"),
            lambda plugin: plugin.RedisAsyncClusterResultBackend(
                url, result_ex_time=600
            ),
        )


async def wait_until_formed(client: Any) -> None:
    for _ in range(int(HANG * 20)):
        state = await client.cluster("INFO")
        if (state["cluster_state"], state["cluster_known_nodes"]) == ("ok", "2"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no cluster")


@asynccontextmanager
async def sentinel(directory: Path) -> AsyncIterator[Topology]:
    async with AsyncExitStack() as stack:
        master = OwnRedis(directory / "master")
        await master.start()
        stack.push_async_callback(master.stop)
        guard = Sentinel(directory / "sentinel", port_of(master))
        await guard.start()
        stack.push_async_callback(guard.stop)
        guards = [("127.0.0.1", port_of(guard))]
        yield Topology(
            lambda plugin: plugin.RedisStreamSentinelBroker(
                guards, MASTER, queue_name="stream"
            ),
            lambda plugin: plugin.ListQueueSentinelBroker(
                guards, MASTER, queue_name="list"
            ),
            lambda plugin: plugin.RedisAsyncSentinelResultBackend(
                guards, MASTER, result_ex_time=600
            ),
        )


@pytest.fixture(params=[cluster, sentinel], ids=["cluster", "sentinel"])
async def topology(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Topology]:
    if not OwnRedis.is_installed():
        pytest.skip("there is no redis-server to start")
    async with request.param(tmp_path) as topology:
        yield topology


@asynccontextmanager
async def started(part: Any) -> AsyncIterator[Any]:
    await part.startup()
    try:
        yield part
    finally:
        await part.shutdown()


def message(number: int, **labels: Any) -> BrokerMessage:
    data = b"%d" % number
    return BrokerMessage(
        task_id=f"{number}", task_name="task", message=data, labels=labels
    )


async def receive(broker: AsyncBroker, count: int) -> list[Any]:
    listener = broker.listen()
    received = [await asyncio.wait_for(anext(listener), HANG) for _ in range(count)]
    await listener.aclose()
    return received


async def test_the_plugin_receives_what_the_adapter_sends_to_many_queues(
    topology: Topology,
) -> None:
    """Their slots are on both servers of the cluster."""
    queues = [f"queue-{number}" for number in range(20)]
    messages = [message(n, queue_name=queues[n % 20]) for n in range(100)]
    async with started(topology.list_(adapted_redis)) as adapter:
        assert await adapter.kick_many(messages) == [None] * 100
        for each in messages[:20]:
            await adapter.kick(each)
    for number, queue in enumerate(queues):
        async with started(topology.list_(taskiq_redis)) as plugin:
            plugin.queue_name = queue
            received = await receive(plugin, 6)
        expected = [number, *range(number, 100, 20)]
        assert sorted(map(int, received)) == sorted(expected)


async def test_a_queue_of_another_type_fails_its_own_messages(
    topology: Topology,
) -> None:
    async with started(topology.list_(adapted_redis)) as lists:
        await lists.kick(message(0, queue_name="wrong"))
    async with started(topology.stream(adapted_redis)) as streams:
        outcomes = await streams.kick_many(
            [message(n, queue_name="wrong" if n % 3 else "right") for n in range(30)]
        )
    assert all("WRONGTYPE" in str(outcomes[n]) for n in range(30) if n % 3)
    assert [outcomes[n] for n in range(0, 30, 3)] == [None] * 10


async def test_what_a_worker_held_is_taken_over_and_acknowledged_together(
    topology: Topology,
) -> None:
    async with (
        started(topology.stream(taskiq_redis)) as plugin,
        started(topology.stream(adapted_redis)) as adapter,
    ):
        await adapter.kick_many([message(number) for number in range(10)])
        held: list[AckableMessage] = await receive(plugin, 10)
        adapter.idle_timeout = 100
        received: list[AckableMessage] = await receive(adapter, 10)
        assert {each.data for each in received} == {each.data for each in held}

        group = received[0].ack_group
        assert group is not None
        assert list(await group.ack(received[:8])) == [None] * 8
        for each in received[8:]:
            await cast("Any", each.ack)()
        async with adapter._redis() as redis:
            pending = await redis.xpending("stream", adapter.consumer_group_name)
        assert pending["pending"] == 0


async def test_a_backlog_is_read_in_order(topology: Topology) -> None:
    async with started(topology.stream(adapted_redis)) as adapter:
        adapter.count = 4
        await adapter.kick_many([message(number) for number in range(30)])
        received = await receive(adapter, 30)
        assert [int(each.data) for each in received] == list(range(30))


async def test_results_go_both_ways_and_arrive(topology: Topology) -> None:
    results: dict[str, TaskiqResult[Any]] = {
        f"id-{number}": TaskiqResult(
            is_err=False, return_value=number, execution_time=0.5
        )
        for number in range(200)
    }
    async with (
        started(topology.results(taskiq_redis)) as plugin,
        started(topology.results(adapted_redis)) as adapter,
    ):
        late = asyncio.create_task(adapter.wait_for_result("id-7", HANG))
        await asyncio.sleep(0.3)
        assert await adapter.set_results(results) == {}
        assert await adapter.get_results(["none", *results]) == results
        assert await plugin.get_result("id-42") == results["id-42"]
        assert await asyncio.wait_for(late, 1) == results["id-7"]


async def test_keys_of_unique_tasks_are_held_as_on_one_server(
    topology: Topology,
) -> None:
    """On a cluster each where its own name says; a pipeline is for all of them."""
    async with started(topology.results(adapted_redis)) as results:
        store = results.unique_store
        claims = [Claim(f"task:{number}", "first", 60) for number in range(50)]
        assert list(await store.claim_many(claims)) == ["first"] * 50
        others = [Claim(claim.key, "second", 60) for claim in claims]
        assert list(await store.claim_many(others)) == ["first"] * 50
        await asyncio.gather(*map(store.renew, claims))
        await asyncio.gather(*(store.release(key, "second") for key, _, _ in claims))
        await asyncio.gather(
            *(store.release(key, "first") for key, _, _ in claims[::2])
        )
        holders = list(await store.claim_many(others))
        assert holders == ["second", "first"] * 25
