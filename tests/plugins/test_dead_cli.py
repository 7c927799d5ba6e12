"""`taskiq dead` on real servers, with many letters."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from taskiq import AsyncBroker
from taskiq.cli.dead.cmd import DeadCMD
from taskiq.dead_letters import DeadLetter, DeadLetterStore, store_of
from taskiq.dead_letters.sweep import AT_ONCE, sweep

from .lines import LINES

MANY = 10_000
WIRE = (
    b'{"task_id":"%d", "task_name":"who","labels":%s,"labels_types":null,'
    b'"args":[{"b":1,"a":2}],"kwargs":{}}'
)


@pytest.fixture(params=["redis-list", "rabbitmq", "jetstream-pull"])
def broker(request: pytest.FixtureRequest) -> Iterator[AsyncBroker]:
    line = LINES[request.param]
    if reason := line.unavailable():
        pytest.skip(reason)
    name = f"taskiq-dead-{uuid.uuid4().hex[:12]}"
    module: Any = ModuleType("dead_app")
    module.broker = line.make(name)
    sys.modules["dead_app"] = module
    yield module.broker
    del sys.modules["dead_app"]
    line.server.remove(name)


def store_for(broker: AsyncBroker) -> DeadLetterStore:
    store = store_of(broker)
    assert store is not None
    return store


def call(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    what, *others = args
    status = DeadCMD().exec([what, "dead_app:broker", *others, "--json"])
    seen = capsys.readouterr()
    assert status is None, seen.err
    return json.loads(seen.out)


def put(broker: AsyncBroker, letters: list[DeadLetter]) -> None:
    async def put_all() -> None:
        async with anyio.create_task_group() as group:
            for letter in letters:
                group.start_soon(store_for(broker).put, letter)

    anyio.run(put_all)


def test_ten_thousand_letters_are_listed_in_pages(
    broker: AsyncBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = [
        DeadLetter(b"%d" % each, "error", task_name=f"t{each % 2}", task_id=f"{each}")
        for each in range(MANY)
    ]
    put(broker, letters)
    after, seen = "", []
    for _ in range(4):
        page = call(
            capsys, "list", "--limit=2500", *(["--after", after] if after else [])
        )
        seen += [each["task_id"] for each in page["letters"]]
        after = page["next"]
    assert after is None
    assert sorted(map(int, seen)) == list(range(MANY))
    page = call(capsys, "list", "--task=t1", "--limit=3")
    assert [each["task_name"] for each in page["letters"]] == ["t1"] * 3
    assert page["next"] == page["letters"][2]["id"]
    assert call(capsys, "drop", "--task=t1")["dropped"] == MANY // 2
    assert call(capsys, "list")["letters"][0]["task_name"] == "t0"


def test_what_a_broken_sweep_has_not_done_stays_in_its_order(
    broker: AsyncBroker,
) -> None:
    """The work fails for the last letter of the second group of three."""
    letters = [
        DeadLetter(b"%d" % each, "error", task_name=f"t{each % 2}")
        for each in range(6 * AT_ONCE)
    ]
    put(broker, letters)
    groups: list[list[bytes]] = []

    async def work(group: Sequence[DeadLetter]) -> list[Exception | None]:
        groups.append([letter.data for letter in group])
        assert len(group) == AT_ONCE
        answers: list[Exception | None] = [None] * AT_ONCE
        if len(groups) == 2:
            answers[-1] = ConnectionError("away")
        return answers

    async def scenario() -> tuple[list[bytes], list[bytes]]:
        async def all_left() -> list[bytes]:
            return [letter.data async for letter in store_for(broker).read()]

        before = await all_left()
        with pytest.raises(ConnectionError, match="away"):
            await sweep(store_for(broker), lambda each: each.task_name == "t1", work)
        return before, await all_left()

    before, left = anyio.run(scenario)
    done = {*groups[0], *groups[1][:-1]}
    assert left == [each for each in before if each not in done]


def test_a_sweep_leaves_what_comes_meanwhile(broker: AsyncBroker) -> None:
    """It may have come of the sweep: of a retry that failed again."""
    put(broker, [DeadLetter(b"old", "error") for _ in range(2 * AT_ONCE)])

    async def work(group: Sequence[DeadLetter]) -> list[None]:
        await store_for(broker).put(DeadLetter(b"new", "error"))
        return [None] * len(group)

    async def scenario() -> tuple[int, list[bytes]]:
        count = await sweep(store_for(broker), lambda _: True, work)
        return count, [letter.data async for letter in store_for(broker).read()]

    assert anyio.run(scenario) == (2 * AT_ONCE, [b"new"] * 2)


def test_a_retry_sends_the_bytes_that_were_put_aside(
    broker: AsyncBroker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """But for labels that begin with X-, which are gone."""
    plain = WIRE % (1, b'{"own":"1"}')
    counted = WIRE % (2, b'{"own":"1","X-Taskiq-deliveries":"4"}')
    put(broker, [DeadLetter(data, "error") for data in (plain, counted)])
    assert DeadCMD().exec(["retry", "dead_app:broker"]) == 2
    assert "say --all" in capsys.readouterr().err
    ids = [each["id"] for each in call(capsys, "list")["letters"]]
    assert call(capsys, "show", ids[0])["args"] == [{"b": 1, "a": 2}]

    async def receive() -> list[bytes]:
        broker.is_worker_process = True
        await broker.startup()
        found: list[bytes] = []
        listening = broker.listen()
        async for message in listening:
            raw: Any = message
            found.append(raw if isinstance(raw, bytes) else raw.data)
            if len(found) == 2:
                break
        await listening.aclose()
        await broker.shutdown()
        return found

    assert call(capsys, "retry", "--all")["retried"] == 2
    assert call(capsys, "list")["letters"] == []
    received = sorted(anyio.run(receive))
    assert plain in received
    [other] = [each for each in received if each != plain]
    assert json.loads(other) == json.loads(WIRE % (2, b'{"own":"1"}'))
