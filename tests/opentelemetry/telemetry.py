"""What spans and metrics came out of a middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext


class Telemetry:
    """Providers of its own, and what was exported through them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracer_provider.get_tracer("test")
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def middleware(self) -> OpenTelemetryMiddleware:
        return OpenTelemetryMiddleware(self.tracer_provider, self.meter_provider)

    @property
    def ended(self) -> list[ReadableSpan]:
        """Every ended span, in the order they ended."""
        return list(self._exporter.get_finished_spans())

    def spans(self, name: str) -> list[ReadableSpan]:
        """The ended spans of a name, in the order they were started."""
        found = [span for span in self.ended if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        """The one ended span of a name."""
        (span,) = self.spans(name)
        return span

    def metric(self, name: str) -> Metric:
        """The one metric of a name."""
        (metric,) = [each for each in self.metrics() if each.name == name]
        return metric

    def metrics(self) -> list[Metric]:
        data = self._reader.get_metrics_data()
        return [
            metric
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and value (of histograms: count and sum) of each point."""
        return [
            (
                dict(point.attributes or {}),
                point.value if hasattr(point, "value") else (point.count, point.sum),
            )
            for metric in self.metrics()
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str) -> Any:
        """The value of a metric that has one point."""
        ((_, value),) = self.points(name)
        return value


def context_of(span: ReadableSpan) -> SpanContext:
    """The identity of a span."""
    context: SpanContext | None = span.context
    assert context is not None
    return context


def trace_of(span: ReadableSpan) -> int:
    """The id of the trace of a span."""
    return context_of(span).trace_id


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is inside another one, in the same trace."""
    return (
        span.parent is not None
        and span.parent.span_id == context_of(parent).span_id
        and trace_of(span) == trace_of(parent)
    )


def linked_spans(span: ReadableSpan) -> set[int]:
    """The ids of the spans that a span links to."""
    return {link.context.span_id for link in span.links}


def current_name() -> str | None:
    """The name of the current span, `None` when there is none."""
    return getattr(trace.get_current_span(), "name", None)
