"""Instrumenting brokers from outside."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from taskiq import AsyncBroker, InMemoryBroker, TaskiqMiddleware
from taskiq import instrumentation as module
from taskiq.instrumentation import TaskiqInstrumentor
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq.package import _instruments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.opentelemetry.telemetry import Telemetry

_GAUGES = ("worker_cpu_utilization", "worker_memory_utilization")


@pytest.fixture
def calls() -> list[Any]:
    """What a worker process did: "initialize", or the arguments of `start_listen`."""
    return []


@pytest.fixture
def worker_module(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the module whose `start_listen` worker processes run."""

    def start_listen(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return "listened"

    fake = SimpleNamespace(start_listen=start_listen)
    monkeypatch.setitem(sys.modules, "taskiq.cli.worker.run", fake)
    monkeypatch.setattr(module, "initialize", lambda: calls.append("initialize"))
    return fake


@pytest.fixture
def instrumentor(
    worker_module: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[TaskiqInstrumentor]:
    instrumentor = TaskiqInstrumentor()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def instrument(instrumentor: TaskiqInstrumentor, telemetry: Telemetry) -> None:
    instrumentor.instrument(
        skip_dep_check=True,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )


def middlewares_of(broker: AsyncBroker) -> list[type[TaskiqMiddleware]]:
    return [type(middleware) for middleware in broker.middlewares]


async def run_one_task(broker: InMemoryBroker) -> None:
    @broker.task(task_name="t")
    async def t() -> None: ...

    await t.kiq()
    await broker.wait_all()


# -- One broker -------------------------------------------------------------------


async def test_an_instrumented_broker_is_traced_by_its_first_middleware(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker().with_middlewares(TaskiqMiddleware())
    TaskiqInstrumentor().instrument_broker(
        broker,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    assert middlewares_of(broker) == [OpenTelemetryMiddleware, TaskiqMiddleware]
    assert getattr(broker, "_is_instrumented_by_opentelemetry", None) is True
    await run_one_task(broker)
    assert [span.name for span in telemetry.ended] == ["send/t", "execute/t"]
    assert telemetry.total("tasks_sent") == 1


async def test_a_broker_instrumented_twice_is_traced_once_and_that_is_said(
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = InMemoryBroker()
    for _ in range(2):
        TaskiqInstrumentor().instrument_broker(broker, telemetry.tracer_provider)
    assert middlewares_of(broker) == [OpenTelemetryMiddleware]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("taskiq.opentelemetry", "WARNING")
    await run_one_task(broker)
    assert len(telemetry.ended) == 2


def test_a_broker_with_a_middleware_of_its_own_is_not_traced_twice(
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = InMemoryBroker().with_middlewares(telemetry.middleware())
    TaskiqInstrumentor().instrument_broker(broker)
    assert middlewares_of(broker) == [OpenTelemetryMiddleware]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_broker_that_lost_its_middlewares_can_be_instrumented_again() -> None:
    broker = InMemoryBroker()
    TaskiqInstrumentor().instrument_broker(broker)
    broker.middlewares = []
    TaskiqInstrumentor().instrument_broker(broker)
    assert middlewares_of(broker) == [OpenTelemetryMiddleware]


def test_an_inserted_middleware_knows_its_broker_so_its_gauges_report(
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker()
    broker.is_worker_process = True
    TaskiqInstrumentor().instrument_broker(
        broker,
        meter_provider=telemetry.meter_provider,
    )
    assert broker.middlewares[0].broker is broker
    assert all(telemetry.points(name) for name in _GAUGES)
    TaskiqInstrumentor().uninstrument_broker(broker)
    assert not any(telemetry.points(name) for name in _GAUGES)


def test_an_uninstrumented_broker_has_only_its_other_middlewares_in_a_new_list(
    telemetry: Telemetry,
) -> None:
    other = TaskiqMiddleware()
    broker = InMemoryBroker().with_middlewares(other, telemetry.middleware())
    broker.middlewares.insert(0, telemetry.middleware())
    before = broker.middlewares
    TaskiqInstrumentor().uninstrument_broker(broker)
    assert broker.middlewares == [other]
    assert broker.middlewares is not before
    assert getattr(broker, "_is_instrumented_by_opentelemetry", None) is False
    TaskiqInstrumentor().instrument_broker(broker)
    assert middlewares_of(broker) == [OpenTelemetryMiddleware, TaskiqMiddleware]


# -- Every broker -----------------------------------------------------------------


async def test_brokers_created_later_are_instrumented_with_the_given_providers(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
) -> None:
    older = InMemoryBroker()
    instrument(instrumentor, telemetry)
    younger = InMemoryBroker()
    assert middlewares_of(older) == []
    assert middlewares_of(younger) == [OpenTelemetryMiddleware]
    await run_one_task(younger)
    assert [span.name for span in telemetry.ended] == ["send/t", "execute/t"]
    assert telemetry.total("tasks_sent") == 1


def test_a_broker_that_runs_the_base_constructor_twice_is_instrumented_once(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class TwiceBroker(InMemoryBroker):
        def __init__(self) -> None:
            super().__init__()
            AsyncBroker.__init__(self)

    instrument(instrumentor, telemetry)
    assert middlewares_of(TwiceBroker()) == [OpenTelemetryMiddleware]
    assert caplog.records == []


def test_after_uninstrument_everything_is_as_before(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    worker_module: SimpleNamespace,
) -> None:
    constructor, start_listen = AsyncBroker.__init__, worker_module.start_listen
    for _ in range(2):  # it can be done again
        instrument(instrumentor, telemetry)
        broker, by_hand = InMemoryBroker(), InMemoryBroker()
        assert worker_module.start_listen is not start_listen
        instrumentor.uninstrument()
        assert middlewares_of(broker) == middlewares_of(by_hand) == []
        assert AsyncBroker.__init__ is constructor
        assert worker_module.start_listen is start_listen
        assert middlewares_of(InMemoryBroker()) == []


def test_brokers_instrumented_one_by_one_are_uninstrumented_with_the_others(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
) -> None:
    broker = InMemoryBroker()
    instrumentor.instrument_broker(broker)
    instrument(instrumentor, telemetry)
    instrumentor.uninstrument()
    assert middlewares_of(broker) == []


def test_uninstrument_without_instrument_only_warns(
    instrumentor: TaskiqInstrumentor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instrumentor.uninstrument()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# -- Worker processes ---------------------------------------------------------------


def test_a_worker_process_initializes_opentelemetry_before_it_listens(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    worker_module: SimpleNamespace,
    calls: list[Any],
) -> None:
    instrument(instrumentor, telemetry)
    assert worker_module.start_listen("arguments", event=1) == "listened"
    assert calls == ["initialize", (("arguments",), {"event": 1})]


def test_a_worker_can_be_started_after_uninstrument(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    worker_module: SimpleNamespace,
    calls: list[Any],
) -> None:
    instrument(instrumentor, telemetry)
    instrumentor.uninstrument()
    worker_module.start_listen("arguments")
    assert calls == [(("arguments",), {})]


def test_a_worker_process_that_is_not_forked_finds_what_it_has_to_run(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    worker_module: SimpleNamespace,
    calls: list[Any],
) -> None:
    instrument(instrumentor, telemetry)
    sent_to_child = pickle.dumps(worker_module.start_listen)
    instrumentor.uninstrument()  # as in a new process, where nothing was replaced
    start_listen = pickle.loads(sent_to_child)  # noqa: S301
    assert start_listen("arguments") == "listened"
    assert calls == ["initialize", (("arguments",), {})]


def test_a_worker_process_whose_initialization_instruments_listens_once(
    instrumentor: TaskiqInstrumentor,
    telemetry: Telemetry,
    worker_module: SimpleNamespace,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        module, "initialize", lambda: instrument(instrumentor, telemetry)
    )
    assert module._start_listen_with_initialize("arguments") == "listened"
    assert calls == [(("arguments",), {})]


def test_the_worker_process_of_this_package_is_what_is_replaced() -> None:
    assert callable(module._Worker.module().start_listen)


# -- What tooling reads ---------------------------------------------------------------


def test_the_dependencies_name_this_package() -> None:
    assert tuple(TaskiqInstrumentor().instrumentation_dependencies()) == (
        "taskiq >= 0.0.0",
    )
    assert _instruments == ("taskiq >= 0.11.20",)


@pytest.mark.parametrize(
    "missing",
    ["opentelemetry.instrumentation.instrumentor", "psutil"],
)
def test_a_missing_library_is_an_import_error_that_names_the_extra(
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delitem(sys.modules, "taskiq.middlewares.opentelemetry_middleware")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"taskiq\[opentelemetry\]"):
        importlib.import_module(module.__name__)
