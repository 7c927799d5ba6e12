"""The trials of a test run, several at the same time: most of one is waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import pytest

from .lines import unavailable
from .servers import OWN_SERVERS
from .trial import Outcome, Trial, run

_AT_ONCE = 3

Outcomes: TypeAlias = Mapping[Trial, "Future[Outcome]"]


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """What came of the trial that is the parameter; nothing may be lost in any."""
    trial: Trial = request.param
    if reason := _impossible(trial):
        pytest.skip(reason)
    outcomes: Outcomes = request.getfixturevalue("outcomes")
    found = outcomes[trial].result()
    print(found.log)  # noqa: T201 - pytest captures it
    assert found.strikes > 0 or trial.fault == "none"
    assert (found.lost, found.wrong, found.is_hung) == (0, 0, False)
    return found


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """What the tests of this run look at; begun before they ask for it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield {
            trial: pool.submit(_run, trial)
            for trial in _wanted(request.session)
            if _impossible(trial) is None
        }
        pool.shutdown(cancel_futures=True)


def _run(trial: Trial) -> Outcome:
    return asyncio.run(run(trial))


def _impossible(trial: Trial) -> str | None:
    if trial.fault == "restart" and not OWN_SERVERS[trial.line].is_installed():
        return f"{OWN_SERVERS[trial.line].program} is not installed"
    return unavailable(trial.line)


def _wanted(session: pytest.Session) -> list[Trial]:
    """The trials of the collected tests, each once, in their order."""
    parameters = [
        parameter
        for item in session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        for parameter in item.callspec.params.values()
    ]
    return list(dict.fromkeys(p for p in parameters if isinstance(p, Trial)))
