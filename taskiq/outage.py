"""Telling of a broker that is away: when it begins, once a minute, and at its end.

Whoever meets it says so here, whether it listens, stores results or acknowledges; so a
process has one story of an outage, however many messages it holds.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

logger = logging.getLogger("taskiq.receiver")

#: Seconds between two warnings of an outage that goes on.
_WARNING_INTERVAL: Final = 60.0

#: Most characters of an error's text in a line of the log.
_MOST_TEXT: Final = 300

#: What clients name their errors of lost connections, which need not be an `OSError`.
_NAMES: Final = ("Connect", "Disconnect", "NoServers", "ChannelInvalidState", "Timeout")


class StoppedListeningError(Exception):
    """A listener has ended, and was not to; its text says why."""


def brief(error: BaseException) -> str:
    """Describe an error in one line; of a group, the first error in it."""
    error = _first_of(error)
    try:
        text = " ".join(str(error).split())[:_MOST_TEXT]
    except Exception:  # noqa: BLE001 - of a class of the application, which has failed
        text = "<its str() failed>"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def is_unreachable(error: BaseException) -> bool:
    """Tell whether an error means that a server is away, not that a value is wrong."""
    seen: set[int] = set()
    cause: BaseException | None = _first_of(error)
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, (OSError, asyncio.TimeoutError)):
            return True
        if any(
            part in kind.__name__ for kind in type(cause).__mro__ for part in _NAMES
        ):
            return True
        cause = cause.__cause__
    return False


def _first_of(error: BaseException) -> BaseException:
    # Not the type of a group: type checkers do not know what is in it then.
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


class Outage:
    """What is known of the outage of one broker and of its result backend.

    An attempt to start the broker for the first time is told of each time.

    :ivar is_on: whether there is one.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._has_listened = False
        self._is_told = False
        self._began_at = 0.0
        self._told_at = 0.0
        self._is_listener_away = False
        # What cannot be done to messages, until it can be again.
        self._failing: set[str] = set()
        self._unsettled = 0

    def listens(self) -> bool:
        """Note that somebody begins to listen.

        :returns: whether that is to be told: not again at each attempt in an outage.
        """
        is_to_be_told = not (self.is_on and self._has_listened)
        self._has_listened = True
        return is_to_be_told

    def not_listening(
        self,
        error: Exception,
        delay: float,
        *,
        is_up: bool,
        was_healthy: bool = False,
    ) -> None:
        """Tell that listening failed, and is tried again after a delay.

        A read that was given up by a client after a while without messages is no outage
        yet: it is one when the next attempt fails, too.

        :param is_up: whether the broker was started before.
        :param was_healthy: whether it was listened to without an error before.
        """
        self._is_listener_away = True
        if was_healthy and not self.is_on and _is_timeout(error):
            self.is_on, self._began_at = True, _now()
            logger.debug("Listening again after a read without messages: %r", error)
            return
        what = (
            "The listener failed, it is started again"
            if is_up
            else "Cannot start the broker, it is tried again"
        )
        is_new, is_to_be_told = self._note()
        # Of an error of another kind it is not known that only a server is away.
        is_explained = is_unreachable(error) or isinstance(error, StoppedListeningError)
        has_traceback = is_up and is_new and not is_explained
        self._tell(
            f"{what} in {delay:.1f} s: {brief(error)}",
            error if has_traceback else None,
            is_told=is_to_be_told or not is_up,
        )

    def lost(self, reason: str) -> None:
        """Tell that what is listened to is gone; what was read ends before a restart.

        :param reason: what is gone.
        """
        self._is_listener_away = True
        _, is_to_be_told = self._note()
        what = "The listener failed, it is started again once what it has read is done"
        self._tell(f"{what}: {reason}.", None, is_told=is_to_be_told)

    def disconnected(self) -> None:
        """Tell that a client has lost its server, and connects again by itself."""
        self._is_listener_away = True
        is_new, is_to_be_told = self._note()
        if is_to_be_told:
            text = "The broker is away, its client tries to connect again."
            if not is_new:
                text += f" So it is since {self._told_at - self._began_at:.0f} s."
            self._tell(text, None, is_told=True)

    def not_settled(self, what: str, subject: object, error: BaseException) -> None:
        """Tell that a message cannot be settled, as a server cannot be reached.

        :param what: what cannot be done; "Cannot acknowledge".
        :param subject: names the message, by its `str`.
        """
        self._failing.add(what)
        self._unsettled += 1
        is_new, is_to_be_told = self._note()
        text = f"{what} {subject}: {brief(error).rstrip('.')}."
        if is_new:
            text += " Further messages are counted until that is possible again."
        elif is_to_be_told:
            count = messages(self._unsettled)
            seconds = self._told_at - self._began_at
            text += f" So it is since {seconds:.0f} s, for {count}."
        self._tell(text, None, is_told=is_to_be_told)

    def worked(self, what: str) -> None:
        """Note that something could be done to a message which could not be before."""
        self._failing.discard(what)
        if not (self._failing or self._is_listener_away):
            self.ended(_now())

    def ended(self, at: float) -> None:
        """Tell that all is well again, if it was not.

        :param at: since when, by the event loop's time.
        """
        if self._is_told:
            seconds = max(at - self._began_at, 0.0)
            text = f"The broker is back after {seconds:.1f} s."
            if self._unsettled:
                count = messages(self._unsettled)
                text += f" {count} could not be settled, and stayed unacknowledged."
            fields = {"seconds": round(seconds, 3), "messages": self._unsettled}
            logger.warning(text, extra=fields)
        self.is_on = self._is_told = self._is_listener_away = False
        self._failing.clear()
        self._unsettled = 0

    def _note(self) -> tuple[bool, bool]:
        """Note a failure.

        :returns: whether it is the first one that is told, and whether it is told.
        """
        now = _now()
        if not self.is_on:
            self.is_on, self._began_at = True, now
        is_new, self._is_told = not self._is_told, True
        is_to_be_told = is_new or now - self._told_at >= _WARNING_INTERVAL
        if is_to_be_told:
            self._told_at = now
        return is_new, is_to_be_told

    def _tell(
        self,
        text: str,
        error: BaseException | None,
        *,
        is_told: bool,
    ) -> None:
        level = logging.WARNING if is_told else logging.DEBUG
        fields = {"messages": self._unsettled}
        logger.log(level, "%s", text, exc_info=error, extra=fields)


def _is_timeout(error: BaseException) -> bool:
    return "Timeout" in type(_first_of(error)).__name__


def messages(count: int) -> str:
    """Say how many messages, in good grammar."""
    return "1 message" if count == 1 else f"{count} messages"


def _now() -> float:
    return asyncio.get_running_loop().time()
