"""One worker for all the rules of a line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.hub import Hub

from .lines import LINES, Line
from .stage import Client, Stage

#: What plugins and their libraries do where it is not for us to say.
FOREIGN = (
    "ignore:unclosed:ResourceWarning",
    "ignore:loop is closed:ResourceWarning",
    "ignore:(open|read)_text is deprecated:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for warning in FOREIGN:
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="session", params=LINES.values(), ids=str)
def line(request: pytest.FixtureRequest) -> Line:
    """Every line whose server answers."""
    asked: Line = request.param
    if reason := asked.unavailable():
        pytest.skip(reason)
    return asked


@pytest.fixture(scope="session")
def stage(line: Line, hub: Hub) -> Iterator[Stage]:
    """A line with a worker."""
    with Stage(line, hub).opened() as stage, stage.worker():
        yield stage


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[Client]:
    async with stage.client() as client:
        yield client
