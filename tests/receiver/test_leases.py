"""What is held has its lease renewed, and nothing else has."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from taskiq import AckableMessage, BrokerMessage
from taskiq.receiver import Receiver, leases
from taskiq.receiver.delivery import Delivery
from taskiq.receiver.leases import Leases, by_group, seconds_between
from taskiq.receiver.states import MessageState
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import run_virtual, virtual

LEASE = 30.0


class LeasingBroker(QueueBroker):
    """Delivers again what is neither acknowledged nor renewed within `LEASE`.

    :ivar renewed: the ids of messages whose leases were renewed, call by call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.renewed: list[list[str]] = []
        self.alarms: dict[str, asyncio.TimerHandle] = {}

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        made = super().ackable(message)
        self.start(message)

        async def ack() -> None:
            self.alarms.pop(message.task_id).cancel()
            await maybe(made.ack())

        return AckableMessage(
            data=made.data,
            ack=ack,
            lease=LEASE,
            extend=partial(self.extend_one, message),
        )

    def start(self, message: BrokerMessage) -> None:
        if message.task_id in self.alarms:
            self.alarms[message.task_id].cancel()
        loop = asyncio.get_running_loop()
        self.alarms[message.task_id] = loop.call_later(
            LEASE, self.queue.put_nowait, message
        )

    async def extend_one(self, message: BrokerMessage) -> None:
        self.renewed.append([message.task_id])
        self.start(message)


async def maybe(awaitable: Any) -> None:
    await awaitable


class Grouped(AckableMessage):
    sent: BrokerMessage


class BulkBroker(LeasingBroker):
    """Renews the leases of many messages in one call."""

    fails = False

    def ackable(self, message: BrokerMessage) -> AckableMessage:
        made = super().ackable(message)
        return Grouped(
            data=made.data, ack=made.ack, lease=LEASE, ack_group=self, sent=message
        )

    async def ack(self, messages: Sequence[AckableMessage]) -> list[None]:
        for each in messages:
            await maybe(each.ack())
        return [None] * len(messages)

    async def extend(self, messages: Sequence[AckableMessage]) -> list[None]:
        if self.fails:
            raise ConnectionError("no server")
        own = [each for each in messages if isinstance(each, Grouped)]
        self.renewed.append([each.sent.task_id for each in own])
        for each in own:
            self.start(each.sent)
        return [None] * len(messages)

    message_capabilities = ("extend",)


async def worked(
    broker: LeasingBroker,
    then: Callable[[], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Listen until `then` has ended."""
    finish = asyncio.Event()
    receiver = Receiver(broker, run_startup=False, **options)
    listening = asyncio.ensure_future(receiver.listen(finish))
    await then()
    finish.set()
    await listening


@pytest.mark.parametrize("kind", [LeasingBroker, BulkBroker])
def test_a_batch_of_two_minutes_is_not_delivered_twice(
    kind: type[LeasingBroker],
) -> None:
    async def main() -> None:
        broker = kind()

        @broker.task(batch=True, batch_size=10, batch_timeout=1)
        async def slow(items: list[int]) -> None:
            await asyncio.sleep(125)

        async def wait() -> None:
            for number in range(15):  # five of them wait for a minute and more
                await slow.kiq(number)
            await asyncio.sleep(260)

        await worked(broker, wait, max_async_tasks=1)
        assert len(broker.delivered) == 15
        assert sorted(broker.acked) == sorted(broker.delivered)
        assert not broker.alarms
        renewed = Counter(each for call in broker.renewed for each in call)
        # Each 15 s, of two minutes and of four, and a little.
        assert Counter(renewed.values()) == {8: 10, 16: 5}
        if kind is BulkBroker:
            assert [len(call) for call in broker.renewed] == [15] * 8 + [5] * 8

    run_virtual(main())


def test_the_renewing_ends_with_the_last_message_and_begins_again() -> None:
    async def main() -> None:
        broker = BulkBroker()

        @broker.task
        async def slow() -> None:
            await asyncio.sleep(40)

        async def wait() -> None:
            for _ in range(2):
                await slow.kiq()
                await asyncio.sleep(300)

        await worked(broker, wait)
        assert [len(each) for each in broker.renewed] == [1, 1, 1, 1]

    run_virtual(main())


def test_what_is_given_up_is_renewed_no_more() -> None:
    async def main() -> None:
        broker = BulkBroker()

        @broker.task
        async def endless() -> None:
            await asyncio.sleep(10_000)

        async def wait() -> None:
            await endless.kiq()
            await asyncio.sleep(20)

        await worked(broker, wait, wait_tasks_timeout=1)
        renewed = len(broker.renewed)
        await asyncio.sleep(LEASE + 1)
        assert len(broker.renewed) == renewed == 1
        assert broker.queue.qsize() == 1  # delivered again to whoever listens next

    run_virtual(main())


def test_leases_that_cannot_be_renewed_are_told_of_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        broker = BulkBroker()
        broker.fails = True

        @broker.task
        async def slow() -> None:
            await asyncio.sleep(25)
            broker.fails = False
            await asyncio.sleep(15)

        async def wait() -> None:
            await slow.kiq()
            await asyncio.sleep(50)

        await worked(broker, wait, max_async_tasks=1)
        assert broker.renewed

    with caplog.at_level(logging.WARNING):
        run_virtual(main())
    [told] = [each for each in caplog.messages if "Cannot renew the leases" in each]
    assert "no server" in told


class Group:
    """Notes what it renews, and when; or does not."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble
        self.renewed: list[tuple[float, bytes]] = []

    async def ack(self, messages: Sequence[AckableMessage]) -> list[None]:
        raise NotImplementedError

    async def extend(self, messages: Sequence[AckableMessage]) -> list[None]:
        if self.trouble == "raises":
            raise ConnectionError("no server")
        if self.trouble == "hangs":
            await asyncio.Event().wait()
        now = asyncio.get_running_loop().time()
        self.renewed += [(now, each.data) for each in messages]
        return [None] * len(messages)


class Equipping(QueueBroker):
    """Fills in what renews its messages."""

    message_capabilities = ("extend",)

    def __init__(self, groups: dict[bytes, Group]) -> None:
        super().__init__()
        self.groups = groups

    def equip_message(self, message: AckableMessage) -> AckableMessage:
        message.ack_group = self.groups[message.data]
        return message


@virtual
async def test_what_fails_keeps_nothing_else_from_being_renewed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line tells of a failure for each message, those of a group that has no end
    among them, and of one that nobody knows how to renew."""
    hangs, raises, works = Group("hangs"), Group("raises"), Group()
    groups = {b"a": hangs, b"b": hangs, b"c": raises, b"d": works, b"e": works}
    held = [AckableMessage(data=data, ack=print) for data in (b"?", *groups)]
    await Leases(Equipping(groups))._renew(held)
    assert asyncio.get_running_loop().time() == 30
    assert [data for _, data in works.renewed] == [b"d", b"e"]
    [told] = [each for each in caplog.messages if "Cannot renew the leases" in each]
    assert "KeyError" in told
    assert told.endswith("(4 such errors).")


async def says_eight() -> object:
    return 8


async def says_nothing() -> object:
    return None


async def says_nonsense() -> object:
    return "a while"


async def raises() -> object:
    raise OSError


async def hangs() -> object:
    return await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "moments"),
    [
        (says_eight, [4, 8]),
        (says_nothing, [15, 30]),
        (says_nonsense, [15, 30]),
        (raises, [15, 30]),
        (hangs, [20, 35]),
    ],
)
@virtual
async def test_a_broker_is_asked_how_long_its_leases_are(
    answer: Callable[[], Coroutine[Any, Any, object]],
    moments: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has five seconds to say so."""
    group = Group()
    broker = Equipping({b"": group})

    async def ask(of: object) -> object:
        assert of is broker
        return await answer()

    monkeypatch.setattr(leases, "lease_seconds", ask)
    kept = Leases(broker)
    kept.hold(held_by(broker, AckableMessage(data=b"", ack=print)))
    await asyncio.sleep(moments[-1] + 1)
    assert [moment for moment, _ in group.renewed] == moments
    kept.close()
    await asyncio.sleep(0)


def held_by(broker: QueueBroker, raw: bytes | AckableMessage) -> Delivery:
    delivery = Delivery(broker, raw)
    delivery.controller = SimpleNamespace(is_acked=False)  # type: ignore[assignment]
    return delivery


def test_a_message_without_a_lease_begins_nothing() -> None:
    async def main() -> None:
        broker = QueueBroker()

        @broker.task
        async def slow() -> None:
            await asyncio.sleep(100)

        finish = asyncio.Event()
        receiver = Receiver(broker, run_startup=False)
        listening = asyncio.ensure_future(receiver.listen(finish))
        await slow.kiq()
        await asyncio.sleep(1)
        kept = receiver.runtime.leases
        assert (kept._task, kept._held) == (None, [])
        finish.set()
        await listening
        assert len(broker.acked) == 1

    run_virtual(main())


def test_leases_are_renewed_at_half_of_the_shortest() -> None:
    assert seconds_between([], None) == 15
    assert seconds_between([None], 8) == 4
    assert seconds_between([None, 60], 80) == 30
    assert seconds_between([0.001], None) == 0.05


def test_what_has_a_lease_is_renewed_with_those_of_its_group_or_alone() -> None:
    one, two = (SimpleNamespace(extend=print) for _ in range(2))
    none = SimpleNamespace()  # it acknowledges together, and renews nothing
    groups = [one, two, one, none, None]
    messages: list[Any] = [
        AckableMessage(data=b"", ack=print, ack_group=group, extend=extend)
        for extend in (None, print)
        for group in groups
    ]
    together, alone = by_group(messages)
    numbers = {id(each): number for number, each in enumerate(messages)}
    told = [[numbers[id(each)] for each in group] for group in (*together, alone)]
    assert told == [[0, 2, 5, 7], [1, 6], [8, 9]]


async def test_what_has_ended_is_not_kept_in_mind_until_the_next_renewing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "_FEW", 4)
    broker = LeasingBroker()
    kept = Leases(broker)
    for _ in range(20):
        delivery = held_by(broker, b"")
        kept.hold(delivery)
        delivery.end(MessageState.LEFT)
        assert len(kept._held) <= 4 + 1
    kept.close()
    looks: list[int] = []

    def look(deliveries: Sequence[Delivery]) -> list[Delivery]:
        looks.append(len(deliveries))
        return [*deliveries]

    monkeypatch.setattr(leases, "still_held", look)
    for _ in range(1000):
        kept.hold(held_by(broker, b""))
    # Ever rarer, where none ends: it costs each of them the same.
    assert 4 <= len(looks) <= 10
    kept.close()
