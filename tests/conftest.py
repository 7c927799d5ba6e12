"""Settings of the whole test suite."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator


def _nothing_may_be_skipped() -> bool:
    """Continuous integration has all that the tests need, and says so with CI=true."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that keeps its reason; an expected failure stays."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    where, reason = "", ""
    if isinstance(report.longrepr, tuple):
        where, _, reason = report.longrepr
    if Path(where).parts[-2:] == ("testing", "conformance.py"):
        return  # nothing is missing here: what a broker need not do is not asked of it
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, which CI forbids: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Covers skips of one test: marks, fixtures, `pytest.skip` in the body."""
    report = yield
    if _nothing_may_be_skipped():
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    """Covers skips of a whole module: `importorskip`, `allow_module_level`."""
    report = yield
    if _nothing_may_be_skipped():
        _fail_if_skipped(report)
    return report


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection.

    Some tests collect hundreds of times, as each restart of a listener does.
    """
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """Say what `-n auto` is: one more than cores, for many tests wait for processes."""
    return (os.cpu_count() or 1) + 1


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run in the background of a shell does not hear Ctrl-C, nor would the commands
    # that tests start; with a handler here they begin with the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Every run of a commit tries the same examples: what fails is the change's doing. The
# nightly run looks for what nobody has thought of: ten times as many, and others.
settings.register_profile("default", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "default")
