"""Logging of the worker command, the same in all of its processes."""

from __future__ import annotations

import logging


def configure_logging(level: int, log_format: str) -> None:
    """Log to standard error, unless the root logger has a handler already."""
    logging.basicConfig(level=level, format=log_format)


def set_levels(level: int) -> None:
    """Set the level of taskiq's own loggers, however logging is configured."""
    logging.getLogger("taskiq").setLevel(level)
    # Watching files would otherwise log each event at DEBUG, its own log file's too.
    logging.getLogger("watchdog.observers.inotify_buffer").setLevel(logging.INFO)
