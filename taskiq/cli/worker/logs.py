"""Logging of the worker command, the same in all of its processes."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Final

from taskiq.outage import brief, is_unreachable

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


def _is_told(record: logging.LogRecord) -> bool:
    """Leave out what is told anyway; filters of its loggers ask."""
    return not str(record.msg).startswith(_TOLD_ANYWAY[record.name])


def _in_one_line(record: logging.LogRecord) -> bool:
    """Take the traceback out of a record that a server is away."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and is_unreachable(error):
        record.msg, record.args = f"{record.getMessage()}: {brief(error)}", ()
        record.exc_info = None
    return True


def _quiet_clients() -> None:
    for name in _TOLD_ANYWAY:
        logging.getLogger(name).addFilter(_is_told)
    logging.getLogger("nats.aio.client").addFilter(_in_one_line)


def configure_logging(level: int, log_format: str) -> None:
    """Log to standard error, unless the root logger has a handler already.

    Above DEBUG clients do not say with each attempt that a server is away.

    :param log_format: a format of `logging`, or `json`.
    """
    if level > logging.DEBUG:
        _quiet_clients()
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
