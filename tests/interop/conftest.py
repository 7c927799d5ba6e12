"""The exchanges of a test run, held at the same time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from ..support.environments import EnvironmentNotMadeError, released_python
from .cases import HAND_OVERS, SINGLE
from .exchanges import FLEETS, OUR_CLIENTS, OUR_WORKERS, Exchange, Pairing, Stage
from .lines import unavailable

#: A process waits for a server or for others most of its life.
_AT_ONCE = 4

Exchanges: TypeAlias = Mapping[Pairing, "Future[Exchange]"]


@pytest.fixture(params=[*OUR_WORKERS, *OUR_CLIENTS], ids=str)
def exchange(request: pytest.FixtureRequest) -> Exchange:
    """All cases that one worker can serve, for every pairing of two packages."""
    return _exchange(request)


@pytest.fixture(params=FLEETS, ids=str)
def fleet(request: pytest.FixtureRequest) -> Exchange:
    """Messages that workers of both packages, at one queue, hand to each other."""
    return _exchange(request)


def _exchange(request: pytest.FixtureRequest) -> Exchange:
    pairing: Pairing = request.param
    if reason := unavailable(pairing.line):
        pytest.skip(reason)
    exchanges: Exchanges = request.getfixturevalue("exchanges")
    return exchanges[pairing].result()


@pytest.fixture(scope="session")
def exchanges(request: pytest.FixtureRequest, stage: Stage) -> Iterator[Exchanges]:
    """What the tests of this run look at; held before they ask for it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield {
            pairing: pool.submit(stage.hold, pairing, _cases_of(pairing))
            for pairing in _wanted(request.session)
            if unavailable(pairing.line) is None
        }
        pool.shutdown(cancel_futures=True)


def _wanted(session: pytest.Session) -> list[Pairing]:
    """The pairings of the collected tests, each once, in their order."""
    parameters = [
        parameter
        for item in session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        for parameter in item.callspec.params.values()
    ]
    return list(dict.fromkeys(p for p in parameters if isinstance(p, Pairing)))


def _cases_of(pairing: Pairing) -> list[str]:
    return [case.name for case in (SINGLE if len(pairing.workers) == 1 else HAND_OVERS)]


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    try:
        released = released_python()
    except EnvironmentNotMadeError as error:
        pytest.skip(f"there is no released taskiq to talk to: {error}")
    directory = tmp_path_factory.mktemp("stage")
    (directory / "interop").symlink_to(Path(__file__).parent, target_is_directory=True)
    return Stage(directory, {"ours": Path(sys.executable), "released": released})
