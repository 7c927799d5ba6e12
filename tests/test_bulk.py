"""Many operations as few: fallbacks, bounded concurrency, shared round trips."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.bulk import GroupCommit, cancel_all, is_outdated, run_bounded
from tests.support.virtual_time import run_virtual, virtual

# -- Which bulk methods know nothing of their single one ---------------------------


class Base:
    def one(self) -> None: ...
    def many(self) -> None: ...


class Adapter(Base):
    def one(self) -> None: ...
    def many(self) -> None: ...


class OwnOne(Adapter):
    def one(self) -> None: ...


class OwnMany(OwnOne):
    def many(self) -> None: ...


class Mixin:
    def one(self) -> None: ...


class Mixed(Mixin, Adapter): ...


class Untouched(Adapter):
    def another(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Base, False),
        (Adapter, False),
        (Untouched, False),
        (OwnMany, False),
        (OwnOne, True),
        (Mixed, True),
    ],
)
def test_a_bulk_method_is_outdated_when_a_subclass_replaced_the_single_one(
    cls: type,
    expected: bool,
) -> None:
    assert is_outdated(cls, "many", "one") is expected


# -- Bounded concurrency -----------------------------------------------------------


@virtual
async def test_operations_run_some_at_once_and_give_outcomes_in_order() -> None:
    running = most = 0

    async def operate(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(10 - number)
        running -= 1
        if number % 3 == 0:
            raise ValueError(number)
        return number * 2

    outcomes = await run_bounded(operate, range(10), at_once=4)

    assert most == 4
    assert [each for each in outcomes if isinstance(each, int)] == [2, 4, 8, 10, 14, 16]
    assert [repr(each) for each in outcomes[::3]] == [
        f"ValueError({n})" for n in (0, 3, 6, 9)
    ]
    assert await run_bounded(operate, [], at_once=4) == []


@virtual
async def test_an_operation_that_cancels_itself_fails_alone() -> None:
    async def operate(number: int) -> int:
        if number == 1:
            raise asyncio.CancelledError
        return number

    first, second, third = await run_bounded(operate, range(3), at_once=1)

    assert (first, third) == (0, 2)
    assert isinstance(second, RuntimeError)
    assert isinstance(second.__cause__, asyncio.CancelledError)


@virtual
async def test_cancelling_ends_what_runs_and_starts_nothing_else() -> None:
    started: list[int] = []
    ended: list[int] = []

    async def operate(number: int) -> None:
        started.append(number)
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(number)

    running = asyncio.create_task(run_bounded(operate, range(10), at_once=3))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert started == ended == [0, 1, 2]


@virtual
@pytest.mark.parametrize("is_cancelled_itself", [False, True])
async def test_a_task_that_loses_cancellations_is_cancelled_again(
    is_cancelled_itself: bool,
) -> None:
    """`asyncio.wait_for` of Python 3.11 does lose one now and then."""

    async def lose() -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
        await asyncio.sleep(1000)

    task = asyncio.create_task(lose())
    await asyncio.sleep(0)
    ending = asyncio.create_task(cancel_all([task]))
    await asyncio.sleep(1)
    if is_cancelled_itself:
        ending.cancel()
    await asyncio.wait([ending])

    assert task.cancelled()
    assert ending.cancelled() is is_cancelled_itself


# -- Group commit ------------------------------------------------------------------


class Server:
    """Takes a second for each round trip, and notes what came in it."""

    def __init__(self, max_size: int = 1000, seconds: float = 1.0) -> None:
        self.groups: list[tuple[float, list[Any]]] = []
        self.refused: set[Any] = set()
        self.seconds = seconds
        self.is_busy = False
        self.commit: GroupCommit[Any, Any] = GroupCommit(self.flush, max_size)

    async def flush(self, entries: Sequence[Any]) -> list[Any]:
        assert not self.is_busy
        self.is_busy = True
        self.groups.append((asyncio.get_running_loop().time(), list(entries)))
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.is_busy = False
        return [
            ValueError(entry) if entry in self.refused else f"did {entry}"
            for entry in entries
        ]


@virtual
async def test_what_arrives_while_a_group_is_in_flight_is_the_next_group() -> None:
    server = Server()

    outcomes = await asyncio.gather(*map(server.commit.submit, range(5)))

    assert outcomes == [f"did {n}" for n in range(5)]
    assert server.groups == [(0, [0]), (1, [1, 2, 3, 4])]


@virtual
async def test_a_lone_entry_leaves_at_once_in_the_task_that_submits_it() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def flush(entries: Sequence[int]) -> Sequence[int]:
        tasks.append(asyncio.current_task())
        return entries

    commit = GroupCommit(flush)
    assert [await commit.submit(n) for n in range(3)] == [0, 1, 2]
    assert tasks == [asyncio.current_task()] * 3


@virtual
async def test_what_begins_at_the_same_moment_can_be_one_group() -> None:
    groups: list[Sequence[int]] = []

    async def flush(entries: Sequence[int]) -> Sequence[int]:
        groups.append(entries)
        return entries

    commit = GroupCommit(flush, max_size=4, awaits_turn=True)
    assert await asyncio.gather(*map(commit.submit, range(5))) == list(range(5))
    assert await commit.submit(5) == 5
    assert groups == [[0, 1, 2, 3], [4], [5]]


@virtual
async def test_a_failed_entry_fails_for_itself_only() -> None:
    server = Server()
    server.refused = {0, 2}

    outcomes = await asyncio.gather(
        *map(server.commit.submit, range(4)),
        return_exceptions=True,
    )

    assert outcomes[1::2] == ["did 1", "did 3"]
    assert [repr(each) for each in outcomes[::2]] == ["ValueError(0)", "ValueError(2)"]


@virtual
async def test_a_flush_that_fails_fails_its_group_and_no_other() -> None:
    groups: list[Sequence[str]] = []

    async def flush(entries: Sequence[str]) -> Sequence[str]:
        groups.append(entries)
        await asyncio.sleep(1)
        if "c" in entries:
            raise OSError("connection lost")
        return entries

    commit = GroupCommit(flush, max_size=2)
    outcomes = await asyncio.gather(
        *map(commit.submit, "abcde"),
        return_exceptions=True,
    )

    assert groups == [["a"], ["b", "c"], ["d", "e"]]
    assert [str(each) for each in outcomes] == [
        "a",
        "connection lost",
        "connection lost",
        "d",
        "e",
    ]


@virtual
async def test_a_flush_that_loses_count_is_an_error_that_says_so() -> None:
    async def flush(entries: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(1)
        return [1, 2, 3]

    commit = GroupCommit(flush)
    alone, *together = await asyncio.gather(
        *map(commit.submit, range(3)),
        return_exceptions=True,
    )
    assert "must give 1 outcomes" in str(alone)
    assert all("must give 2 outcomes" in str(each) for each in together)


@virtual
async def test_a_submitter_that_is_cancelled_withdraws_what_has_not_left() -> None:
    server = Server()
    first, second, third = (
        asyncio.create_task(server.commit.submit(name)) for name in "abc"
    )
    await asyncio.sleep(0.5)
    second.cancel()
    assert list(await asyncio.gather(first, third)) == ["did a", "did c"]
    assert server.groups == [(0, ["a"]), (1, ["c"])]
    assert second.cancelled()


@virtual
async def test_a_submitter_that_is_cancelled_too_late_harms_nobody() -> None:
    server = Server()
    alone, second, third = (
        asyncio.create_task(server.commit.submit(name)) for name in "abc"
    )
    await asyncio.sleep(1.5)
    second.cancel()
    assert list(await asyncio.gather(alone, third)) == ["did a", "did c"]
    assert server.groups == [(0, ["a"]), (1, ["b", "c"])]


@virtual
async def test_a_lone_submitter_that_is_cancelled_leaves_the_next_group_going() -> None:
    server = Server()
    alone, second = (asyncio.create_task(server.commit.submit(name)) for name in "ab")
    await asyncio.sleep(0.5)
    alone.cancel()
    assert await second == "did b"
    assert server.groups == [(0, ["a"]), (0.5, ["b"])]
    assert await server.commit.submit("c") == "did c"


@virtual
async def test_whoever_cancels_a_group_leaves_nobody_waiting() -> None:
    server = Server(max_size=2)
    ours = {asyncio.create_task(server.commit.submit(name)) for name in "abcd"}
    await asyncio.sleep(1.5)
    [group] = asyncio.all_tasks() - ours - {asyncio.current_task()}
    group.cancel()
    done, _ = await asyncio.wait(ours)
    assert sum(task.cancelled() for task in done) == 3
    assert await server.commit.submit("e") == "did e"


def test_a_loop_that_is_closed_in_the_middle_leaves_nobody_waiting() -> None:
    server = Server(seconds=3600)

    async def main() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(server.commit.submit(name)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0.001)
        return tasks

    # `asyncio.run` cancels all tasks, that of the group among them, and waits for them.
    assert all(task.cancelled() for task in asyncio.run(main()))


def test_event_loops_share_nothing_and_are_not_kept_alive() -> None:
    met = threading.Barrier(2, timeout=10)
    groups: list[list[str]] = []

    async def flush(entries: Sequence[str]) -> Sequence[str]:
        groups.append(sorted(entries))
        met.wait()  # both event loops are in a flush now
        await asyncio.sleep(0)
        return entries

    commit = GroupCommit(flush)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main(name: str) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        both = await asyncio.gather(
            commit.submit(name + "1"), commit.submit(name + "2")
        )
        assert list(both) == [name + "1", name + "2"]

    threads = [
        threading.Thread(target=lambda name=name: asyncio.run(main(name)))
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(groups) == [["a1"], ["a2"], ["b1"], ["b2"]]
    gc.collect()
    assert [loop() for loop in loops] == [None, None]


submissions = st.lists(
    st.tuples(
        st.integers(0, 20),  # when it is submitted
        st.none() | st.integers(0, 10),  # after how long it is cancelled
        st.booleans(),  # whether it is refused
    ),
    max_size=30,
)


@given(
    submissions=submissions, max_size=st.integers(1, 5), seconds=st.sampled_from([1, 3])
)
def test_every_entry_leaves_once_in_order_and_gets_its_own_outcome(
    submissions: list[tuple[int, int | None, bool]],
    max_size: int,
    seconds: int,
) -> None:
    server = Server(max_size, seconds)
    server.refused = {n for n, (_, _, refused) in enumerate(submissions) if refused}

    arrived: list[int] = []

    async def arrive(number: int) -> Any:
        arrived.append(number)
        return await server.commit.submit(number)

    async def submit(number: int, at: int, patience: int | None) -> Any:
        await asyncio.sleep(at)
        # Between the moments at which flushes begin and end: it is clear who is first.
        limit = None if patience is None else patience + 0.5
        try:
            return await asyncio.wait_for(arrive(number), limit)
        except ValueError as exc:
            return str(exc)
        except asyncio.TimeoutError:
            return None

    async def main() -> list[Any]:
        outcomes = await asyncio.gather(
            *(submit(n, at, limit) for n, (at, limit, _) in enumerate(submissions)),
        )
        await asyncio.sleep(100)  # a group may still be in flight for nobody
        return outcomes

    outcomes = run_virtual(main())

    left = [entry for _, group in server.groups for entry in group]
    assert left == [n for n in arrived if n in left]
    assert all(1 <= len(group) <= max_size for _, group in server.groups)
    for number, outcome in enumerate(outcomes):
        if outcome is None:
            assert submissions[number][1] is not None
        else:
            refused = number in server.refused
            assert outcome == (str(number) if refused else f"did {number}")
    for moment, group in server.groups:
        for entry in group:
            at, patience, _ = submissions[entry]
            # Whoever has given up by then does not leave.
            assert patience is None or moment <= at + patience + 0.5
            # Nobody waits longer than for those who were there before.
            assert moment <= at + seconds * (1 + arrived.index(entry))
