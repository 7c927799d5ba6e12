import asyncio
from collections.abc import Generator

import pytest

from taskiq.utils import maybe_awaitable
from taskiq.warnings import TaskiqDeprecationWarning


class Seven:
    def __await__(self) -> Generator[None, None, int]:
        return (yield) or 7


async def seven() -> int:
    return 7


async def test_a_coroutine_is_awaited() -> None:
    assert await maybe_awaitable(seven()) == 7


async def test_any_awaitable_is_awaited() -> None:
    assert await maybe_awaitable(Seven()) == 7


async def test_a_future_is_awaited() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)

    assert await maybe_awaitable(future) == 7


@pytest.mark.parametrize("value", [7, None, [], seven])
async def test_any_other_value_comes_back_as_it_is(value: object) -> None:
    assert await maybe_awaitable(value) is value


async def test_errors_of_the_awaitable_propagate() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        await maybe_awaitable(fail())


def test_the_deprecation_warning_is_shown_by_default() -> None:
    assert issubclass(TaskiqDeprecationWarning, UserWarning)
    assert not issubclass(TaskiqDeprecationWarning, DeprecationWarning)
