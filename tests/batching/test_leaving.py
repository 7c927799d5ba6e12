"""Leaving: when a batch stops waiting for company, and who goes first."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from taskiq.batch import FlushReason
from tests.support.virtual_time import run_virtual, virtual
from tests.support.worker import BatchWorker, InProcessWorker

FLUSH = "flush"

#: What happens: letters and digits are sent one by one, numbers are seconds that pass.
Steps = list["str | float"]

#: What left: the items, why, and how long the first of them had waited.
Left = tuple[str, FlushReason, float]

_WEIGHED = {"batch_weight": int, "batch_max_weight": 10}
_TWO_GROUPS = {"batch_key": str.isupper}


def leaving(
    rule: str,
    limits: dict[str, Any],
    steps: Steps,
    *left: Left,
) -> Any:
    return pytest.param(limits, steps, list(left), id=rule.replace(" ", "-"))


@pytest.mark.parametrize(
    ("limits", "steps", "left"),
    [
        leaving(
            "a batch that is not full waits",
            {"batch_size": 3},
            ["ab", 9.999],
        ),
        leaving(
            "a full batch leaves at once",
            {"batch_size": 3},
            ["ab", 2, "c"],
            ("abc", FlushReason.SIZE, 2),
        ),
        leaving(
            "a batch of one never waits",
            {"batch_size": 1},
            ["ab"],
            ("a", FlushReason.SIZE, 0),
            ("b", FlushReason.SIZE, 0),
        ),
        leaving(
            "what is beyond the size is the next batch",
            {"batch_size": 3},
            ["abcde", 10],
            ("abc", FlushReason.SIZE, 0),
            ("de", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "a batch leaves when its weight is reached",
            _WEIGHED,
            ["55"],
            ("55", FlushReason.WEIGHT, 0),
        ),
        leaving(
            "an item that would overflow starts the next batch",
            _WEIGHED,
            ["443", 10],
            ("44", FlushReason.WEIGHT, 0),
            ("3", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "an item heavier than the limit runs alone",
            {**_WEIGHED, "batch_max_weight": 8},
            ["191", 10],
            ("1", FlushReason.WEIGHT, 0),
            ("9", FlushReason.WEIGHT, 0),
            ("1", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "the first item waits no longer than the timeout",
            {},
            ["a", 9.999, "b", 0.001],
            ("ab", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "and not less",
            {},
            ["a", 9.999],
        ),
        leaving(
            "a later item never postpones the timeout",
            {"batch_idle_timeout": 4},
            ["a", 3, "b", 3, "c", 3, "d", 1],
            ("abcd", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "with a timeout of 0 what is there is the batch",
            {"batch_timeout": 0},
            ["ab"],
            ("ab", FlushReason.TIMEOUT, 0),
        ),
        leaving(
            "a batch leaves when nobody joined for the idle timeout",
            {"batch_idle_timeout": 4},
            ["a", 3, "b", 4],
            ("ab", FlushReason.IDLE, 7),
        ),
        leaving(
            "and not before",
            {"batch_idle_timeout": 4},
            ["a", 3, "b", 3.999],
        ),
        leaving(
            "the idle timeout counts from the first item too",
            {"batch_idle_timeout": 4},
            ["a", 4],
            ("a", FlushReason.IDLE, 4),
        ),
        leaving(
            "an idle timeout equal to the timeout changes nothing",
            {"batch_idle_timeout": 10},
            ["a", 10],
            ("a", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "an idle timeout longer than the timeout changes nothing",
            {"batch_idle_timeout": 99},
            ["a", 10],
            ("a", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "a flush takes every open batch and no later one",
            _TWO_GROUPS,
            ["aB", FLUSH, "c"],
            ("a", FlushReason.MANUAL, 0),
            ("B", FlushReason.MANUAL, 0),
        ),
        leaving(
            "each group is a batch of its own",
            {**_TWO_GROUPS, "batch_size": 2},
            ["aBcD"],
            ("ac", FlushReason.SIZE, 0),
            ("BD", FlushReason.SIZE, 0),
        ),
        leaving(
            "a full batch takes its alarm with it",
            {"batch_size": 2},
            ["a", 9, "bc", 9.999],
            ("ab", FlushReason.SIZE, 9),
        ),
        leaving(
            "the next batch has its whole wait",
            {"batch_size": 2},
            ["a", 9, "bc", 10],
            ("ab", FlushReason.SIZE, 9),
            ("c", FlushReason.TIMEOUT, 10),
        ),
        leaving(
            "at the bound the oldest group leaves",
            {**_TWO_GROUPS, "batch_size": 3, "batch_max_buffered": 3},
            ["a", 1, "BC"],
            ("a", FlushReason.PRESSURE, 1),
        ),
    ],
)
@virtual
async def test_a_batch_leaves_for_a_reason_and_at_its_moment(
    limits: dict[str, Any],
    steps: Steps,
    left: list[Left],
) -> None:
    worker = InProcessWorker(**{"batch_timeout": 10, **limits})
    for step in steps:
        if step == FLUSH:
            await worker.broker.wait_all()
        elif isinstance(step, str):
            await worker.send(*step)
            await worker.broker.wait_running()
        else:
            await worker.advance(step)
        # One alarm for each batch that is open, and none outlives its batch.
        assert worker.clock.armed == worker.open_groups
    assert [
        (
            "".join(message.args[0] for message in batch.messages),
            batch.flush_reason,
            round(batch.waited, 6),
        )
        for batch in worker.batches
    ] == left
    await worker.broker.wait_all()
    assert worker.clock.armed == worker.open_groups == 0


# -- Many keys -------------------------------------------------------------------------


def test_ten_thousand_keys_seen_once_leave_nothing_behind() -> None:
    worker = BatchWorker(
        batch_key=lambda item, _: item,
        batch_timeout=1,
        batch_max_buffered=500,
        max_prefetch=100,
    )

    async def main() -> None:
        await worker.send(*range(10_000))
        held: list[int] = []
        receiver = worker.receiver

        async def watch() -> None:
            while len(worker.broker.acked) < 10_000:
                held.append(receiver.batch_statistics().open_groups)
                await asyncio.sleep(0.1)

        watching = asyncio.ensure_future(watch())
        listening = worker.listen()
        await watching
        assert receiver.batch_statistics().is_idle
        assert max(held) <= 500
        worker.finish.set()
        await listening

    logging.disable(logging.INFO)
    try:
        run_virtual(main())
    finally:
        logging.disable(logging.NOTSET)
    assert len(worker.calls) == 10_000
    assert len(set(worker.broker.acked)) == 10_000


@pytest.mark.parametrize("is_bounded_by", ["batch_concurrency", "max_async_tasks"])
@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(1.0, 0.5), (0.5, 0.5), (0.1, 0.5), (0.0, 2.0)],
)
def test_a_key_with_99_percent_of_the_traffic_delays_the_others_by_one_running_batch(
    timeout: float,
    seconds: float,
    is_bounded_by: str,
) -> None:
    sent_at: dict[str, float] = {}
    called_at: dict[str, float] = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def body(items: list[str]) -> None:
            for item in items:
                called_at[item] = loop.time()
            await asyncio.sleep(seconds)

        is_by_task = is_bounded_by == "batch_concurrency"
        worker = BatchWorker(
            body,
            batch_key=lambda item, _: item.split()[0],
            batch_size=10,
            batch_timeout=timeout,
            batch_concurrency=1 if is_by_task else None,
            batch_max_buffered=5000,
            max_async_tasks=4 if is_by_task else 1,
        )
        listening = worker.listen()
        for tick in range(20):
            # 99 busy messages a tick are more than one call at a time can do; and each
            # tick comes at another moment of a call than the one before.
            sent = [f"busy {tick} {n}" for n in range(99)] + [f"quiet{tick} {tick}"]
            for item in sent:
                sent_at[item] = loop.time()
            await worker.send(*sent)
            await asyncio.sleep(2.6 * seconds)
        worker.finish.set()
        await listening
        assert set(called_at) == set(sent_at)

    run_virtual(main())
    waits = [
        called_at[item] - sent
        for item, sent in sent_at.items()
        if item.startswith("quiet")
    ]
    assert len(waits) == 20
    assert max(waits) <= timeout + seconds + 1e-6


@pytest.mark.parametrize("label", [2, 2.5, "2"])
def test_a_message_says_its_priority_with_a_label(label: object) -> None:
    worker = BatchWorker(batch_size=1, batch_priority=0.5)

    async def main() -> None:
        await worker.send("a")
        await worker.send("b", priority=-1)
        await worker.send("c", priority=label)
        await worker.run()

    run_virtual(main())
    assert worker.calls == [["c"], ["a"], ["b"]]


@pytest.mark.parametrize("label", ["urgent", "nan", "inf", None, [9]])
def test_a_label_that_is_no_priority_keeps_no_message_from_its_own(
    label: object,
) -> None:
    """Others may read it: it means what it means to them."""
    worker = BatchWorker(batch_size=1, batch_priority=0.5)

    async def main() -> None:
        await worker.send("a", priority=0.4)
        await worker.send("b", priority=label)
        await worker.run()

    run_virtual(main())
    assert worker.calls == [["b"], ["a"]]
