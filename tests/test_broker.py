"""What a broker is made of, how it starts and stops, how functions become its tasks."""

import functools
import inspect
import logging
import re
import sys
import warnings
import weakref
from abc import ABC
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar

import pytest

from taskiq import (
    AckableMessage,
    AsyncBroker,
    AsyncTaskiqDecoratedTask,
    BrokerMessage,
    TaskiqEvents,
    TaskiqMiddleware,
    TaskiqState,
)
from taskiq.abc.broker import default_id_generator
from taskiq.exceptions import TaskBrokerMismatchError
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.kicker import AsyncKicker
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import JSONSerializer, PickleSerializer
from taskiq.warnings import TaskiqDeprecationWarning
from tests.support.brokers import QueueBroker
from tests.support.recorders import (
    RecordingBackend,
    StartStopBackend,
    StartStopMiddleware,
)

_T = TypeVar("_T")

#: Any task; what these tests look at does not depend on its types.
AnyTask = AsyncTaskiqDecoratedTask[..., Any]


class PlainBroker(AsyncBroker):
    """Has nothing of its own but the two methods every broker has to have."""

    async def kick(self, message: BrokerMessage) -> None:
        raise NotImplementedError

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        raise NotImplementedError
        yield b""


def number(x: int = 0) -> int:
    return x


@pytest.fixture
def broker() -> PlainBroker:
    return PlainBroker()


def new_id() -> str:
    return "new"


# -- The constructor ---------------------------------------------------------------


def test_a_new_broker_has_the_attributes_that_plugins_and_applications_use() -> None:
    broker = PlainBroker()

    assert broker.middlewares == []
    assert type(broker.result_backend) is DummyResultBackend
    assert broker.decorator_class is AsyncTaskiqDecoratedTask
    assert type(broker.serializer) is JSONSerializer
    assert type(broker.formatter) is ProxyFormatter
    assert broker.formatter.broker is broker
    assert broker.id_generator is default_id_generator
    assert broker.local_task_registry == {}
    assert broker.event_handlers == {}
    assert broker.event_handlers[TaskiqEvents.WORKER_STARTUP] == []
    assert type(broker.state) is TaskiqState
    assert broker.custom_dependency_context == {}
    assert broker.dependency_overrides == {}
    assert broker.is_worker_process is False
    assert broker.is_scheduler_process is False


def test_two_brokers_share_no_state_but_the_global_registry() -> None:
    one, other = vars(PlainBroker()), vars(PlainBroker())

    shared = {name for name in one if one[name] is other[name]}

    assert shared == {
        "decorator_class",
        "id_generator",
        "is_scheduler_process",
        "is_worker_process",
    }
    assert PlainBroker().global_task_registry is AsyncBroker.global_task_registry


def test_generated_ids_are_32_hexadecimal_digits_and_never_the_same() -> None:
    ids = {default_id_generator() for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


def test_constructor_arguments_work_with_one_deprecation_warning_each() -> None:
    backend = RecordingBackend()

    with pytest.warns(TaskiqDeprecationWarning) as caught:
        broker = PlainBroker(backend, new_id)

    assert broker.result_backend is backend
    assert broker.id_generator is new_id
    hints = ("with_result_backend", "with_id_generator")
    for warning, hint in zip(caught, hints, strict=True):
        assert hint in str(warning.message)
        assert warning.filename == __file__


def test_constructor_arguments_that_are_none_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broker = PlainBroker(result_backend=None, task_id_generator=None)

    assert type(broker.result_backend) is DummyResultBackend
    assert broker.id_generator is default_id_generator


@pytest.mark.parametrize("missing", ["kick", "listen"])
def test_a_broker_has_to_say_how_it_sends_and_listens(missing: str) -> None:
    methods: dict[str, Any] = {"kick": PlainBroker.kick, "listen": PlainBroker.listen}
    del methods[missing]
    unfinished: type[Any] = type("Unfinished", (AsyncBroker,), methods)

    with pytest.raises(TypeError, match=missing):
        unfinished()


def test_brokers_are_told_apart_watched_and_given_attributes_by_others() -> None:
    broker = PlainBroker()

    assert broker != PlainBroker()
    assert {broker: "found"}[broker] == "found"
    assert weakref.ref(broker)() is broker
    setattr(broker, mark := "_is_instrumented_by_opentelemetry", True)
    assert vars(broker)[mark] is True


def test_instrumentation_may_wrap_the_constructor_of_all_brokers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = AsyncBroker.__init__
    built: list[AsyncBroker] = []

    @functools.wraps(original)
    def noting(self: AsyncBroker, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        built.append(self)

    assert inspect.isfunction(original)
    monkeypatch.setattr(AsyncBroker, "__init__", noting)
    broker = PlainBroker()
    assert built == [broker]


# -- Brokers as plugins write them -------------------------------------------------


class Connected:
    """A mixin with a constructor of its own."""

    def __init__(self, *args: Any, url: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = url


class MixedBroker(Connected, PlainBroker, ABC):
    """Is told its result backend by keyword."""

    def __init__(self, url: str, backend: RecordingBackend | None = None) -> None:
        super().__init__(result_backend=backend, task_id_generator=None, url=url)


class PostgresLikeBroker(PlainBroker, Connected, ABC):
    """Has the mixin behind the broker, where no constructor reaches it."""


class GenericBroker(PlainBroker, ABC, Generic[_T]):
    """Passes nothing on."""

    def __init__(self, message: _T) -> None:
        super().__init__()
        self.message = message


class PositionalBroker(PlainBroker):
    """Passes everything on by position."""

    def __init__(
        self,
        backend: RecordingBackend | None = None,
        ids: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(backend, ids)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MixedBroker("url"),
        PostgresLikeBroker,
        lambda: GenericBroker[str]("text"),
        PositionalBroker,
    ],
)
def test_brokers_combine_with_mixins_abc_and_generic(
    build: Callable[[], AsyncBroker],
) -> None:
    broker = build()

    assert type(broker.result_backend) is DummyResultBackend
    assert broker.register_task(number).broker is broker


def test_a_subclass_warns_of_deprecated_arguments_it_passes_on() -> None:
    with pytest.warns(TaskiqDeprecationWarning, match="with_result_backend"):
        MixedBroker("url", RecordingBackend())
    with pytest.warns(TaskiqDeprecationWarning, match="with_id_generator"):
        PositionalBroker(None, new_id)


class TopicKicker(AsyncKicker[..., Any]):
    """Adds a label of its broker, in a new dict."""

    def with_topic(self, topic: str) -> "TopicKicker":
        self.labels = {**self.labels, "topic": topic}
        return self


class TopicTask(AsyncTaskiqDecoratedTask[..., Any]):
    """Is sent by a kicker of its own."""

    def kicker(self) -> TopicKicker:
        return TopicKicker(
            task_name=self.task_name,
            broker=self.broker,
            labels=self.labels,
            return_type=self.return_type,
        )


class TopicBroker(QueueBroker):
    """Replaces what its tasks are, and adds a label to each, as a Kafka broker does."""

    def __init__(self) -> None:
        super().__init__()
        self.decorator_class = TopicTask

    def task(self, task_name: Any = None, **labels: Any) -> Any:
        labels.setdefault("topic", "default")
        if callable(task_name):
            return super().task(task_name, **labels)
        return super().task(task_name=task_name, **labels)


async def test_a_broker_may_replace_its_decorator_and_what_it_makes() -> None:
    broker = TopicBroker()
    bare = broker.task(number)
    named = broker.task("named", topic="own")(number)
    registered = broker.register_task(number, "registered")

    await bare.kiq(1)
    await named.kicker().with_topic("third").kiq(2)

    assert [type(each) for each in (bare, named, registered)] == [TopicTask] * 3
    assert [each.labels["topic"] for each in (bare, named, registered)] == [
        "default",
        "own",
        "default",
    ]
    assert [each.labels for each in broker.take_all()] == [
        {"topic": "default"},
        {"topic": "third"},
    ]


class WrappingBroker(PlainBroker):
    """Makes a task of a message and a schedule, as a broker around another one does."""

    def task(  # type: ignore[override] # as taskiq-faststream does
        self,
        message: Any = None,
        *,
        schedule: list[dict[str, str]],
        **labels: Any,
    ) -> AnyTask:
        decorated: AnyTask = super().task(message=message, schedule=schedule, **labels)(
            lambda: None,
        )
        return decorated


def test_a_broker_may_give_its_decorator_another_signature() -> None:
    broker = WrappingBroker()

    task = broker.task(new_id, schedule=[{"cron": "* * * * *"}], priority=3)

    assert task.labels == {
        "message": new_id,
        "schedule": [{"cron": "* * * * *"}],
        "priority": 3,
    }
    assert broker.find_task(task.task_name) is task


# -- Fluent configuration ----------------------------------------------------------


def test_configuration_changes_the_broker_and_returns_it(broker: PlainBroker) -> None:
    backend, serializer = RecordingBackend(), PickleSerializer()
    formatter, middleware = JSONFormatter(), TaskiqMiddleware()

    configured = (
        broker.with_result_backend(backend)
        .with_id_generator(new_id)
        .with_serializer(serializer)
        .with_formatter(formatter)
        .with_middlewares(middleware)
        .with_event_handlers(TaskiqEvents.CLIENT_STARTUP, print)
    )

    assert configured is broker
    assert broker.result_backend is backend
    assert broker.id_generator is new_id
    assert broker.serializer is serializer
    assert broker.formatter is formatter
    assert broker.middlewares == [middleware]
    assert broker.event_handlers == {TaskiqEvents.CLIENT_STARTUP: [print]}


def test_middlewares_are_appended_in_order_and_told_their_broker(
    broker: PlainBroker,
) -> None:
    first, second, third = (TaskiqMiddleware() for _ in range(3))

    broker.add_middlewares(first)
    broker.with_middlewares(second, third)
    broker.add_middlewares(first)

    assert broker.middlewares == [first, second, third, first]
    assert {each.broker for each in broker.middlewares} == {broker}


@pytest.mark.parametrize("method", ["add_middlewares", "with_middlewares"])
def test_what_is_no_middleware_is_skipped_with_a_warning_that_names_it(
    method: str,
    broker: PlainBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    middleware = TaskiqMiddleware()

    getattr(broker, method)(TaskiqMiddleware, "text", middleware)

    assert broker.middlewares == [middleware]
    skipped = [(each.name, each.levelno) for each in caplog.records]
    assert skipped == [("taskiq", logging.WARNING)] * 2
    assert "text" in caplog.messages[1]


class MinimalMiddleware(TaskiqMiddleware):
    """Never calls the constructor of its base."""

    def __init__(self) -> None:
        pass


def test_a_middleware_need_not_call_the_constructor_of_its_base(
    broker: PlainBroker,
) -> None:
    middleware = MinimalMiddleware()
    broker.add_middlewares(middleware)
    assert middleware.broker is broker


def test_handlers_are_appended_to_every_event_they_are_given_for(
    broker: PlainBroker,
) -> None:
    def first(state: TaskiqState) -> None: ...
    def second(state: TaskiqState) -> None: ...

    decorate = broker.on_event(TaskiqEvents.CLIENT_STARTUP, TaskiqEvents.WORKER_STARTUP)
    assert decorate(first) is first
    broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, second)
    broker.with_event_handlers(TaskiqEvents.CLIENT_STARTUP, first, second)

    assert broker.event_handlers == {
        TaskiqEvents.CLIENT_STARTUP: [first, second, first, second],
        TaskiqEvents.WORKER_STARTUP: [first],
    }


def test_values_for_dependencies_are_added_to_those_there(broker: PlainBroker) -> None:
    context = broker.custom_dependency_context
    broker.add_dependency_context({int: 1, str: "old"})
    broker.add_dependency_context({str: "new"})

    assert context is broker.custom_dependency_context
    assert context == {int: 1, str: "new"}


# -- Start and stop ----------------------------------------------------------------


def noting_broker(journal: list[str]) -> PlainBroker:
    """Build a broker whose every part notes when it starts and stops."""
    broker = PlainBroker().with_result_backend(StartStopBackend(journal))
    broker.add_middlewares(
        StartStopMiddleware("one", journal),
        TaskiqMiddleware(),
        StartStopMiddleware("two", journal),
    )

    def handler(event: TaskiqEvents) -> Callable[[TaskiqState], None]:
        return lambda state: journal.append(f"{event.value}, {state is broker.state}")

    async def late(state: TaskiqState) -> None:
        journal.append(f"late, {state is broker.state}")

    for event in TaskiqEvents:
        broker.with_event_handlers(event, handler(event), late)
    return broker


@pytest.mark.parametrize("side", ["WORKER", "CLIENT"])
async def test_handlers_come_before_middlewares_and_these_before_the_result_backend(
    side: str,
) -> None:
    journal: list[str] = []
    broker = noting_broker(journal)
    broker.is_worker_process = side == "WORKER"

    await broker.startup()
    started = journal.copy()
    journal.clear()
    await broker.shutdown()

    assert started == [
        f"{side}_STARTUP, True",
        "late, True",
        "one starts",
        "two starts",
        "backend starts",
    ]
    assert journal == [
        f"{side}_SHUTDOWN, True",
        "late, True",
        "one stops",
        "two stops",
        "backend stops",
    ]


async def test_a_hook_patched_onto_an_instance_is_not_called(
    broker: PlainBroker,
) -> None:
    def refuse() -> None:
        raise AssertionError("hooks are looked up on the class")

    middleware = TaskiqMiddleware()
    vars(middleware).update(startup=refuse, shutdown=refuse)
    broker.add_middlewares(middleware)

    async with broker:
        pass


async def test_an_error_while_starting_propagates_and_ends_the_start() -> None:
    journal: list[str] = []
    broker = noting_broker(journal)

    def fail(state: TaskiqState) -> None:
        raise ConnectionError("no start")

    broker.add_event_handler(TaskiqEvents.CLIENT_STARTUP, fail)

    with pytest.raises(ConnectionError, match="no start"):
        await broker.startup()
    assert journal == ["CLIENT_STARTUP, True", "late, True"]


async def test_async_with_starts_the_broker_gives_none_and_always_stops_it() -> None:
    journal: list[str] = []
    broker = noting_broker(journal)

    async def fail_inside() -> None:
        async with broker as given:
            journal.append(f"body of {given}")
            raise LookupError("from the body")

    with pytest.raises(LookupError, match="from the body"):
        await fail_inside()

    assert journal.index("backend starts") < journal.index("body of None")
    assert journal[-1] == "backend stops"


# -- Registration ------------------------------------------------------------------


def test_every_form_of_the_decorator_makes_a_task(broker: PlainBroker) -> None:
    def f(x: int) -> int:
        return x

    default = f"{__name__}:f"
    tasks: list[tuple[AnyTask, str, dict[str, Any]]] = [
        (broker.task(f), default, {}),
        (broker.task()(f), default, {}),
        (broker.task("name")(f), "name", {}),
        (broker.task(task_name="name", a=1, b=None)(f), "name", {"a": 1, "b": None}),
        (broker.register_task(f), default, {}),
        (broker.register_task(f, "name"), "name", {}),
        (broker.register_task(f, task_name="name", a=1), "name", {"a": 1}),
    ]

    for task, name, labels in tasks:
        assert type(task) is AsyncTaskiqDecoratedTask
        assert (task.task_name, task.labels) == (name, labels)
        assert task.original_func is f
        assert task.broker is broker
        assert task.return_type is int
        assert task.batch is None


def test_the_given_callable_may_have_labels_beside_it(broker: PlainBroker) -> None:
    assert broker.task(number, priority=1).labels == {"priority": 1}


def test_labels_stay_what_they_were_given_as(broker: PlainBroker) -> None:
    anything = object()

    task = broker.task(a=anything, b=b"\xff", types_of_exceptions=(ValueError,))(number)

    assert task.labels["a"] is anything
    assert task.labels["b"] == b"\xff"
    assert task.labels["types_of_exceptions"] == (ValueError,)


def test_a_task_is_found_by_its_name_and_a_later_one_replaces_it(
    broker: PlainBroker,
) -> None:
    first = broker.task("name")(number)
    assert broker.find_task("name") is first

    second = broker.task("name")(new_id)

    assert broker.find_task("name") is second
    assert broker.local_task_registry == {"name": second}
    assert broker.find_task("other") is None


def test_an_own_task_is_found_before_a_shared_one(
    broker: PlainBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    elsewhere = PlainBroker()
    shared = elsewhere.task("shared")(number)
    hidden = elsewhere.task("own")(number)
    own = broker.task("own")(number)
    AsyncBroker.global_task_registry.update(shared=shared, own=hidden)

    assert broker.find_task("shared") is shared
    assert broker.find_task("own") is own
    everything = broker.get_all_tasks()
    assert everything == {"shared": shared, "own": own}
    everything.clear()
    assert broker.find_task("own") is own
    assert AsyncBroker.global_task_registry == {"shared": shared, "own": hidden}


def test_the_global_registry_may_be_replaced_at_any_time(
    broker: PlainBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = PlainBroker().task("shared")(number)

    monkeypatch.setattr(AsyncBroker, "global_task_registry", {"shared": shared})
    assert broker.find_task("shared") is shared
    assert broker.get_all_tasks() == {"shared": shared}

    monkeypatch.setattr(AsyncBroker, "global_task_registry", {})
    assert broker.find_task("shared") is None
    assert broker.get_all_tasks() == {}


def test_a_default_assigned_on_the_class_leaves_brokers_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = PlainBroker()
    worker.is_worker_process = True

    monkeypatch.setattr(AsyncBroker, "is_worker_process", False, raising=False)

    assert worker.is_worker_process
    assert not PlainBroker().is_worker_process


def test_a_task_of_another_broker_is_refused_and_that_broker_named(
    broker: PlainBroker,
) -> None:
    elsewhere = PlainBroker()
    task = elsewhere.task("name")(number)

    with pytest.raises(TaskBrokerMismatchError) as caught:
        broker._register_task("name", task)

    assert caught.value.broker is elsewhere
    assert broker.find_task("name") is None


class SelectiveBroker(PlainBroker):
    """Keeps its tasks somewhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, AnyTask]] = []

    def _register_task(self, task_name: str, task: AnyTask) -> None:
        self.kept.append((task_name, task))


def test_a_broker_may_decide_where_its_tasks_are_kept() -> None:
    broker = SelectiveBroker()
    task = broker.task("name")(number)
    assert broker.kept == [("name", task)]
    assert broker.local_task_registry == {}


# -- Types of return values --------------------------------------------------------


class Later:
    """Is named in hints before it is defined, from where they are written."""


def test_the_return_type_is_the_resolved_hint(broker: PlainBroker) -> None:
    def later() -> "list[Later]": ...  # type: ignore[empty-body]
    def nothing() -> None: ...
    def unsaid(): ...  # type: ignore[no-untyped-def]
    async def awaited() -> dict[str, int]: ...  # type: ignore[empty-body]
    def described() -> list[Annotated[int, ["unhashable"]]]: ...  # type: ignore[empty-body]

    assert broker.register_task(later).return_type == list[Later]
    assert broker.register_task(nothing).return_type is type(None)
    assert broker.register_task(unsaid).return_type is None
    assert str(broker.register_task(awaited).return_type) == "dict[str, int]"
    assert broker.register_task(described).return_type == list[int]


def test_a_hint_that_cannot_be_resolved_is_an_error_at_the_decorator(
    broker: PlainBroker,
) -> None:
    def f(x: "Missing") -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(NameError, match="Missing"):
        broker.task(f)
    assert broker.local_task_registry == {}


# -- Default names -----------------------------------------------------------------


class Accumulator:
    """Can be called, and has a method."""

    def __call__(self, x: int) -> int:
        return x

    async def add(self, x: int) -> int:
        return x


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (number, f"{__name__}:number"),
        (wrapped(number), f"{__name__}:number"),
        (functools.partial(number, 1), f"{__name__}:number"),
        (functools.partial(functools.partial(number), 1), f"{__name__}:number"),
        (Accumulator(), f"{__name__}:Accumulator"),
        (functools.partial(Accumulator(), 1), f"{__name__}:Accumulator"),
        (Accumulator().add, f"{__name__}:add"),
        (Accumulator, f"{__name__}:Accumulator"),
        (len, "builtins:len"),
    ],
)
def test_every_callable_is_a_task_named_after_what_is_called(
    function: Callable[..., Any],
    name: str,
    broker: PlainBroker,
) -> None:
    task = broker.register_task(function)

    assert task.task_name == name
    assert task.original_func is function
    assert broker.find_task(name) is task


def test_a_nested_function_is_named_like_one_of_the_module(
    broker: PlainBroker,
) -> None:
    def nested() -> None: ...

    assert broker.task(nested).task_name == f"{__name__}:nested"


def test_every_lambda_has_a_name_of_its_own(broker: PlainBroker) -> None:
    names = {broker.register_task(lambda: None).task_name for _ in range(2)}

    assert len(names) == 2
    pattern = re.compile(re.escape(__name__) + ":lambda_[0-9a-f]{32}")
    assert all(pattern.fullmatch(name) for name in names)


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("app.py", "app"),
        ("./app.py", "app"),
        ("directory/app.py", "directory.app"),
        ("directory/./more/../app.py", "directory.app"),
        ("/srv/app.py", ".srv.app"),
        ("console-script", "console-script"),
        ("app.pyw", "app.pyw"),
    ],
)
def test_tasks_of_the_main_module_are_named_after_the_script(
    script: str,
    module: str,
    broker: PlainBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def f() -> None: ...

    f.__module__ = "__main__"
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", [str(Path(script)), "--option"])

    assert broker.task(f).task_name == f"{module}:f"


def test_a_function_of_a_module_that_is_not_loaded_is_a_task_as_well(
    broker: PlainBroker,
) -> None:
    def f() -> None: ...

    f.__module__ = "not.loaded"
    assert broker.task(f).task_name == "not.loaded:f"


def test_what_cannot_be_called_is_no_task(broker: PlainBroker) -> None:
    untyped: Any = broker
    for register in (untyped.task(), untyped.register_task):
        with pytest.raises(TypeError, match="must be callable, got 3"):
            register(3)


# -- Registering again -------------------------------------------------------------


def test_a_stored_decorator_gives_each_function_its_own_name_and_labels(
    broker: PlainBroker,
) -> None:
    def first() -> None: ...
    def second() -> None: ...

    decorate = broker.task(priority=1)
    one, two = decorate(first), decorate(second)
    one.labels["priority"] = 2

    assert [one.task_name, two.task_name] == [
        f"{__name__}:first",
        f"{__name__}:second",
    ]
    assert two.labels == {"priority": 1}


def test_a_function_keeps_its_plain_name_however_often_it_is_registered(
    broker: PlainBroker,
) -> None:
    def f() -> None: ...

    elsewhere = PlainBroker()
    again = [broker.task(f), broker.task(f), elsewhere.task(f), broker.task(wrapped(f))]

    assert [task.task_name for task in again] == [f"{__name__}:f"] * 4
    assert elsewhere.find_task(f"{__name__}:f") is again[2]
    assert broker.register_task(again[3].original_func).task_name == f"{__name__}:f"


def test_attributes_of_a_function_never_overwrite_those_of_its_task(
    broker: PlainBroker,
) -> None:
    def f() -> int: ...  # type: ignore[empty-body]

    own = ["labels", "broker", "task_name", "original_func", "return_type", "batch"]
    vars(f).update(dict.fromkeys([*own, "kiq", "kicker", "note"], "the function's"))

    task = broker.task("name", label=1)(f)

    assert "the function's" not in [getattr(task, name) for name in own]
    assert task.labels == {"label": 1}
    assert task.kicker().task_name == "name"
    assert vars(task)["note"] == "the function's"
    assert "kiq" not in vars(task)


def test_a_task_registered_again_stays_what_it_was_where_nothing_else_is_said(
    broker: PlainBroker,
) -> None:
    task = broker.task("name", a=1, b=1)(number)

    same = broker.register_task(task)
    changed = broker.register_task(task, "other", b=2)

    assert (same.task_name, same.labels) == ("name", {"a": 1, "b": 1})
    assert (changed.task_name, changed.labels) == ("other", {"a": 1, "b": 2})
    assert task.labels == {"a": 1, "b": 1}
    assert same.original_func is changed.original_func is number
    assert broker.local_task_registry == {"name": same, "other": changed}


def test_a_task_of_one_broker_can_be_registered_with_another(
    broker: PlainBroker,
) -> None:
    elsewhere = PlainBroker()
    task = broker.task("name", a=1)(number)

    other = elsewhere.register_task(task)

    assert (other.task_name, other.labels, other.broker) == (
        "name",
        {"a": 1},
        elsewhere,
    )
    assert task.broker is broker
    assert broker.find_task("name") is task


def test_a_batch_task_registered_again_is_a_batch_task_unless_said_otherwise(
    broker: PlainBroker,
) -> None:
    def f(items: list[int]) -> list[str]: ...  # type: ignore[empty-body]

    task = broker.task("name", batch=True, batch_size=5)(f)
    elsewhere: Any = PlainBroker()

    same = elsewhere.register_task(task)
    resized = elsewhere.register_task(task, batch=True, batch_size=7)
    plain = elsewhere.register_task(task, batch=False)

    assert same.batch is task.batch
    assert same.return_type is str
    assert resized.batch.size == 7
    assert plain.batch is None
    assert plain.return_type == list[str]
    assert task.batch is not None
