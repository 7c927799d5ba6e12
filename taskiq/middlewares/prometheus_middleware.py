"""Metrics for Prometheus."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.batch import BatcherStatistics
from taskiq.middlewares._multiprocess import remove_leftovers
from taskiq.policies import Action
from taskiq.serializers._optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prometheus_client import Counter, Gauge, Histogram

    from taskiq.batch import BatchInfo
    from taskiq.message import TaskiqMessage
    from taskiq.policies import Ending
    from taskiq.result import TaskiqResult

logger = logging.getLogger("taskiq.prometheus")

_Metric = TypeVar("_Metric", "Counter", "Gauge", "Histogram")

_DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

#: From single messages to the largest batches that make sense, three to a decade.
_BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)

#: What is counted of messages that failed, by what became of them.
_ENDINGS: Final = {
    Action.ACK: "Messages that failed and were acknowledged, by why they failed",
    Action.SENT_AGAIN: "Messages that failed and were sent again, by why they failed",
    Action.GIVE_BACK: "Messages that were given back to the broker, by why",
    Action.DEAD_LETTER: "Messages that became dead letters, by why they failed",
}

#: Seconds between two looks at what is buffered, while anything is.
_SAMPLING_INTERVAL: Final = 1.0

#: When the batch that this asyncio task runs was started, by `time.perf_counter`.
_batch_started: ContextVar[float | None] = ContextVar("_batch_started", default=None)

#: The metrics of this process: their names can be taken only once.
_metrics: dict[str, Any] = {}


class PrometheusMiddleware(TaskiqMiddleware):
    """Counts and times tasks, and serves the numbers of all workers over HTTP.

    Values are kept in files, so create this before anything imports prometheus_client:
    the library decides at its import whether it keeps them in files.

    :param metrics_path: directory of the files, "taskiq_worker" in the system's
        directory of temporary files by default. It is created when missing.
    :param server_port: port of the endpoint. One worker process of a machine gets it
        and serves the sums of all.
    :param server_addr: address of the endpoint.
    :raises ImportError: when prometheus_client is not installed.
    """

    def __init__(
        self,
        metrics_path: Path | None = None,
        server_port: int = 9000,
        server_addr: str = "0.0.0.0",  # noqa: S104 - it is there to be scraped
    ) -> None:
        super().__init__()
        directory = metrics_path or Path(tempfile.gettempdir()) / "taskiq_worker"
        directory.mkdir(parents=True, exist_ok=True)
        os.environ[_DIRECTORY_VARIABLE] = str(directory)
        import_optional("prometheus_client", extra="metrics")
        _warn_if_in_memory()

        self.server_port = server_port
        self.server_addr = server_addr
        # The next look at what is buffered; there is none while nothing is.
        self._sampling: asyncio.Handle | None = None
        self._count_tasks()
        self._measure_batches()

    def _count_tasks(self) -> None:
        """Create what says how tasks fare."""
        self.received_tasks = _counter("received_tasks", "Tasks received")
        self.found_errors = _counter("found_errors", "Tasks that failed")
        self.success_tasks = _counter("success_tasks", "Tasks that succeeded")
        self.saved_results = _counter("saved_results", "Results saved")
        self.execution_time = _histogram(
            "execution_time",
            "Seconds that the function of a task ran",
        )
        # Prefixed, as the older ones should be: an application that has run without
        # these metrics may have some of such plain names itself.
        self.endings = {
            action: _counter(f"taskiq_failures_{action.value}", text, "reason")
            for action, text in _ENDINGS.items()
        }

    def _measure_batches(self) -> None:
        """Create what says how batches fare."""
        self.batch_size = _histogram(
            "taskiq_batch_size",
            "Messages in one batch",
            buckets=_BATCH_SIZES,
        )
        self.batch_wait_time = _histogram(
            "taskiq_batch_wait_seconds",
            "Seconds that the first message of a batch waited for its call",
        )
        self.batch_run_time = _histogram(
            "taskiq_batch_run_seconds",
            "Seconds from the start of a batch to its results",
        )
        self.batch_flushes = _counter(
            "taskiq_batch_flushes",
            "Batches by the reason they left for",
            "reason",
        )
        self.batch_isolation_calls = _counter(
            "taskiq_batch_isolation_calls",
            "Calls beyond the first that it took to find what failed a batch",
        )
        self.batch_buffered = _gauge(
            "taskiq_batch_buffered_messages",
            "Messages that wait in a batch, run, or are being settled",
        )
        self.batch_open_groups = _gauge(
            "taskiq_batch_open_groups",
            "Batches that take more messages",
        )

    def startup(self) -> None:
        """Serve the metrics of all worker processes, if no sibling does already."""
        if not self.broker.is_worker_process:
            return
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        directory = os.environ[_DIRECTORY_VARIABLE]
        _try_to_remove_leftovers(Path(directory))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
        try:
            start_http_server(self.server_port, self.server_addr, registry)
        except OSError as exc:
            is_taken = exc.errno == errno.EADDRINUSE
            logger.log(
                logging.DEBUG if is_taken else logging.WARNING,
                "Metrics are not served at %s:%d by this process: %s",
                self.server_addr,
                self.server_port,
                exc,
            )

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Count a received message.

        :returns: the message.
        """
        self.received_tasks.labels(message.task_name).inc()
        self._sample_soon()
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Count a success or an error, and the seconds it took."""
        counter = self.found_errors if result.is_err else self.success_tasks
        counter.labels(message.task_name).inc()
        self.execution_time.labels(message.task_name).observe(result.execution_time)

    def on_ending(self, message: TaskiqMessage | None, ending: Ending) -> None:
        """Count what became of a message that failed."""
        # A name that no task has may be anything: it would be a metric of its own.
        is_known = message is not None and self.broker.find_task(message.task_name)
        name = message.task_name if message is not None and is_known else ""
        self.endings[ending.action].labels(name, ending.reason.value).inc()

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Count a saved result."""
        del result
        self.saved_results.labels(message.task_name).inc()

    def on_batch_start(self, batch: BatchInfo) -> None:
        """Count a batch, its messages and how long it waited."""
        name = batch.task_name
        self.batch_size.labels(name).observe(len(batch.messages))
        self.batch_wait_time.labels(name).observe(batch.waited)
        self.batch_flushes.labels(name, batch.flush_reason.value).inc()
        _batch_started.set(time.perf_counter())

    def on_batch_end(
        self,
        batch: BatchInfo,
        results: Sequence[TaskiqResult[Any]],
    ) -> None:
        """Count the seconds that the calls of a batch took, and the extra ones."""
        del results  # their times are rounded
        if batch.isolation_calls:
            calls = self.batch_isolation_calls.labels(batch.task_name)
            calls.inc(batch.isolation_calls)
        started = _batch_started.get()
        if started is not None:
            seconds = time.perf_counter() - started
            self.batch_run_time.labels(batch.task_name).observe(seconds)

    def shutdown(self) -> None:
        """Look at what is buffered for the last time."""
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
            self._sample()

    def _sample_soon(self) -> None:
        """See to it that what is buffered is looked at while there is something."""
        if self._sampling is None and self.broker.batch_statistics is not None:
            self._sampling = asyncio.get_running_loop().call_soon(self._sample_on)

    def _sample_on(self) -> None:
        """Look at what is buffered, and again after a while unless it is nothing.

        A scrape is answered by one process for all, from files: no process can be asked
        for what it holds at that moment.
        """
        self._sampling = None
        if not self._sample().is_idle:
            loop = asyncio.get_running_loop()
            self._sampling = loop.call_later(_SAMPLING_INTERVAL, self._sample_on)

    def _sample(self) -> BatcherStatistics:
        count = self.broker.batch_statistics
        statistics = BatcherStatistics() if count is None else count()
        self.batch_buffered.set(statistics.buffered)
        self.batch_open_groups.set(statistics.open_groups)
        return statistics


def _metric(name: str, create: Callable[[], _Metric]) -> _Metric:
    """Create a metric, or give the one that an earlier middleware has created.

    :raises ValueError: when somebody else has a metric of that name.
    """
    try:
        _metrics[name] = create()
    except ValueError:
        if name not in _metrics:
            raise
    metric: _Metric = _metrics[name]
    return metric


def _counter(name: str, help_text: str, *labels: str) -> Counter:
    from prometheus_client import Counter  # noqa: PLC0415

    return _metric(name, lambda: Counter(name, help_text, ["task_name", *labels]))


def _histogram(name: str, help_text: str, **options: Any) -> Histogram:
    from prometheus_client import Histogram  # noqa: PLC0415

    return _metric(name, lambda: Histogram(name, help_text, ["task_name"], **options))


def _gauge(name: str, help_text: str) -> Gauge:
    from prometheus_client import Gauge  # noqa: PLC0415

    # What ended processes held is held no more.
    return _metric(name, lambda: Gauge(name, help_text, multiprocess_mode="livesum"))


def _warn_if_in_memory() -> None:
    from prometheus_client import values  # noqa: PLC0415

    if values.ValueClass is values.MutexValue:
        logger.warning(
            "prometheus_client was imported before %s was set, so metrics stay in the "
            "memory of this process and the endpoint cannot serve them. Create "
            "PrometheusMiddleware before importing it, or set the variable to a "
            "directory before the start.",
            _DIRECTORY_VARIABLE,
        )


def _try_to_remove_leftovers(directory: Path) -> None:
    try:
        remove_leftovers(directory)
    except OSError as exc:
        logger.warning(
            "Cannot remove the metrics of ended processes in %s, "
            "they will be counted again: %s",
            directory,
            exc,
        )
