"""What a broker and a result backend must and may do, as tests of pytest.

The author of a plugin derives a class of tests from each and says with a fixture what
is to be tested; see docs/extending/conformance.md. A test is skipped where a broker
does not do what it may leave out. Nothing here needs a plugin of pytest: each test runs
an event loop of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from taskiq.abc.broker import AsyncBroker
from taskiq.acks import AckableMessage
from taskiq.brokers.inmemory_broker import InMemoryBroker
from taskiq.capabilities import deliveries_of, equip, lease_seconds, resolve
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq.message import BrokerMessage
from taskiq.receiver import Receiver
from taskiq.receiver.source import forget_closed
from taskiq.result import TaskiqResult
from taskiq.utils import maybe_awaitable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from taskiq.abc.result_backend import AsyncResultBackend

    MakeBroker = Callable[[], AsyncBroker]
    MakeResultBackend = Callable[[], AsyncResultBackend[Any]]

__all__ = ["BrokerConformance", "ResultBackendConformance"]

#: The task that every message is of; a broker that runs tasks itself knows it.
TASK_NAME: Final = "taskiq.testing.conformance"
#: Seconds that a second and a half may be late on a machine that is busy.
_SLACK: Final = 1.0
#: Seconds after which a message is lost.
_LOST: Final = 20.0
#: Seconds between two messages that ask whether somebody listens.
_PROBING: Final = 0.1
_PROBE: Final = b'"is somebody listening?"'


def _skip(reason: str) -> NoReturn:
    import pytest  # noqa: PLC0415 - whoever is here runs it

    pytest.skip(reason)


def _message(data: bytes, **labels: Any) -> BrokerMessage:
    return BrokerMessage(
        task_id=uuid.uuid4().hex,
        task_name=TASK_NAME,
        message=data,
        labels=labels,
    )


class _Catcher(Receiver):
    """Receives messages in process, and runs nothing."""

    def __init__(self, broker: AsyncBroker, inbox: _Inbox) -> None:
        super().__init__(broker)
        self._inbox = inbox

    async def callback(
        self,
        message: bytes | AckableMessage,
        raise_err: bool = False,
    ) -> None:
        del raise_err
        self._inbox.put(message)


class _Inbox:
    """What a broker that listens has received and nobody has looked at."""

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self._messages: asyncio.Queue[bytes | AckableMessage | Exception] = (
            asyncio.Queue()
        )
        self._is_ready = asyncio.Event()

    def put(self, message: bytes | AckableMessage) -> None:
        """Take a message in; one that asks whether somebody listens is answered."""
        if _data(message) != _PROBE:
            self._messages.put_nowait(message)

    async def read(self) -> None:
        """Read the broker until cancelled."""
        messages: Any = self.broker.listen()
        try:
            async for message in messages:
                if _data(message) == _PROBE and isinstance(message, AckableMessage):
                    await maybe_awaitable(message.ack())
                self._is_ready.set()
                self.put(message)
        except Exception as exc:  # noqa: BLE001 - raised by whoever waits for a message
            self._messages.put_nowait(exc)
        finally:
            await messages.aclose()

    async def until_ready(self, sender: AsyncBroker) -> None:
        """Wait until what is sent arrives."""
        for _ in range(int(_LOST / _PROBING)):
            await sender.kick(_message(_PROBE))
            try:
                await asyncio.wait_for(self._is_ready.wait(), _PROBING)
            except asyncio.TimeoutError:
                continue
            return
        raise AssertionError(f"nothing that is sent arrives within {_LOST} s")

    async def next(self, within: float | None = None) -> bytes | AckableMessage:
        """Give the next message.

        :param within: seconds; by default, those after which a message is lost.
        """
        within = _LOST if within is None else within
        try:
            received = await asyncio.wait_for(self._messages.get(), within)
        except asyncio.TimeoutError:
            raise AssertionError(f"no message within {within} s") from None
        if isinstance(received, Exception):
            raise received
        return received

    async def next_ackable(self, within: float | None = None) -> AckableMessage:
        """Give the next message with all that is known of it.

        The test is skipped if it cannot be acknowledged.
        """
        message = equip(self.broker, await self.next(within))
        if message is None:
            _skip("its messages cannot be acknowledged")
        return message

    async def stays_empty(self, seconds: float) -> None:
        """Check that no message comes."""
        try:
            received = await asyncio.wait_for(self._messages.get(), seconds)
        except asyncio.TimeoutError:
            return
        raise AssertionError(f"not expected: {received!r}")


def _data(message: bytes | AckableMessage) -> bytes:
    return message.data if isinstance(message, AckableMessage) else message


async def _ack(message: bytes | AckableMessage) -> None:
    if isinstance(message, AckableMessage):
        await maybe_awaitable(message.ack())


class BrokerConformance:
    """What a broker must do, and what it may.

    Derive from it and define the fixture `make_broker`: a function that makes a broker,
    not started, of a queue that is new for each test and the same for each call.
    """

    #: Seconds in which a message that is not acknowledged comes again after its worker
    #: has ended: the lease, if there is one, and a little.
    redelivered_within: ClassVar[float] = 10.0
    #: Whether messages are kept that are sent while nobody listens.
    keeps: ClassVar[bool] = True
    #: A message that the broker refuses to send, if there is one.
    refused: ClassVar[BrokerMessage | None] = None

    def make_sender(self, make_broker: MakeBroker) -> AsyncBroker:
        """Make the broker that sends; override it if not every one can."""
        return make_broker()

    # -- What every broker must do -------------------------------------------------

    def test_it_can_be_started_and_stopped_again_and_again(
        self, make_broker: MakeBroker
    ) -> None:
        """A worker does so when its broker was lost."""

        async def main() -> None:
            broker = make_broker()
            for _ in range(2):
                await broker.startup()
                await broker.shutdown()
                forget_closed(broker)  # as a worker does

        asyncio.run(main())

    def test_what_is_sent_arrives_as_it_was(self, make_broker: MakeBroker) -> None:
        """The messages of JSON are text, of any length, with all kinds of letters."""
        texts = ['{"a": [1, 2]}', '"ü \u2028 \U0001f600 \'"', f'"{"x" * 200_000}"']

        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                for text in texts:
                    await sender.kick(_message(text.encode(), number="1"))
                    received = await inbox.next()
                    assert _data(received) == text.encode()
                    await _ack(received)

        asyncio.run(main())

    def test_bytes_arrive_as_they_were_or_are_refused(
        self, make_broker: MakeBroker
    ) -> None:
        """Other serializers make bytes that are no text."""
        data = bytes(range(256))

        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                try:
                    await sender.kick(_message(data))
                except Exception:  # noqa: BLE001 - whatever it refuses them with
                    return
                received = await inbox.next()
                assert _data(received) == data
                await _ack(received)

        asyncio.run(main())

    def test_many_are_sent_in_their_order(self, make_broker: MakeBroker) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                sent = [b'{"number": %d}' % number for number in range(200)]
                outcomes = await sender.kick_many([_message(each) for each in sent])
                assert outcomes == [None] * len(sent)
                received = await _receive(inbox, len(sent))
                assert sorted(received) == sorted(sent)
                # One message at a time is sent at once with others.
                if type(sender).kick_many is not AsyncBroker.kick_many:
                    assert received == sent

        asyncio.run(main())

    def test_one_that_is_refused_fails_alone(self, make_broker: MakeBroker) -> None:
        refused = self.refused
        if refused is None:
            _skip("no message is known that it refuses")

        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                outcomes = await sender.kick_many(
                    [_message(b'"1"'), refused, _message(b'"2"')]
                )
                assert [outcome is None for outcome in outcomes] == [True, False, True]
                assert isinstance(outcomes[1], Exception)
                assert sorted(await _receive(inbox, 2)) == [b'"1"', b'"2"']

        asyncio.run(main())

    def test_what_it_says_it_can_is_what_its_messages_can(
        self, make_broker: MakeBroker
    ) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                raw = await inbox.next()
                message, told = equip(inbox.broker, raw), resolve(inbox.broker)
                assert (message is None) <= (told == type(told)())
                if message is not None:
                    assert bool(told.nack) == (message.nack is not None)
                    assert bool(told.delayed_nack) == message.nack_delays
                    assert bool(told.reject) == (message.reject is not None)
                    assert bool(told.extend) == (message.extend is not None)
                    assert bool(told.deliveries) == (message.deliveries is not None)
                await _ack(raw)

        asyncio.run(main())

    # -- What it may do ---------------------------------------------------------------

    def test_what_is_acknowledged_is_over(self, make_broker: MakeBroker) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                await _ack(await inbox.next_ackable())
            async with self._worker(make_broker) as (_, inbox):
                await inbox.stays_empty(self.redelivered_within)

        self._for_listeners(make_broker)
        asyncio.run(main())

    def test_what_is_acknowledged_together_is_over(
        self, make_broker: MakeBroker
    ) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick_many([_message(b'"%d"' % each) for each in range(20)])
                messages = [await inbox.next_ackable() for _ in range(20)]
                group = messages[0].ack_group
                if group is None:
                    for each in messages:
                        await _ack(each)
                    _skip("its messages are acknowledged one by one")
                assert {id(each.ack_group) for each in messages} == {id(group)}
                assert list(await group.ack(messages)) == [None] * 20
            async with self._worker(make_broker) as (_, inbox):
                await inbox.stays_empty(self.redelivered_within)

        self._for_listeners(make_broker)
        asyncio.run(main())

    def test_what_is_not_acknowledged_comes_again(
        self, make_broker: MakeBroker
    ) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                first = await inbox.next_ackable()
                assert await deliveries_of(first) in {None, 1}
            async with self._worker(make_broker) as (_, inbox):
                again = await inbox.next_ackable(self.redelivered_within)
                assert again.data == b'"1"'
                assert await deliveries_of(again) in {None, 2}
                await _ack(again)

        self._for_listeners(make_broker)
        asyncio.run(main())

    def test_what_is_given_back_comes_again_and_is_counted(
        self, make_broker: MakeBroker
    ) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                for number in itertools.count(1):
                    message = await inbox.next_ackable()
                    if message.nack is None:
                        await _ack(message)
                        _skip("nothing can be given back")
                    counted = await deliveries_of(message)
                    assert counted in {None, number}
                    if number == 3:
                        await _ack(message)
                        break
                    await _nack(message, None)
                await inbox.stays_empty(_SLACK)

        asyncio.run(main())

    def test_what_is_given_back_for_a_time_comes_after_it(
        self, make_broker: MakeBroker
    ) -> None:
        """After two seconds, and before three."""

        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                message = await inbox.next_ackable()
                if not message.nack_delays:
                    await _ack(message)
                    _skip("nothing can be given back for a time")
                started = time.monotonic()
                await _nack(message, 2.0)
                again = await inbox.next_ackable()
                assert 2 <= time.monotonic() - started + 0.01 <= 2 + _SLACK
                await _ack(again)

        asyncio.run(main())

    def test_what_is_rejected_is_over(self, make_broker: MakeBroker) -> None:
        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                message = await inbox.next_ackable()
                if message.reject is None:
                    await _ack(message)
                    _skip("nothing can be rejected")
                await maybe_awaitable(message.reject("a test"))
                await inbox.stays_empty(_SLACK)
            async with self._worker(make_broker) as (_, inbox):
                await inbox.stays_empty(self.redelivered_within)

        self._for_listeners(make_broker)
        asyncio.run(main())

    def test_a_lease_that_is_renewed_does_not_end(
        self, make_broker: MakeBroker
    ) -> None:
        """One that is not renewed any more does, for other workers, too."""

        async def main() -> None:
            async with self._worker(make_broker) as (sender, inbox):
                await sender.kick(_message(b'"1"'))
                message = await inbox.next_ackable()
                lease = await self._short_lease(inbox.broker, message)
                async with self._worker(make_broker) as (_, other):
                    for _ in range(6):
                        await asyncio.sleep(lease / 2)
                        await _extend(message)
                    await other.stays_empty(0.01)
                    await inbox.stays_empty(0.01)
                again = await inbox.next_ackable(lease + self.redelivered_within)
                assert again.data == message.data
                await _ack(again)

        asyncio.run(main())

    # -- How it is tested --------------------------------------------------------------

    @asynccontextmanager
    async def _worker(
        self,
        make_broker: MakeBroker,
    ) -> AsyncGenerator[tuple[AsyncBroker, _Inbox], None]:
        """Start a broker that sends and one that listens; in process they are one."""
        broker = make_broker()
        inbox = _Inbox(broker)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_started(broker, is_worker=True))
            if isinstance(broker, InMemoryBroker):
                broker.register_task(_nothing, TASK_NAME)
                broker.receiver = _Catcher(broker, inbox)
                yield broker, inbox
                return
            sender = await stack.enter_async_context(
                _started(self.make_sender(make_broker))
            )
            reading = asyncio.create_task(inbox.read())
            try:
                await inbox.until_ready(sender)
                yield sender, inbox
            finally:
                while not reading.done():  # some lose an interruption
                    reading.cancel()
                    await asyncio.wait([reading], timeout=_SLACK)

    def _for_listeners(self, make_broker: MakeBroker) -> None:
        if isinstance(make_broker(), InMemoryBroker):
            _skip("it runs what is sent, and keeps nothing")
        if not self.keeps:
            _skip("it keeps nothing")

    @staticmethod
    async def _short_lease(broker: AsyncBroker, message: AckableMessage) -> float:
        lease = message.lease or await lease_seconds(broker)
        if message.extend is None or lease is None:
            await _ack(message)
            _skip("it has no leases that are to be renewed")
        assert lease <= _LOST / 2, "make the broker with a lease of a second or two"
        return lease


async def _nack(message: AckableMessage, delay: float | None) -> None:
    assert message.nack is not None
    await maybe_awaitable(message.nack(delay))


async def _extend(message: AckableMessage) -> None:
    group: Any = message.ack_group
    if hasattr(group, "extend"):
        assert list(await group.extend([message])) == [None]
    elif message.extend is not None:
        await maybe_awaitable(message.extend())


async def _receive(inbox: _Inbox, count: int) -> list[bytes]:
    received = [await inbox.next() for _ in range(count)]
    for each in received:
        await _ack(each)
    return [_data(each) for each in received]


@asynccontextmanager
async def _started(
    broker: AsyncBroker,
    *,
    is_worker: bool = False,
) -> AsyncGenerator[AsyncBroker, None]:
    broker.is_worker_process = is_worker
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


async def _nothing() -> None:
    """Never run."""


def _result(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(
        is_err=False,
        log="a log",
        return_value=value,
        execution_time=0.5,
        labels={"label": "text"},
    )


def _new_ids(count: int) -> list[str]:
    return [uuid.uuid4().hex for _ in range(count)]


class ResultBackendConformance:
    """What a result backend must do, and what it may.

    Derive from it and define the fixture `make_result_backend`: a function that makes a
    result backend, not started, of the same place for each call.
    """

    def _run(
        self,
        make_result_backend: MakeResultBackend,
        test: Callable[[AsyncResultBackend[Any]], Any],
    ) -> None:
        async def main() -> None:
            backend = make_result_backend()
            await maybe_awaitable(backend.startup())
            try:
                await test(backend)
            finally:
                await maybe_awaitable(backend.shutdown())

        asyncio.run(main())

    def test_a_result_is_read_as_it_was_stored(
        self, make_result_backend: MakeResultBackend
    ) -> None:
        async def test(backend: AsyncResultBackend[Any]) -> None:
            [task_id] = _new_ids(1)
            stored = _result({"a": [1, "ü", None]})
            await backend.set_result(task_id, stored)
            assert await backend.is_result_ready(task_id)
            read = await backend.get_result(task_id, with_logs=True)
            assert read.model_dump() == stored.model_dump()

        self._run(make_result_backend, test)

    def test_an_error_is_read_as_it_was_stored(
        self, make_result_backend: MakeResultBackend
    ) -> None:
        async def test(backend: AsyncResultBackend[Any]) -> None:
            [task_id] = _new_ids(1)
            failed = _result(None)
            failed.is_err, failed.error = True, ValueError("wrong", 3)
            await backend.set_result(task_id, failed)
            read = await backend.get_result(task_id)
            assert read.is_err
            assert isinstance(read.error, ValueError)
            assert read.error.args == ("wrong", 3)

        self._run(make_result_backend, test)

    def test_a_result_that_is_not_there_is_not_ready(
        self, make_result_backend: MakeResultBackend
    ) -> None:
        """Reading it raises, and waiting for it ends."""

        async def test(backend: AsyncResultBackend[Any]) -> None:
            [task_id] = _new_ids(1)
            assert not await backend.is_result_ready(task_id)
            assert not await backend.get_results([task_id])
            try:
                await backend.get_result(task_id)
            except Exception:  # noqa: BLE001 - whatever it raises
                pass
            else:
                raise AssertionError("it was read")
            try:
                await backend.wait_for_result(task_id, 0.2)
            except TaskiqResultTimeoutError:
                pass
            else:
                raise AssertionError("it was waited for")

        self._run(make_result_backend, test)

    def test_many_results_are_stored_and_read(
        self, make_result_backend: MakeResultBackend
    ) -> None:
        async def test(backend: AsyncResultBackend[Any]) -> None:
            ids = _new_ids(50)
            stored = {task_id: _result(number) for number, task_id in enumerate(ids)}
            assert not await backend.set_results(stored)
            asked: Sequence[str] = [*reversed(ids), "another", ids[0]]
            read = await backend.get_results(asked)
            assert {each: result.return_value for each, result in read.items()} == {
                task_id: number for number, task_id in enumerate(ids)
            }

        self._run(make_result_backend, test)

    def test_a_result_is_waited_for(
        self, make_result_backend: MakeResultBackend
    ) -> None:
        async def test(backend: AsyncResultBackend[Any]) -> None:
            [task_id] = _new_ids(1)
            waiting = asyncio.ensure_future(backend.wait_for_result(task_id, _LOST))
            await asyncio.sleep(0.1)
            await backend.set_result(task_id, _result("value"))
            assert (await waiting).return_value == "value"

        self._run(make_result_backend, test)
