"""Argument types shared by the subcommands."""

from __future__ import annotations

import logging
from enum import IntEnum


class LogLevel(IntEnum):
    """Log levels offered on the command line, with the values of `logging`."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    DEBUG = logging.DEBUG
    ERROR = logging.ERROR
    CRITICAL = logging.CRITICAL
    FATAL = logging.FATAL
