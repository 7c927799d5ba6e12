"""What a task asks for by its parameters, resolved for each message."""

# Dependencies are read from the annotations at run time.
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Generic, TypeVar

import pytest
from taskiq_dependencies import ParamInfo

from taskiq import (
    AsyncTaskiqDecoratedTask,
    Context,
    InMemoryBroker,
    TaskiqDepends,
    TaskiqState,
)
from taskiq.exceptions import NoResultError, TaskRejectedError

# Python 3.12 and later: the dependency package throws errors into generators so.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the \(type, exc, tb\) signature of a?throw\(\):DeprecationWarning",
)

_T = TypeVar("_T")

AnyTask = AsyncTaskiqDecoratedTask[..., Any]


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


async def value_of(
    broker: InMemoryBroker,
    function: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Send a function to the broker as a task, and give what it returned."""
    handle = await broker.register_task(function).kiq(*args, **kwargs)
    await broker.wait_all()
    result = await handle.get_result()
    return result.error if result.is_err else result.return_value


# -- What can be a dependency ------------------------------------------------------


def plain() -> str:
    return "plain"


async def coroutine() -> str:
    return "coroutine"


def generator() -> Generator[str, None, None]:
    yield "generator"


async def async_generator() -> AsyncGenerator[str, None]:
    yield "async generator"


@contextmanager
def context_manager() -> Generator[str, None, None]:
    yield "context manager"


@asynccontextmanager
async def async_context_manager() -> AsyncGenerator[str, None]:
    yield "async context manager"


class Instance:
    """Is called."""

    def __call__(self) -> str:
        return "instance"


def nested(inner: Annotated[str, TaskiqDepends(coroutine)]) -> str:
    return f"nested {inner}"


def with_argument(a: str, b: Annotated[str, TaskiqDepends(plain)]) -> str:
    return f"{a} and {b}"


def told_about_itself(info: Annotated[ParamInfo, TaskiqDepends()]) -> str:
    return f"parameter {info.name}"


DEPENDENCIES = [
    (TaskiqDepends(plain), "plain"),
    (TaskiqDepends(coroutine), "coroutine"),
    (TaskiqDepends(generator), "generator"),
    (TaskiqDepends(async_generator), "async generator"),
    (TaskiqDepends(context_manager), "context manager"),
    (TaskiqDepends(async_context_manager), "async context manager"),
    (TaskiqDepends(Instance()), "instance"),
    (TaskiqDepends(nested), "nested coroutine"),
    (TaskiqDepends(with_argument, kwargs={"a": "given"}), "given and plain"),
    (TaskiqDepends(told_about_itself), "parameter wanted"),
]


@pytest.mark.parametrize(("dependency", "expected"), DEPENDENCIES)
async def test_a_dependency_in_annotated_is_resolved(
    dependency: Any,
    expected: str,
    broker: InMemoryBroker,
) -> None:
    async def task(x: int, wanted: Annotated[str, dependency]) -> tuple[int, str]:
        return x, wanted

    assert await value_of(broker, task, 1) == (1, expected)


@pytest.mark.parametrize(("dependency", "expected"), DEPENDENCIES)
async def test_a_dependency_as_default_value_is_resolved(
    dependency: Any,
    expected: str,
    broker: InMemoryBroker,
) -> None:
    def task(x: int, wanted: str = dependency) -> tuple[int, str]:
        return x, wanted

    assert await value_of(broker, task, 1) == (1, expected)


class Settings:
    """Is constructed without anything."""

    url = "default"


class Repository:
    """Has dependencies of its own."""

    def __init__(
        self,
        settings: Annotated[Settings, TaskiqDepends()],
        kind: Annotated[str, TaskiqDepends(plain)],
    ) -> None:
        self.described = f"{kind} at {settings.url}"


class Typed(Generic[_T]):
    """Depends on what its parameter says."""

    def __init__(self, item: _T = TaskiqDepends()) -> None:  # noqa: B008 - how it is declared
        self.item = item


async def test_without_a_name_the_annotation_is_the_dependency(
    broker: InMemoryBroker,
) -> None:
    async def task(repository: Annotated[Repository, TaskiqDepends()]) -> str:
        return repository.described

    async def old_style(repository: Repository = TaskiqDepends()) -> str:  # noqa: B008 - how it is declared
        return repository.described

    assert await value_of(broker, task) == "plain at default"
    assert await value_of(broker, old_style) == "plain at default"


async def test_a_generic_class_gets_what_its_parameter_says(
    broker: InMemoryBroker,
) -> None:
    async def task(typed: Annotated[Typed[Repository], TaskiqDepends()]) -> str:
        return typed.item.described

    assert await value_of(broker, task) == "plain at default"


# -- When they are resolved and closed ---------------------------------------------


class Opened:
    """Counts what was opened, and notes how each was closed."""

    def __init__(self) -> None:
        self.count = 0
        self.ends: list[str] = []

    def __call__(self) -> Generator[int, None, None]:
        self.count += 1
        try:
            yield self.count
        except LookupError:
            self.ends.append("after an error")
            raise
        self.ends.append("well")


async def test_one_value_serves_a_whole_message_and_no_other(
    broker: InMemoryBroker,
) -> None:
    opened = Opened()

    def user(value: Annotated[int, TaskiqDepends(opened)]) -> int:
        return value

    async def task(
        one: Annotated[int, TaskiqDepends(opened)],
        two: Annotated[int, TaskiqDepends(user)],
    ) -> tuple[int, int]:
        assert opened.ends == ["well"] * (one - 1)
        return one, two

    assert await value_of(broker, task) == (1, 1)
    assert await value_of(broker, task) == (2, 2)
    assert opened.ends == ["well", "well"]


async def test_a_value_may_be_asked_for_anew(broker: InMemoryBroker) -> None:
    opened = Opened()

    async def task(
        one: Annotated[int, TaskiqDepends(opened, use_cache=False)],
        two: Annotated[int, TaskiqDepends(opened, use_cache=False)],
    ) -> set[int]:
        return {one, two}

    assert await value_of(broker, task) == {1, 2}


@pytest.mark.parametrize(
    ("propagate_exceptions", "end"),
    [(True, "after an error"), (False, "well")],
)
async def test_a_dependency_is_closed_with_the_error_of_its_task_if_told_to(
    propagate_exceptions: bool,
    end: str,
) -> None:
    broker = InMemoryBroker(propagate_exceptions=propagate_exceptions)
    opened = Opened()

    async def task(value: Annotated[int, TaskiqDepends(opened)]) -> None:
        raise LookupError("of the task")

    assert repr(await value_of(broker, task)) == "LookupError('of the task')"
    assert opened.ends == [end]


async def test_a_value_sent_by_the_client_wins_over_the_dependency(
    broker: InMemoryBroker,
) -> None:
    async def task(wanted: Annotated[str, TaskiqDepends(plain)]) -> str:
        return wanted

    assert await value_of(broker, task, wanted="sent") == "sent"


def no_result() -> None:
    raise NoResultError


async def test_a_dependency_may_decide_that_there_is_no_result(
    broker: InMemoryBroker,
) -> None:
    async def task(decided: Annotated[None, TaskiqDepends(no_result)]) -> None:
        raise NotImplementedError

    registered: AnyTask = broker.register_task(task)
    handle = await registered.kiq()
    await broker.wait_all()
    assert not await handle.is_ready()


def rejection(context: Annotated[Context, TaskiqDepends()]) -> None:
    context.reject()


async def test_a_dependency_may_reject_the_message(broker: InMemoryBroker) -> None:
    async def task(decided: Annotated[None, TaskiqDepends(rejection)]) -> None:
        raise NotImplementedError

    assert isinstance(await value_of(broker, task), TaskRejectedError)


# -- What the library provides -----------------------------------------------------


def task_id(context: Annotated[Context, TaskiqDepends()]) -> str:
    return context.message.task_id


async def test_task_and_dependencies_are_told_about_the_message(
    broker: InMemoryBroker,
) -> None:
    async def task(
        context: Annotated[Context, TaskiqDepends()],
        from_dependency: Annotated[str, TaskiqDepends(task_id)],
        old_style: Context = TaskiqDepends(),  # noqa: B008 - how it is declared
    ) -> bool:
        assert old_style is context
        assert context.broker is broker
        return from_dependency == context.message.task_id

    assert await value_of(broker, task) is True


async def test_the_state_of_the_broker_lives_as_long_as_the_broker(
    broker: InMemoryBroker,
) -> None:
    async def task(state: Annotated[TaskiqState, TaskiqDepends()]) -> int:
        state.count = state.get("count", 0) + 1
        count: int = state["count"]
        return count

    broker.state.count = 10
    assert await value_of(broker, task) == 11
    assert await value_of(broker, task) == 12
    assert broker.state.count == 12


# -- What the application provides or replaces -------------------------------------


class SpecialSettings(Settings):
    """Are given by the application."""

    url = "special"


async def described(repository: Annotated[Repository, TaskiqDepends()]) -> str:
    return repository.described


async def test_values_of_the_application_satisfy_dependencies_of_their_type(
    broker: InMemoryBroker,
) -> None:
    broker.add_dependency_context({Settings: SpecialSettings()})
    assert await value_of(broker, described) == "plain at special"


async def test_replaced_dependencies_are_used_wherever_they_are_asked_for(
    broker: InMemoryBroker,
) -> None:
    broker.dependency_overrides.update(
        {plain: lambda: "fake", Settings: SpecialSettings}
    )
    assert await value_of(broker, described) == "fake at special"

    broker.dependency_overrides = {}
    assert await value_of(broker, described) == "plain at default"


class FakeContext:
    """Stands in for the context in a test."""

    name = "fake"


async def test_even_the_context_may_be_replaced(broker: InMemoryBroker) -> None:
    async def task(context: Annotated[Any, TaskiqDepends(Context)]) -> str:
        name: str = context.name
        return name

    broker.dependency_overrides[Context] = FakeContext
    assert await value_of(broker, task) == "fake"
