"""Serving the depth of queues to whoever scales workers by it.

A process of its own, so that there is an answer while no worker runs.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from http import HTTPStatus
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final

from taskiq.cli.finding import StartError
from taskiq.cli.health.endpoint import Answer, Endpoint
from taskiq.cli.inspect.queues import Seen, as_json, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskiq.queues import QueueDepth

logger = logging.getLogger("taskiq.inspect")

#: Seconds for which an answer of the server is used again.
_FRESH: Final = 1.0

#: Seconds between two looks whether a client has given up.
_LONGEST_WAIT: Final = 1.0

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def export(look: Callable[[], Seen], port: int) -> int | None:
    """Serve what is seen until told to end, by SIGINT or SIGTERM.

    :param look: asks the server.
    :returns: exit status, `None` for success.
    :raises StartError: the port cannot be used.
    """
    try:
        endpoint = Endpoint(port)
    except (OSError, OverflowError) as exc:
        text = f"cannot serve at port {port}: {exc}"
        raise StartError(text, status=1) from exc
    cached = _Cached(look)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"Serving /metrics and /queues at port {endpoint.port}.", flush=True)  # noqa: T201
    try:
        while True:
            endpoint.serve(lambda path: answer(cached, path))
            wait(endpoint.sockets, _LONGEST_WAIT)
    except KeyboardInterrupt:
        return None
    finally:
        endpoint.close()


class _Cached:
    """What was seen a moment ago is good enough for the next who asks."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._seen: tuple[float, Seen] | None = None

    def __call__(self) -> Seen:
        now = time.monotonic()
        if self._seen is None or now - self._seen[0] > _FRESH:
            self._seen = now, self._look()
        return self._seen[1]


def answer(look: Callable[[], Seen], path: str) -> Answer:
    """Answer a request: `/metrics`, or `/queues` for the same as JSON.

    Who asks for JSON is told of a server that is away by the status. Prometheus is
    told by a metric, beside which there are no others: nobody scales by an old number.
    """
    if path == "/metrics":
        return Answer(HTTPStatus.OK, "".join(metrics(look())), _METRICS_TYPE)
    if path != "/queues":
        return Answer(HTTPStatus.NOT_FOUND, "There are /metrics and /queues.\n")
    seen = look()
    status = HTTPStatus.OK if seen.error is None else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, json.dumps(as_json(seen)), "application/json")


#: Name of each gauge, what it is, and where it comes from.
_GAUGES: Final[tuple[tuple[str, str, Callable[[QueueDepth], Any]], ...]] = (
    (
        "taskiq_queue_depth",
        "Messages that no worker has taken yet",
        lambda queue: queue.depth,
    ),
    (
        "taskiq_queue_unacknowledged",
        "Messages that workers have taken and not acknowledged",
        lambda queue: queue.unacknowledged,
    ),
    (
        "taskiq_queue_oldest_seconds",
        "Seconds that the oldest message is in the queue",
        lambda queue: queue.oldest_age,
    ),
)


def metrics(seen: Seen) -> Iterator[str]:
    """Write what was seen in the text format of Prometheus, in lines.

    What is not known is left out.
    """
    yield from _head("taskiq_queue_up", "Whether the server of the broker answered")
    yield f"taskiq_queue_up {int(seen.error is None)}\n"
    count = total(seen)
    if count is not None:
        yield from _head(
            "taskiq_queue_total", "Messages to be run that are not acknowledged yet"
        )
        yield f"taskiq_queue_total {count}\n"
    for name, text, value_of in _GAUGES:
        yield from _head(name, text)
        for queue in seen.queues:
            value = value_of(queue)
            # With nothing in it no message is old.
            if value is None and name.endswith("_seconds") and queue.depth == 0:
                value = 0 if not queue.unacknowledged else None
            if value is not None:
                labels = f'queue="{_escaped(queue.name)}",role="{queue.role}"'
                yield f"{name}{{{labels}}} {value}\n"


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}\n"
    yield f"# TYPE {name} gauge\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
