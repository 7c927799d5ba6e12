"""Processes with an adapter and processes with its plugin share queues and results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from taskiq import gather_results
from tests.support.hub import HANG, Hub

from .lines import LINES, Line
from .stage import Stage, values_of

ADAPTED = [line for line in LINES.values() if line.adapts is not None]


@pytest.fixture(
    params=[
        sides
        for line in ADAPTED
        if line.adapts is not None
        for sides in ((line, LINES[line.adapts]), (LINES[line.adapts], line))
    ],
    ids=lambda sides: f"{sides[0]}-to-{sides[1]}",
)
def stages(request: pytest.FixtureRequest, hub: Hub) -> Iterator[tuple[Stage, Stage]]:
    """The stage of the clients and that of the worker, under one name."""
    ours: Line
    theirs: Line
    ours, theirs = request.param
    if reason := theirs.unavailable():
        pytest.skip(reason)
    with Stage(theirs, hub).opened() as of_worker, of_worker.worker():
        yield Stage(ours, hub, of_worker.name), of_worker


async def test_one_side_has_the_adapter_and_the_other_the_plugin(
    stages: tuple[Stage, Stage],
) -> None:
    of_client, _ = stages
    async with of_client.client() as client:
        plain = client.kicker("add")
        sent = await plain.kiq_many(plain.call(number, 1) for number in range(200))
        single = [await client.send("add", number, 1) for number in range(200, 210)]
        batch = client.kicker("measure")
        words = await batch.kiq_many(
            batch.call("x" * size, "cm") for size in range(1, 41)
        )
        got = values_of(await gather_results([*sent, *single, *words], timeout=HANG))

        assert got[:210] == list(range(1, 211))
        assert got[210:] == [f"{size} cm" for size in range(1, 41)]
        late = await client.send("add", 40, 2)
        assert (await late.wait_result(timeout=HANG)).return_value == 42
