"""A listener that fails is started again, soon, and finds its broker as it was."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import AckableMessage, TaskiqMessage, TaskiqMiddleware
from taskiq.events import TaskiqEvents
from taskiq.health import ListenerState
from taskiq.outage import brief
from taskiq.receiver import Receiver
from taskiq.receiver.restart import ListenLoop, RestartDelays, reconnect
from taskiq.receiver.source import is_disconnected
from tests.support.brokers import QueueBroker
from tests.support.virtual_time import virtual
from tests.support.worker import GatedWorker

if TYPE_CHECKING:
    from typing_extensions import Self

FIRST, LONGEST = 0.1, 5.0


def now() -> float:
    return asyncio.get_running_loop().time()


# -- How long it waits -------------------------------------------------------------


@pytest.mark.usefixtures("without_jitter")
def test_delays_double_from_a_tenth_of_a_second_to_the_longest() -> None:
    delays = RestartDelays(LONGEST)

    seen = [delays.after_failure(was_healthy=False) for _ in range(9)]

    doubled = [FIRST * 2**power for power in range(6)]
    assert seen == pytest.approx([*doubled, LONGEST, LONGEST, LONGEST])


@pytest.mark.usefixtures("without_jitter")
def test_health_begins_the_delays_anew() -> None:
    delays = RestartDelays(LONGEST)

    seen = [delays.after_failure(was_healthy=n in {0, 3}) for n in range(5)]

    assert seen == pytest.approx([FIRST, FIRST * 2, FIRST * 4, FIRST, FIRST * 2])


@given(st.integers(0, 5000))
def test_jitter_shortens_a_delay_by_half_at_most(failures: int) -> None:
    delays = RestartDelays(LONGEST)
    for _ in range(failures):
        delays.after_failure(was_healthy=False)

    longest = min(FIRST * 2 ** min(failures, 99), LONGEST)
    assert longest / 2 <= delays.after_failure(was_healthy=False) <= longest


def test_two_workers_that_fail_together_come_back_apart() -> None:
    one, other = RestartDelays(LONGEST), RestartDelays(LONGEST)

    moments = [
        [delays.after_failure(was_healthy=False) for _ in range(10)]
        for delays in (one, other)
    ]

    assert moments[0] != moments[1]


# -- A broker with a server that goes and comes ------------------------------------


class Server:
    """What a broker connects to: it may be away, and may have lost its queue."""

    def __init__(self) -> None:
        self.is_here = True
        self.has_queue = False
        self.connections = 0
        self.lost = asyncio.Event()

    def go(self) -> None:
        self.is_here = self.has_queue = False
        self.lost.set()
        self.lost = asyncio.Event()

    def come(self) -> None:
        self.is_here = True


class ServerBroker(QueueBroker):
    """Opens a connection and declares a queue in `startup`, as plugins do."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.is_worker_process = True
        self.server = server
        self.listened: list[float] = []
        self.close_takes = 0.0

    async def startup(self) -> None:
        await super().startup()
        if not self.server.is_here:
            raise ConnectionError("connection\nrefused")
        self.server.connections += 1
        self.server.has_queue = True

    async def shutdown(self) -> None:
        await super().shutdown()
        await asyncio.sleep(self.close_takes)
        self.server.connections -= 1

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        if not (self.server.is_here and self.server.has_queue):
            raise ConnectionError("no queue")
        self.listened.append(now())
        # Nobody sends here: that messages are run is tested with real servers.
        await self.server.lost.wait()
        yield await self.lose()

    async def lose(self) -> bytes:
        raise ConnectionError("lost")


class Hooks(TaskiqMiddleware):
    """Writes down what it and the handlers of its broker are asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def startup(self) -> None:
        self.calls.append("start")

    async def shutdown(self) -> None:
        self.calls.append("stop")

    def watch(self, broker: QueueBroker) -> None:
        broker.add_middlewares(self)
        for event in (TaskiqEvents.WORKER_STARTUP, TaskiqEvents.WORKER_SHUTDOWN):
            broker.add_event_handler(event, self.handler(event.name))

    def handler(self, name: str) -> Callable[[Any], None]:
        return lambda _: self.calls.append(name)


STARTED = ["WORKER_STARTUP", "start"]
STOPPED = ["WORKER_SHUTDOWN", "stop"]


def loop_for(broker: QueueBroker, **settings: Any) -> ListenLoop:
    return ListenLoop(
        broker,
        lambda run_startup: Receiver(
            broker, run_startup=run_startup, max_async_tasks=10
        ),
        **{"run_startup": True, **settings},
    )


class Running:
    """A loop that listens for as long as the block runs."""

    def __init__(self, loop: ListenLoop) -> None:
        self._loop = loop
        self.finish = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.task = asyncio.ensure_future(self._loop.run(self.finish))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.finish.set()
        await self.task


# -- Listening again ---------------------------------------------------------------


@pytest.mark.usefixtures("without_jitter")
@pytest.mark.parametrize("here", [0.1, 3.5, 20])
@virtual
async def test_however_outages_follow_each_other_it_listens_soon_after_each(
    here: float,
) -> None:
    server = Server()
    broker = ServerBroker(server)
    async with Running(loop_for(broker)):
        for _ in range(3):
            await asyncio.sleep(here)
            server.go()
            await asyncio.sleep(6)
            server.come()
            back = now()
            await asyncio.sleep(LONGEST)
            assert back <= broker.listened[-1] <= back + LONGEST


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_listener_that_has_received_a_message_is_started_again_at_once() -> (
    None
):
    server = Server()
    broker = ServerBroker(server)
    loop = ListenLoop(
        broker, lambda _: Received(broker, max_async_tasks=10), run_startup=True
    )
    async with Running(loop):
        for _ in range(5):
            await asyncio.sleep(0.5)
            server.go()
            server.come()
            lost = now()
            await asyncio.sleep(0.5)
            assert broker.listened[-1] == pytest.approx(lost + FIRST)


class Received(Receiver):
    """Has received a message whenever it is asked."""

    has_received = True


@virtual
async def test_the_queue_is_declared_again_and_hooks_are_not_run_again() -> None:
    server, hooks = Server(), Hooks()
    broker = ServerBroker(server)
    hooks.watch(broker)
    async with Running(loop_for(broker)):
        for _ in range(20):
            await asyncio.sleep(4)
            server.go()
            server.come()
        await asyncio.sleep(4)
        assert server.has_queue
        assert server.connections == 1
        assert len(broker.listened) == 21
        assert hooks.calls == STARTED
    await broker.shutdown()
    assert hooks.calls == STARTED + STOPPED


@pytest.mark.parametrize(
    "error",
    [ConnectionError("reset"), asyncio.CancelledError()],
    ids=repr,
)
@virtual
async def test_connections_that_cannot_be_closed_are_opened_anew_all_the_same(
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks = Hooks()
    broker = ServerBroker(Server())
    hooks.watch(broker)
    await broker.startup()
    starts: list[str] = []

    async def shutdown() -> None:
        raise error

    async def startup() -> None:
        starts.append("startup")

    monkeypatch.setattr(broker, "shutdown", shutdown)
    monkeypatch.setattr(broker, "startup", startup)
    await reconnect(broker)
    assert starts == ["startup"]
    assert hooks.calls == STARTED


@virtual
async def test_after_a_shutdown_everything_is_started_again() -> None:
    hooks = Hooks()
    broker = ServerBroker(Server())
    hooks.watch(broker)
    for _ in range(2):
        await broker.startup()
        await reconnect(broker)
        await broker.shutdown()
    assert hooks.calls == (STARTED + STOPPED) * 2


@virtual
async def test_starting_a_broker_twice_by_hand_still_runs_its_hooks_twice() -> None:
    hooks = Hooks()
    broker = ServerBroker(Server())
    hooks.watch(broker)
    await broker.startup()
    await broker.startup()
    assert hooks.calls == STARTED * 2


@virtual
async def test_a_shutdown_during_a_reconnection_is_a_whole_one() -> None:
    hooks = Hooks()
    broker = ServerBroker(Server())
    hooks.watch(broker)
    await broker.startup()
    broker.close_takes = 1

    reconnecting = asyncio.ensure_future(reconnect(broker))
    await asyncio.sleep(0.5)
    await broker.shutdown()
    await reconnecting

    assert hooks.calls[: len(STARTED + STOPPED)] == STARTED + STOPPED


@virtual
async def test_a_first_start_goes_on_with_the_hooks_that_have_not_run() -> None:
    server, hooks = Server(), Hooks()
    server.is_here = False
    broker = ServerBroker(server)
    hooks.watch(broker)
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        assert hooks.calls == STARTED
        assert broker.listened == []
        server.come()
        await asyncio.sleep(LONGEST)
        assert len(broker.listened) == 1
    assert hooks.calls == STARTED


@virtual
async def test_a_hook_that_failed_is_tried_again_and_those_before_it_are_not() -> None:
    hooks = Hooks()
    broker = ServerBroker(Server())
    hooks.watch(broker)

    def fail_at_first(_: object) -> None:
        hooks.calls.append("try")
        if hooks.calls.count("try") < 3:
            raise LookupError("not yet")

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, fail_at_first)
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
    assert hooks.calls == ["WORKER_STARTUP", "try", "try", "try", "start"]


class HalfOpen:
    """A client that did not connect: a cycle of objects, closed by its finalizer."""

    def __init__(self, closed: list[str]) -> None:
        self._itself = self
        self._closed = closed

    def __del__(self) -> None:
        asyncio.get_running_loop()  # raises elsewhere
        self._closed.append("closed")


class HalfOpenBroker(ServerBroker):
    async def startup(self) -> None:
        client = HalfOpen(self.calls)
        self.calls.append("open")
        await super().startup()
        del client

    calls: list[str]


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@virtual
async def test_what_a_client_opened_that_cannot_connect_is_closed_in_the_loop() -> None:
    server = Server()
    broker = HalfOpenBroker(server)
    broker.calls = []
    server.is_here = False
    async with Running(loop_for(broker)):
        await asyncio.sleep(1)
        assert broker.calls[:4] == ["open", "closed"] * 2


@virtual
async def test_an_error_that_is_given_up_for_at_the_start_is_raised() -> None:
    broker = ServerBroker(Server())

    def fail(_: object) -> None:
        raise LookupError("no settings")

    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, fail)
    loop = loop_for(broker, gives_up=lambda exc: exc is broker.lifecycle.hook_error)
    with pytest.raises(LookupError, match="no settings"):
        await loop.run(asyncio.Event())


@virtual
async def test_old_connections_that_do_not_close_are_given_up() -> None:
    server = Server()
    broker = ServerBroker(server)
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        broker.close_takes = 1e9
        server.go()
        server.come()
        await asyncio.sleep(10)
        assert len(broker.listened) == 2


@virtual
async def test_a_stop_does_not_wait_for_a_reconnection() -> None:
    server = Server()
    broker = ServerBroker(server)
    async with Running(loop_for(broker)) as running:
        await asyncio.sleep(10)
        broker.close_takes = 4
        server.go()
        await asyncio.sleep(1)
        stopped = now()
        running.finish.set()
        await running.task
        assert now() == stopped


class StubbornBroker(ServerBroker):
    """Tries for a long time to connect, as some clients do."""

    translates = False

    async def startup(self) -> None:
        await super().startup()
        try:
            await asyncio.sleep(120)
        except asyncio.CancelledError:
            if self.translates:
                raise ConnectionError("interrupted") from None
            raise


@pytest.mark.parametrize("translates", [False, True])
@virtual
async def test_a_stop_does_not_wait_for_a_first_start(translates: bool) -> None:
    hooks = Hooks()
    broker = StubbornBroker(Server())
    broker.translates = translates
    hooks.watch(broker)
    async with Running(loop_for(broker)) as running:
        await asyncio.sleep(1)
        running.finish.set()
        await running.task
        assert now() == 1
    await broker.shutdown()
    assert hooks.calls == STARTED + STOPPED


@virtual
async def test_a_cancellation_during_a_first_start_is_raised() -> None:
    broker = StubbornBroker(Server())
    running = asyncio.ensure_future(loop_for(broker).run(asyncio.Event()))
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# -- What cannot be noticed by listening -------------------------------------------


class Config:
    def __init__(self, subject: str | None) -> None:
        self.deliver_subject = subject


class Info:
    def __init__(self, subject: str | None) -> None:
        # Some servers say another moment after each restart.
        self.created = now()
        self.config = Config(subject)


class NotFoundError(Exception):
    code = 404


class Consumer:
    """A consumer of JetStream: the client waits on when it is gone."""

    def __init__(self, stream: list[str | None]) -> None:
        self._stream = stream
        self.error: Exception | None = None

    async def consumer_info(self) -> Info:
        if self.error is not None:
            raise self.error
        if not self._stream:
            raise NotFoundError
        return Info(self._stream[-1])


class JetStreamBroker(ServerBroker):
    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.stream: list[str | None] = []
        self.is_pushed = True

    async def startup(self) -> None:
        await super().startup()
        if not self.stream:
            self.stream.append(f"inbox-{now()}" if self.is_pushed else None)
        self.consumer = Consumer(self.stream)


def delete(broker: JetStreamBroker) -> None:
    broker.stream.clear()


def replace(broker: JetStreamBroker) -> None:
    broker.stream[:] = [f"inbox-{now()}"]


@pytest.mark.parametrize("change", [delete, replace])
@virtual
async def test_a_consumer_that_is_gone_is_noticed_within_seconds(
    change: Callable[[JetStreamBroker], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = JetStreamBroker(Server())
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        change(broker)
        await asyncio.sleep(8)
        assert len(broker.listened) == 2
        assert broker.stream
        assert "the JetStream consumer" in caplog.text
        await asyncio.sleep(100)
        assert len(broker.listened) == 2


@pytest.mark.parametrize("is_pushed", [False, True])
@virtual
async def test_a_consumer_that_was_made_at_another_moment_is_still_there(
    is_pushed: bool,
) -> None:
    broker = JetStreamBroker(Server())
    broker.is_pushed = is_pushed
    async with Running(loop_for(broker)):
        await asyncio.sleep(100)
        assert len(broker.listened) == 1


@virtual
async def test_a_server_that_does_not_answer_has_lost_no_consumer() -> None:
    broker = JetStreamBroker(Server())
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        broker.consumer.error = TimeoutError()
        await asyncio.sleep(100)
        assert len(broker.listened) == 1


class Connection:
    closed = 0


class PostgresBroker(ServerBroker):
    _owns_read_conn = True
    _read_conn: Connection | None = None

    async def startup(self) -> None:
        await super().startup()
        self._read_conn = self._read_conn or Connection()

    def close(self) -> None:
        assert self._read_conn is not None
        self._read_conn.closed = 1


@virtual
async def test_a_closed_connection_that_nobody_reads_is_noticed() -> None:
    broker = PostgresBroker(Server())
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        broker.close()
        await asyncio.sleep(10)
        assert broker._read_conn is not None
        assert broker._read_conn.closed == 0
        assert len(broker.listened) == 2


@virtual
async def test_a_lost_connection_is_told_before_what_was_read_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Busy(PostgresBroker):
        async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
            if not self.listened:
                message = TaskiqMessage(
                    task_id="1", task_name="work", labels={}, args=[], kwargs={}
                )
                yield self.formatter.dumps(message).message
            async for other in super().listen():
                yield other

    broker = Busy(Server())

    @broker.task("work")
    async def work() -> None:
        await asyncio.sleep(50)

    loop = loop_for(broker)
    async with Running(loop):
        await asyncio.sleep(10)
        broker.close()
        await asyncio.sleep(10)
        assert len(broker.listened) == 1
        assert loop.state is ListenerState.AWAY
        [told] = warnings(caplog)
        assert told.getMessage() == (
            "The listener failed, it is started again once what it has read is done: "
            "the connection that tells of messages was closed."
        )
        await asyncio.sleep(100)
        assert len(broker.listened) == 2
        assert loop.state.name == "LISTENING"
    [_, ended] = warnings(caplog)
    assert ended.getMessage().startswith("The broker is back after 37")


# -- What it says ------------------------------------------------------------------


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_what_it_is_at_is_known_at_every_moment() -> None:
    server = Server()
    server.go()
    loop = loop_for(ServerBroker(server))
    seen = []
    async with Running(loop):
        for happens, seconds in (
            (server.go, 60),
            (server.come, 10),
            (server.go, 5),
            (server.go, 600),
            (server.come, 10),
        ):
            happens()
            await asyncio.sleep(seconds)
            seen.append(loop.state.name)
    assert seen == ["STARTING", "LISTENING", "AWAY", "AWAY", "LISTENING"]


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_listener_that_fails_and_is_back_soon_was_never_away() -> None:
    server = Server()
    loop = loop_for(ServerBroker(server))
    seen = set()
    async with Running(loop):
        await asyncio.sleep(10)
        for _ in range(5):
            server.go()
            server.come()
            for _ in range(50):
                await asyncio.sleep(0.1)
                seen.add(loop.state)
    assert seen == {ListenerState.LISTENING}


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_an_outage_is_told_when_it_begins_every_minute_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    async with Running(loop_for(ServerBroker(server))):
        await asyncio.sleep(10)
        server.go()
        await asyncio.sleep(150)
        server.come()
        await asyncio.sleep(10)

    begin, *again, end = warnings(caplog)
    assert begin.getMessage() == (
        "The listener failed, it is started again in 0.1 s: ConnectionError: lost"
    )
    # Line breaks of an error are not told.
    refused = "it is started again in 5.0 s: ConnectionError: connection refused"
    assert [record.getMessage().count(refused) for record in again] == [1, 1]
    assert not any(record.exc_info for record in [begin, *again, end])
    assert end.getMessage().startswith("The broker is back after 15")


class LazyBroker(QueueBroker):
    """Connects when it is read, not in `startup`; and gives up a read of 5 seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.is_here = True

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        for _ in range(50):
            if not self.is_here:
                raise ConnectionError("connection refused")
            await asyncio.sleep(0.1)
        yield await self.give_up()

    async def give_up(self) -> bytes:
        raise ReadTimeoutError


class ReadTimeoutError(Exception):
    """As of a client that is no child of `TimeoutError`."""


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_client_that_gives_up_reads_without_messages_is_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    loop = loop_for(broker := LazyBroker())
    async with Running(loop):
        await asyncio.sleep(60)
        assert texts(caplog) == ["Listening started."]

        broker.is_here = False
        await asyncio.sleep(50)
        broker.is_here = True
        await asyncio.sleep(60)
    _, begin, end = texts(caplog)
    assert begin.startswith("The listener failed, it is started again in 0.1 s: Conn")
    assert re.fullmatch(r"The broker is back after 5\d\.\d s\.", end)


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Give what was told, but what the broker can do, which follows the start."""
    told = [record.getMessage() for record in caplog.records]
    return [text for text in told if not text.startswith("The broker, with its")]


class Client:
    """As that of taskiq-nats: it connects again by itself, until it gives up."""

    is_reconnecting = False
    is_closed = False


@virtual
async def test_a_client_that_connects_again_by_itself_is_told_of_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    broker: Any = ServerBroker(Server())
    broker.client = Client()
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        broker.client.is_reconnecting = True
        await asyncio.sleep(150)
        broker.client.is_reconnecting = False
        await asyncio.sleep(10)
    away = "The broker is away, its client tries to connect again."
    _, begin, first, second, end = texts(caplog)
    assert [begin, first, second] == [
        away,
        f"{away} So it is since 60 s.",
        f"{away} So it is since 120 s.",
    ]
    assert re.fullmatch(r"The broker is back after 1(49|50)\.\d s\.", end)


class MessagesEnd(ServerBroker):
    """Its messages end, without an error, when its client gives up."""

    client: Any

    async def startup(self) -> None:
        await super().startup()
        self.client = Client()

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        self.listened.append(now())
        await self.server.lost.wait()
        self.client.is_closed = True
        return
        yield b""


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_a_client_that_gave_up_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    broker = MessagesEnd(server)
    async with Running(loop_for(broker)):
        await asyncio.sleep(10)
        server.go()
        await asyncio.sleep(20)
        server.come()
        await asyncio.sleep(10)
        assert len(broker.listened) == 2
    begin, end = warnings(caplog)
    assert begin.getMessage().endswith("its client has given up to connect again")
    assert begin.exc_info is None
    assert end.getMessage().startswith("The broker is back after")


@pytest.mark.usefixtures("without_jitter")
@virtual
async def test_each_attempt_to_start_a_broker_is_told_in_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    server.is_here = False
    async with Running(loop_for(ServerBroker(server))):
        await asyncio.sleep(0.65)
    assert [record.getMessage() for record in warnings(caplog)] == [
        f"Cannot start the broker, it is tried again in {delay} s: "
        "ConnectionError: connection refused"
        for delay in ("0.1", "0.2", "0.4")
    ]
    assert not any(record.exc_info for record in warnings(caplog))


def test_an_error_without_a_text_is_told_by_its_name() -> None:
    assert brief(TimeoutError()) == "TimeoutError"


def connection(*, is_connected: bool) -> SimpleNamespace:
    connected = asyncio.Event()
    if is_connected:
        connected.set()
    return SimpleNamespace(connected=connected)


@pytest.mark.parametrize(
    ("client", "is_away"),
    [
        ({}, False),
        ({"read_conn": connection(is_connected=True)}, False),
        ({"read_conn": connection(is_connected=False)}, True),
        ({"read_conn": SimpleNamespace(connected="yes")}, False),
        ({"client": SimpleNamespace(is_reconnecting=False)}, False),
        ({"client": SimpleNamespace(is_reconnecting=True)}, True),
        ({"client": SimpleNamespace(is_reconnecting="unknown")}, False),
    ],
)
def test_a_client_that_says_so_is_known_to_be_without_its_server(
    client: dict[str, Any],
    is_away: bool,
) -> None:
    broker = QueueBroker()
    for name, value in client.items():
        setattr(broker, name, value)
    assert is_disconnected(broker) is is_away


@virtual
async def test_a_listener_that_merely_ends_ends_the_loop() -> None:
    broker = QueueBroker()
    broker.end()
    await loop_for(broker, run_startup=False).run(asyncio.Event())
    assert broker.is_closed


class _Info:
    """What a JetStream consumer says of itself, which may be made anew."""

    def __init__(self) -> None:
        self.config = self
        self.deliver_subject = "first"

    async def consumer_info(self) -> _Info:
        told = _Info()
        told.deliver_subject = self.deliver_subject
        return told


@virtual
async def test_what_is_gone_while_a_stop_waits_for_what_runs_is_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Consuming(QueueBroker):
        consumer = _Info()

    worker = GatedWorker(broker=Consuming())
    worker.put("a")
    loop = ListenLoop(worker.broker, lambda _: worker.receiver, run_startup=False)
    async with Running(loop) as running:
        await asyncio.sleep(20)
        worker.let_go_at(now() + 100, "a")
        running.finish.set()
        await asyncio.sleep(1)
        Consuming.consumer.deliver_subject = "second"
    assert worker.broker.acked == ["a"]
    assert "made anew" not in caplog.text
