"""Logging of the worker command, the same in all of its processes."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from taskiq.outage import brief, is_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

#: The format that is an object of JSON for each line.
JSON: Final = "json"

#: What every record has; anything else was given to it with `extra`.
_OF_EVERY_RECORD: Final = frozenset(
    vars(logging.makeLogRecord({})) | {"message": "", "asctime": "", "taskName": ""},
)


class JSONFormatter(logging.Formatter):
    """Writes a record as an object of JSON in a line.

    Its fields are `time` (UTC, ISO 8601), `logger`, `level`, `process` and `message`;
    `exception` with a traceback if there is one, and what was given with `extra`.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Make the line; what JSON has no form for is written as its `repr`."""
        fields: dict[str, Any] = {
            "time": self.formatTime(record),
            "logger": record.name,
            "level": record.levelname,
            "process": record.processName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        for name, value in vars(record).items():
            if name not in _OF_EVERY_RECORD:
                fields.setdefault(name, value)
        return json.dumps(fields, default=repr)


#: What clients say, by logger, of each attempt to connect that then fails with an error
#: which taskiq tells.
_TOLD_ANYWAY: Final = {
    "aiormq.connection": "error when creating transport",
    "aio_pika.robust_connection": "Connection to ",
}
#: And what they say without a traceback, once they have been connected.
_TOLD_LATER: Final = {
    "aio_pika.robust_connection": r"Connection attempt to ",
    "aio_pika.tools": r"Callback .* error: ChannelInvalidStateError",
}

#: Loggers of clients that connect again by themselves, and tell of each attempt.
_CLIENTS: Final = (*_TOLD_ANYWAY, "aio_pika.tools", "asyncpg.pool", "nats.aio.client")


@contextmanager
def quiet_clients(has_been_up: Callable[[], bool]) -> Generator[None, None, None]:
    """Leave out meanwhile what clients say of a server that is away.

    The worker tells of it. Only NATS tells itself of each attempt to connect at first.

    :param has_been_up: whether the broker was started, so that the worker watches it.
    """

    def is_told(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not is_unreachable(error):
            return True
        if has_been_up() and (error or _is_one_of(record, _TOLD_LATER)):
            return False
        if error is not None:
            # Without its traceback.
            record.msg, record.args = f"{record.getMessage()}: {brief(error)}", ()
            record.exc_info = None
        return not _is_one_of(record, _TOLD_ANYWAY)

    loggers = [logging.getLogger(name) for name in _CLIENTS]
    for each in loggers:
        each.addFilter(is_told)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(is_told)


def _is_one_of(record: logging.LogRecord, texts: Mapping[str, str]) -> bool:
    text = texts.get(record.name)
    return text is not None and re.match(text, record.getMessage()) is not None


def configure_logging(level: int, log_format: str) -> None:
    """Log to standard error, unless the root logger has a handler already.

    :param log_format: a format of `logging`, or `json`.
    """
    if log_format != JSON:
        logging.basicConfig(level=level, format=log_format)
        return
    # Lines of `warnings`, too: whoever reads the log expects nothing but objects.
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def set_levels(level: int) -> None:
    """Set the level of taskiq's own loggers, however logging is configured."""
    logging.getLogger("taskiq").setLevel(level)
    # Watching files would otherwise log each event at DEBUG, its own log file's too.
    logging.getLogger("watchdog.observers.inotify_buffer").setLevel(logging.INFO)
