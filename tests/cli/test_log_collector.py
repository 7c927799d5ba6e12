from __future__ import annotations

import io
import logging
import sys

import pytest

from taskiq.cli.worker.log_collector import Redirector, log_collector

LOGGER = logging.getLogger("collected")


def test_what_is_printed_and_logged_is_copied(
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = io.StringIO()
    with log_collector(target, "%(levelname)s:%(message)s") as given:
        assert given is target
        print("to stdout", flush=True)  # noqa: T201 - what is collected
        print("to stderr", file=sys.stderr)  # noqa: T201
        LOGGER.warning("to the log")
    assert target.getvalue() == "to stdout\nto stderr\nWARNING:to the log\n"
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")


def test_the_level_of_a_logger_decides_what_is_copied() -> None:
    target = io.StringIO()
    LOGGER.setLevel(logging.ERROR)
    try:
        with log_collector(target, "%(message)s"):
            LOGGER.warning("not this")
            LOGGER.error("but this")
    finally:
        LOGGER.setLevel(logging.NOTSET)
    assert target.getvalue() == "but this\n"


def fail_while_collecting() -> None:
    before = sys.stdout
    with log_collector(io.StringIO(), "%(message)s"):
        assert sys.stdout is not before
        raise ZeroDivisionError


def test_everything_is_restored_even_after_an_error() -> None:
    before = (sys.stdout, sys.stderr, list(logging.getLogger().handlers))
    with pytest.raises(ZeroDivisionError):
        fail_while_collecting()
    assert (sys.stdout, sys.stderr, logging.getLogger().handlers) == before


def test_a_redirector_writes_to_every_stream_and_flushes_it() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    streams = Stream(), Stream()
    redirector = Redirector(*streams)
    redirector.write("text")
    redirector.flush()
    assert [stream.getvalue() for stream in streams] == ["text", "text"]
    assert [stream.flushed for stream in streams] == [1, 1]
