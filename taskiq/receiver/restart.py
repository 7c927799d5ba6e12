"""Listening again after the listener failed, and until there is a broker at all."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from typing import TYPE_CHECKING, Final

from taskiq.health import ListenerState
from taskiq.lifecycle import ended_within, reconnecting
from taskiq.outage import StoppedListeningError
from taskiq.receiver.source import (
    Source,
    forget_closed,
    has_given_up,
    is_disconnected,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.receiver.receiver import Receiver

logger = logging.getLogger("taskiq.receiver")

#: Seconds before the first restart; each further one waits twice as long.
_FIRST_DELAY: Final = 0.1

#: Most seconds between two attempts to listen: how late a worker may be back.
_LONGEST_DELAY: Final = 5.0

#: A listener that was idle for so many seconds is healthy.
_HEALTHY_AFTER: Final = 3.0

#: Seconds after which a broker that is not listened to counts as away. Some clients
#: fail whenever nothing has come for a while; they are back, and healthy, before that.
_AWAY_AFTER: Final = 4.0

#: Seconds between two looks whether the broker has been started.
_STARTING_INTERVAL: Final = 0.5

#: Seconds between two looks whether there is still something to listen to.
_LOOK_INTERVAL: Final = 5.0

#: Seconds between two looks whether a client has lost its server.
_CONNECTION_INTERVAL: Final = 1.0

#: Seconds a broker has to close connections that may be dead.
_CLOSING_LIMIT: Final = 5.0

_FIRST_COMPLETED: Final = asyncio.FIRST_COMPLETED


class RestartDelays:
    """Exponential back-off with full jitter on its upper half.

    The doubling keeps a broken broker from being hammered, the jitter keeps many
    workers from coming back in step (M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015).

    :param longest: most seconds between two attempts.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._failures = 0

    def after_failure(self, *, was_healthy: bool) -> float:
        """Say how many seconds to wait after a failure.

        :param was_healthy: whether it worked before: earlier failures are forgotten.
        """
        if was_healthy:
            self._failures = 0
        # The exponent is bounded: past the cap a larger one would only overflow.
        longest = min(_FIRST_DELAY * 2.0 ** min(self._failures, 16), self._longest)
        self._failures += 1
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load only


async def reconnect(broker: AsyncBroker) -> None:
    """Bring a broker back to where `startup` leaves it.

    Its connections are closed, as far as they can be, and opened again; queues, groups
    and streams that are gone are declared. Hooks that have run do not run again.

    :raises Exception: what the broker's `startup` raises.
    """
    with reconnecting():
        closing = await ended_within(_CLOSING_LIMIT, broker.shutdown())
        try:
            if closing is not None:
                closing.result()
        except (Exception, asyncio.CancelledError) as exc:
            # Of connections that are broken: that is why they are closed.
            logger.debug("Cannot close old connections: %r", exc, exc_info=True)
        forget_closed(broker)
        await broker.startup()


class ListenLoop:
    """Listens to a broker, and again whenever that fails.

    Before it listens again the broker is brought back to where `startup` leaves it, if
    it was started.

    :param make_receiver: called for each attempt with whether the receiver is to start
        the broker.
    :param run_startup: whether the first receiver starts the broker.
    :param gives_up: whether an error with which the first start failed is raised
        instead of trying again.
    :param ends_with_listener: whether a listener that merely returns ends the loop.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        make_receiver: Callable[[bool], Receiver],
        *,
        run_startup: bool,
        gives_up: Callable[[Exception], bool] = lambda _: False,
        ends_with_listener: bool = True,
    ) -> None:
        self._broker = broker
        self._make_receiver = make_receiver
        # Whether a receiver is still to start the broker, and whether one has begun to.
        self._run_startup = run_startup
        self._has_tried_startup = False
        # Whether the broker is started, or not ours to start.
        self._is_up = not run_startup
        self._gives_up = gives_up
        self._ends_with_listener = ends_with_listener
        # The one that listens now, or did last.
        self._receiver: Receiver | None = None
        # Since when it has not listened for long enough to be healthy.
        self._not_listening_since: float | None = None
        self._is_healthy = False
        self._delays = RestartDelays(_LONGEST_DELAY)
        self._outage = broker.lifecycle.outage

    @property
    def state(self) -> ListenerState:
        """What it is at; that it was told to stop is known by who told it."""
        if not self.is_up:
            return ListenerState.STARTING
        since = self._not_listening_since
        lasts = 0.0 if since is None else asyncio.get_running_loop().time() - since
        is_away = lasts > _AWAY_AFTER
        return ListenerState.AWAY if is_away else ListenerState.LISTENING

    @property
    def is_up(self) -> bool:
        """Whether the broker has been started."""
        receiver = self._receiver
        return self._is_up or (receiver is not None and _has_started_broker(receiver))

    async def run(self, finish: asyncio.Event) -> None:
        """Listen until told to stop.

        :raises Exception: what fails once `finish` is set, and what it `gives_up` for.
        :raises asyncio.CancelledError: when cancelled, or the listener ended so.
        """
        attempt = self._listen
        while True:
            self._is_healthy = False
            try:
                return await attempt(finish)
            except Exception as exc:
                if finish.is_set() or (not self._is_up and self._gives_up(exc)):
                    raise
                delay = self._delays.after_failure(was_healthy=self._is_healthy)
                if self._not_listening_since is None:
                    self._not_listening_since = asyncio.get_running_loop().time()
                self._outage.not_listening(
                    exc,
                    delay,
                    is_up=self._is_up,
                    was_healthy=self._is_healthy,
                )
            # A client that could not connect may be a cycle of objects whose finalizers
            # close it, in the loop. Another thread that came upon them could not.
            gc.collect()
            if await _is_set_within(finish, delay):
                return None
            attempt = self._listen_again

    async def _listen_again(self, finish: asyncio.Event) -> None:
        """Listen once, to a broker that is reconnected first if it was started."""
        is_started = self._has_tried_startup or self._broker.lifecycle.is_started
        if not is_started or await self._is_reconnected(finish):
            await self._listen(finish)

    async def _is_reconnected(self, finish: asyncio.Event) -> bool:
        """Reconnect the broker, unless told to stop meanwhile."""
        connecting = asyncio.ensure_future(reconnect(self._broker))
        stopping = asyncio.ensure_future(finish.wait())
        try:
            await asyncio.wait({connecting, stopping}, return_when=_FIRST_COMPLETED)
            is_connected = connecting.done()
        finally:
            stopping.cancel()
            connecting.cancel()
            await asyncio.wait({connecting}, timeout=_CLOSING_LIMIT)
        if is_connected:
            connecting.result()
            self._is_up = True
        return is_connected

    async def _listen(self, finish: asyncio.Event) -> None:
        """Listen once; a stop does not wait for a broker that is still starting.

        :raises StoppedListeningError: when it has ended, and is to listen again.
        """
        receiver = self._receiver = self._make_receiver(self._run_startup)
        self._has_tried_startup |= self._run_startup
        self._run_startup = False
        stop = asyncio.Event()
        listening = asyncio.ensure_future(receiver.listen(stop))
        watching = asyncio.ensure_future(self._watch(receiver, stop))
        stopping = asyncio.ensure_future(finish.wait())
        is_start_cut = False

        def end(_: object) -> None:
            nonlocal is_start_cut
            stop.set()
            # In there some clients try for minutes to reach a server.
            if not (self._is_up or _has_started_broker(receiver)):
                is_start_cut = listening.cancel()

        stopping.add_done_callback(end)
        try:
            await _until_done(listening)
        finally:
            stopping.remove_done_callback(end)
            stopping.cancel()
            watching.cancel()
            self._is_up |= _has_started_broker(receiver)
            self._is_healthy |= getattr(receiver, "has_received", False)
        if is_start_cut:
            return
        if watching.done() and not finish.is_set():
            raise StoppedListeningError(watching.result())
        listening.result()
        if finish.is_set():
            return
        if has_given_up(self._broker):
            raise StoppedListeningError("its client has given up to connect again")
        if not self._ends_with_listener:
            raise StoppedListeningError("it ended by itself")

    async def _watch(self, receiver: Receiver, stop: asyncio.Event) -> str:
        """Look at a listener until what it listens to is gone, and then stop it.

        :returns: what is gone.
        """
        clock = asyncio.get_running_loop().time
        source = Source(self._broker)
        began = clock()
        while not (self._is_up or _has_started_broker(receiver)):
            await asyncio.sleep(_STARTING_INTERVAL)
            began = clock()
        reason = await source.lost()
        await asyncio.sleep(_HEALTHY_AFTER)
        self._is_healthy = True
        self._not_listening_since = None
        self._outage.ended(began)
        while reason is None:
            await self._look_at_connection(_LOOK_INTERVAL)
            reason = await source.lost()
        if not stop.is_set():
            # Told before what was read has ended: that may take long.
            self._not_listening_since = clock()
            self._outage.lost(reason)
        stop.set()
        return reason

    async def _look_at_connection(self, seconds: float) -> None:
        """Tell, for so long at least, of a client that connects again by itself."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        is_away = False
        while is_away or clock() < end:
            await asyncio.sleep(_CONNECTION_INTERVAL)
            was_away, is_away = is_away, is_disconnected(self._broker)
            if is_away:
                self._outage.disconnected()
            elif was_away:
                self._outage.ended(clock())


def _has_started_broker(receiver: Receiver) -> bool:
    # A receiver class of somebody's own need not be a subclass, nor say.
    return getattr(receiver, "has_started_broker", True)


async def _until_done(listening: asyncio.Future[None]) -> None:
    """Wait for a listener.

    Whatever it makes of a cancellation, an error or a wait that goes on: it is passed
    to it each time, and raised once it has ended.
    """
    cancellation: asyncio.CancelledError | None = None
    while not listening.done():
        try:
            await asyncio.wait([listening])
        except asyncio.CancelledError as exc:  # noqa: PERF203 - at most a few
            cancellation = exc
            listening.cancel()
    if cancellation is not None:
        answer = None if listening.cancelled() else listening.exception()
        raise cancellation from answer


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
