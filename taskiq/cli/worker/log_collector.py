"""Copying what is printed and logged somewhere else."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Generator


class Redirector:
    """A text stream that passes everything on to several others."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, message: Any) -> None:
        """Write to every stream."""
        for stream in self.streams:
            stream.write(message)

    def flush(self) -> None:
        """Flush every stream."""
        for stream in self.streams:
            stream.flush()


@contextmanager
def log_collector(
    new_target: TextIO,
    custom_format: str,
) -> Generator[TextIO, None, None]:
    """Copy stdout, stderr and log records to a stream while the block runs.

    The original streams and log handlers get everything as well; no level is changed.

    :param new_target: where the copies go.
    :param custom_format: format of the log records in the copy.
    :returns: a context manager that gives `new_target`.
    """
    handler = logging.StreamHandler(new_target)
    handler.setFormatter(logging.Formatter(custom_format))
    root = logging.getLogger()
    root.addHandler(handler)
    # All that printing asks of a stream is to be written to and flushed.
    stdout = cast("TextIO", Redirector(new_target, sys.stdout))
    stderr = cast("TextIO", Redirector(new_target, sys.stderr))
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            yield new_target
    finally:
        root.removeHandler(handler)
