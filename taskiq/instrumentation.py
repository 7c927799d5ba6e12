"""Traces and measures brokers without a change of their code.

`opentelemetry-instrument` finds this by its entry point.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakSet

from taskiq.abc.broker import AsyncBroker

try:
    import wrapt
    from opentelemetry.instrumentation.auto_instrumentation import (  # pyright: ignore[reportMissingTypeStubs]
        initialize,
    )
    from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined] # its module is not checked
        BaseInstrumentor,
    )
    from opentelemetry.instrumentation.utils import unwrap

    from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
except ImportError as exc:
    raise ImportError(
        "TaskiqInstrumentor needs opentelemetry and psutil, "
        "use: pip install taskiq[opentelemetry]",
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger("taskiq.opentelemetry")

#: The attribute of a broker that says whether it is instrumented.
_MARK: Final = "_is_instrumented_by_opentelemetry"


class TaskiqInstrumentor(BaseInstrumentor):  # type: ignore[misc] # see its import
    """Adds `OpenTelemetryMiddleware` to one broker, or to each that is created.

    `instrument()` takes the keyword arguments `tracer_provider` and `meter_provider`;
    without them the global ones are used. Brokers that exist already are not touched.
    """

    _instrumented_brokers: ClassVar[WeakSet[AsyncBroker]] = WeakSet()

    def instrument_broker(
        self,
        broker: AsyncBroker,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Trace and measure one broker. One that is already is left as it is.

        :param tracer_provider: where spans go, the global one by default.
        :param meter_provider: where metrics go, the global one by default.
        """
        if _middlewares_of(broker):
            logger.warning("%r is instrumented already.", broker)
            return
        middleware = OpenTelemetryMiddleware(tracer_provider, meter_provider)
        middleware.set_broker(broker)
        broker.middlewares.insert(0, middleware)
        setattr(broker, _MARK, True)
        self._instrumented_brokers.add(broker)

    def uninstrument_broker(self, broker: AsyncBroker) -> None:
        """Take every OpenTelemetry middleware away from a broker."""
        for middleware in _middlewares_of(broker):
            middleware.retire()
        broker.middlewares = [
            middleware
            for middleware in broker.middlewares
            if not isinstance(middleware, OpenTelemetryMiddleware)
        ]
        setattr(broker, _MARK, False)
        self._instrumented_brokers.discard(broker)

    def instrumentation_dependencies(self) -> Collection[str]:
        """Name what has to be installed for this to be of use."""
        return ("taskiq >= 0.0.0",)

    def _instrument(self, **kwargs: Any) -> None:
        def instrumented_init(
            init: Callable[..., None],
            broker: AsyncBroker,
            args: tuple[Any, ...],
            options: dict[str, Any],
        ) -> None:
            init(*args, **options)
            self.instrument_broker(
                broker,
                kwargs.get("tracer_provider"),
                kwargs.get("meter_provider"),
            )

        wrapt.wrap_function_wrapper(AsyncBroker, "__init__", instrumented_init)
        _Worker.replace_start_listen()

    def _uninstrument(self, **kwargs: Any) -> None:
        del kwargs
        for broker in list(self._instrumented_brokers):
            self.uninstrument_broker(broker)
        unwrap(AsyncBroker, "__init__")
        _Worker.restore_start_listen()


class _Worker:
    """What worker processes start with, while it is replaced."""

    original: ClassVar[Callable[..., Any] | None] = None

    @staticmethod
    def module() -> Any:
        # Loaded here, because clients do without it.
        return import_module("taskiq.cli.worker.run")

    @classmethod
    def replace_start_listen(cls) -> None:
        module = cls.module()
        cls.original = module.start_listen
        module.start_listen = _start_listen_with_initialize

    @classmethod
    def restore_start_listen(cls) -> None:
        cls.module().start_listen = cls.original
        cls.original = None


def _start_listen_with_initialize(*args: Any, **kwargs: Any) -> Any:
    """Set OpenTelemetry up in a worker process, then do what workers do.

    A function of the module: a process that is not forked finds it by its name.
    """
    initialize()
    # In such a process nothing was replaced, unless `initialize` has just done it.
    start_listen = _Worker.original or _Worker.module().start_listen
    return start_listen(*args, **kwargs)


def _middlewares_of(broker: AsyncBroker) -> list[OpenTelemetryMiddleware]:
    return [m for m in broker.middlewares if isinstance(m, OpenTelemetryMiddleware)]
