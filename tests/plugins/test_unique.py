"""Unique tasks over Redis, PostgreSQL and NATS: keys in the backends of adapters."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from taskiq.receiver import Receiver
from taskiq.unique import Claim, UniqueStore, store_of

if TYPE_CHECKING:
    from taskiq import AsyncBroker


#: What the fixture `kind` is given: each server whose adapter holds keys.
ALL = pytest.mark.parametrize("kind", ["redis", "postgres", "nats"], indirect=True)
pytestmark = ALL


@pytest.fixture
def stores(brokers: list[AsyncBroker]) -> list[UniqueStore]:
    """The keys as two processes see them."""
    return [store for each in brokers if (store := store_of(each)) is not None]


async def test_the_same_work_runs_once_until_it_has_its_outcome(
    brokers: list[AsyncBroker],
) -> None:
    client, worker = brokers
    runs: list[int] = []
    started, may_end = asyncio.Event(), asyncio.Event()

    async def work(number: int) -> int:
        runs.append(number)
        started.set()
        await may_end.wait()
        return number

    for each in brokers:
        each.register_task(work, "work", unique=True)
    task: Any = client.find_task("work")
    first = await task.kiq(1)
    assert (await task.kiq(1)).task_id == first.task_id
    finish = asyncio.Event()
    receiver = Receiver(worker, max_async_tasks=10, run_startup=False)
    listening = asyncio.create_task(receiver.listen(finish))
    await asyncio.wait_for(started.wait(), 30)
    second, other = await task.kiq_many([1, 2])
    assert second.task_id == first.task_id
    may_end.set()
    assert (await second.wait_result(timeout=30)).return_value == 1
    third = await task.kiq(1)
    assert third.task_id != first.task_id
    for each in (third, other):
        await each.wait_result(timeout=30)
    finish.set()
    await listening
    assert sorted(runs) == [1, 1, 2]
    # The worker has released each: nobody had to look for a result.
    store = store_of(client)
    assert store is not None
    key = task.unique.key("work", [1], {})
    assert await store.claim(Claim(key, ":new", 60)) == ":new"


async def test_of_fifty_senders_one_has_the_key(stores: list[UniqueStore]) -> None:
    claims = [Claim("key", f"token {number}", 60) for number in range(50)]
    holders = await asyncio.gather(
        *(stores[number % 2].claim(claim) for number, claim in enumerate(claims)),
    )
    [holder] = set(holders)
    assert holder in {claim.token for claim in claims}


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_an_id_that_cannot_be_stored_fails_nobody_else(
    kind: str,
    stores: list[UniqueStore],
    text: str,
) -> None:
    claims = [Claim(f"key {token}", token, 60) for token in ("a", text, "b")]
    holders = await stores[0].claim_many(claims)
    assert [holders[0], holders[2]] == ["a", "b"]
    is_refused = kind == "postgres" or text == "\ud800"
    assert isinstance(holders[1], Exception) is is_refused


async def test_many_claims_and_releases_at_once_do_not_stand_in_each_others_way(
    stores: list[UniqueStore],
) -> None:
    keys = [f"key {number}" for number in range(500)]
    orders = (keys, keys[::-1])

    async def take(token: str, store: UniqueStore, order: list[str]) -> list[Any]:
        return list(await store.claim_many([Claim(key, token, 60) for key in order]))

    async def let_go(token: str, store: UniqueStore, order: list[str]) -> None:
        await asyncio.gather(*(store.release(key, token) for key in order))

    for _ in range(5):
        of_both = await asyncio.gather(*map(take, "ab", stores, orders))
        assert of_both[0] == of_both[1][::-1]
        await asyncio.gather(*map(let_go, "ab", stores, orders))
    assert await take("c", stores[0], keys) == ["c"] * len(keys)


async def test_who_holds_a_key_renews_it_and_nobody_else_does(
    stores: list[UniqueStore],
) -> None:
    first, second = stores
    for key in ("renewed", "left"):
        await first.claim(Claim(key, "first", 1.5))
    await asyncio.gather(
        first.renew(Claim("renewed", "first", 60)),
        first.renew(Claim("free", "first", 60)),  # it may have been released
        second.renew(Claim("left", "second", 60)),
    )
    assert await second.claim(Claim("free", "second", 60)) == "second"

    async def take_over() -> None:
        while await second.claim(Claim("left", "second", 60)) != "second":
            pass

    await asyncio.wait_for(take_over(), 30)
    assert await second.claim(Claim("renewed", "second", 60)) == "first"


async def test_who_holds_a_key_no_longer_releases_nobody_elses(
    stores: list[UniqueStore],
) -> None:
    first, second = stores
    # What has ended is forgotten with the first claim: not what comes after it.
    await second.claim(Claim("other", "second", 60))
    await first.claim(Claim("key", "first", 0.001))

    async def take_over() -> None:
        while await second.claim(Claim("key", "second", 60)) != "second":
            pass

    await asyncio.wait_for(take_over(), 30)
    await first.release("key", "first")
    assert await first.claim(Claim("key", "third", 60)) == "second"
    # A client that lost the answer asks once more.
    assert await second.claim(Claim("key", "second", 60)) == "second"
    await second.release("key", "second")
    assert await first.claim(Claim("key", "third", 60)) == "third"
