from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import sys
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from taskiq import InMemoryBroker, NoResultError, TaskiqMessage, TaskiqResult
from taskiq.middlewares import SimpleRetryMiddleware, TaskiqAdminMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ADMIN_LOGGER = "taskiq.taskiq_admin_middleware"


class Dashboard:
    """A real HTTP server that writes down what is reported to it.

    :ivar requests: path as it came in and JSON body of each request.
    :ivar status: what it answers with.
    :ivar may_answer: it answers nothing until this is set.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.status = 200
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.was_asked = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append((request.raw_path, await request.json()))
        self.tokens.add(request.headers.get("access-token"))
        self.was_asked.set()
        await self.may_answer.wait()
        return web.Response(status=self.status, text="so it is")

    def reported(self, event: str) -> dict[str, Any]:
        """The body of the only report of an event."""
        (body,) = [body for path, body in self.requests if path.endswith(f"/{event}")]
        assert isinstance(body, dict)
        return body

    @property
    def paths(self) -> list[str]:
        return sorted(path for path, _ in self.requests)


@asynccontextmanager
async def serving() -> AsyncGenerator[Dashboard]:
    dashboard = Dashboard()
    app = web.Application()
    app.router.add_post("/{path:.*}", dashboard.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    dashboard.url = f"http://{host}:{port}"
    try:
        yield dashboard
    finally:
        dashboard.may_answer.set()
        await runner.cleanup()


@pytest.fixture
async def dashboard() -> AsyncGenerator[Dashboard]:
    async with serving() as dashboard:
        yield dashboard


def message(*args: Any, task_id: str = "id", **labels: Any) -> TaskiqMessage:
    return TaskiqMessage(
        task_id=task_id,
        task_name="task",
        labels=labels,
        args=list(args),
        kwargs={},
    )


def result(value: Any) -> TaskiqResult[Any]:
    return TaskiqResult(is_err=False, return_value=value, execution_time=0.5)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == ADMIN_LOGGER and record.levelno == logging.WARNING
    ]


@dataclasses.dataclass
class Point:
    x: int


class Shape(BaseModel):
    points: list[Point]


async def test_a_task_is_reported_as_queued_started_and_executed(
    dashboard: Dashboard,
) -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(
        TaskiqAdminMiddleware(dashboard.url, "token", taskiq_broker_name="worker-1"),
    )

    @broker.task("shape")
    async def shape(point: Point, *, copies: int) -> Shape:
        return Shape(points=[point] * copies)

    before = datetime.now(timezone.utc).replace(tzinfo=None)
    await broker.startup()
    kicker = shape.kicker().with_task_id("id").with_labels(color="red")
    await kicker.kiq(Point(1), copies=2)
    await broker.wait_all()
    await broker.shutdown()
    after = datetime.now(timezone.utc).replace(tzinfo=None)

    assert dashboard.tokens == {"token"}
    assert dashboard.paths == [
        "/api/tasks/id/executed",
        "/api/tasks/id/queued",
        "/api/tasks/id/started",
    ]
    moments: list[str] = []
    for event, moment in [("queued", "queuedAt"), ("started", "startedAt")]:
        about = dashboard.reported(event)
        moments.append(about.pop(moment))
        assert about == {
            "args": [{"x": 1}],
            "kwargs": {"copies": 2},
            "labels": {"color": "red"},
            "taskName": "shape",
            "worker": "worker-1",
        }
    executed = dashboard.reported("executed")
    moments.append(executed.pop("finishedAt"))
    assert isinstance(executed.pop("executionTime"), float)
    assert executed == {
        "error": None,
        "returnValue": {"return_value": {"points": [{"x": 1}, {"x": 1}]}},
    }
    # Without an offset: such a text is not comparable to an aware time.
    assert all(before <= datetime.fromisoformat(each) <= after for each in moments)


async def test_every_run_of_a_retried_task_is_reported(dashboard: Dashboard) -> None:
    broker = InMemoryBroker().with_middlewares(
        TaskiqAdminMiddleware(dashboard.url, "token"),
        SimpleRetryMiddleware(default_retry_count=2, default_retry_label=True),
    )

    @broker.task
    async def fail() -> None:
        raise ValueError("failed")

    await fail.kiq()
    await broker.wait_all()
    await broker.shutdown()

    errors = {body["error"] for path, body in dashboard.requests if "error" in body}
    assert errors == {repr(NoResultError()), repr(ValueError("failed"))}


async def test_each_message_of_a_batch_is_reported(dashboard: Dashboard) -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(TaskiqAdminMiddleware(dashboard.url, "token"))

    @broker.task(batch=True, batch_size=2)
    async def halves(items: list[int]) -> list[int | Exception]:
        return [ValueError(item) if item % 2 else item // 2 for item in items]

    for item in (4, 5):
        await halves.kicker().with_task_id(f"id{item}").kiq(item)
    await broker.wait_all()
    await broker.shutdown()

    executed = {
        path: (body["returnValue"]["return_value"], body["error"])
        for path, body in dashboard.requests
        if path.endswith("executed")
    }
    assert executed == {
        "/api/tasks/id4/executed": (2, None),
        "/api/tasks/id5/executed": (None, "ValueError(5)"),
    }
    assert len(dashboard.requests) == 6


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin?page=1"])
async def test_the_path_of_the_url_is_kept(dashboard: Dashboard, path: str) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url + path, "token")

    await middleware.post_send(message())
    await middleware.shutdown()

    assert dashboard.paths == ["/admin/api/tasks/id/queued"]


async def test_an_id_is_one_part_of_the_path_whatever_is_in_it(
    dashboard: Dashboard,
) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")

    await middleware.post_send(message(task_id="a/b?c d"))
    await middleware.shutdown()

    assert dashboard.paths == ["/api/tasks/a%2Fb%3Fc%20d/queued"]


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


async def test_a_value_that_json_cannot_express_is_saved_and_reported_by_its_repr(
    dashboard: Dashboard,
) -> None:
    broker = InMemoryBroker()
    broker.add_middlewares(TaskiqAdminMiddleware(dashboard.url, "token"))

    @broker.task
    async def opaque() -> Any:
        return Opaque()

    handle = await opaque.kiq()
    await broker.wait_all()
    await broker.shutdown()

    assert isinstance((await handle.get_result()).return_value, Opaque)
    value = dashboard.reported("executed")["returnValue"]["return_value"]
    assert value == "<opaque>"


async def test_an_argument_that_json_cannot_express_spoils_no_other(
    dashboard: Dashboard,
) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    cycle: list[Any] = []
    cycle.append(cycle)

    await middleware.post_send(message(Opaque(), cycle, b"\xff", 3, plan=b"\xff"))
    await middleware.shutdown()

    about = dashboard.reported("queued")
    assert about["args"] == ["<opaque>", "[[...]]", "b'\\xff'", 3]
    assert about["labels"] == {"plan": "b'\\xff'"}


async def test_a_report_says_how_the_message_was_when_it_was_made(
    dashboard: Dashboard,
) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    numbers = [1]

    await middleware.post_send(message(numbers))
    numbers.append(2)
    await middleware.shutdown()

    assert dashboard.reported("queued")["args"] == [[1]]


async def test_a_refused_report_is_a_warning(
    dashboard: Dashboard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dashboard.status = 403
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")

    await middleware.post_execute(message(), result(1))
    await middleware.shutdown()

    (warning,) = warnings(caplog)
    assert "/api/tasks/id/executed: status 403, so it is" in warning


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no url at all", ""])
async def test_a_report_that_cannot_be_sent_is_a_warning(
    url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    middleware = TaskiqAdminMiddleware(url, "token")

    assert await middleware.pre_execute(message()) == message()
    await middleware.shutdown()

    (warning,) = warnings(caplog)
    assert "Cannot send the report /api/tasks/id/started" in warning


async def test_a_report_takes_no_longer_than_the_timeout(
    dashboard: Dashboard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dashboard.may_answer.clear()
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    middleware.timeout = 0.01  # type: ignore[assignment] # no need to wait longer

    await middleware.post_send(message())
    await asyncio.wait_for(middleware.shutdown(), 10)

    (warning,) = warnings(caplog)
    assert "TimeoutError" in warning


async def test_a_hook_waits_for_no_report_but_a_shutdown_for_all(
    dashboard: Dashboard,
) -> None:
    dashboard.may_answer.clear()
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    for number in range(3):
        await middleware.post_send(message(task_id=str(number)))
    assert dashboard.requests == []

    shutdown = asyncio.ensure_future(middleware.shutdown())
    await dashboard.was_asked.wait()
    assert not shutdown.done()
    dashboard.may_answer.set()
    await shutdown

    assert len(dashboard.requests) == 3


async def test_a_middleware_can_be_used_again_after_its_shutdown(
    dashboard: Dashboard,
) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    for _ in range(2):
        await middleware.startup()
        await middleware.post_send(message())
        await middleware.shutdown()

    assert len(dashboard.requests) == 2


async def test_a_session_that_was_closed_is_opened_again(dashboard: Dashboard) -> None:
    middleware = TaskiqAdminMiddleware(dashboard.url, "token")
    await middleware.startup()
    assert middleware._connection is not None
    await middleware._connection.session.close()

    await middleware.post_send(message())
    await middleware.shutdown()

    assert len(dashboard.requests) == 1


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
def test_a_middleware_outlives_an_event_loop() -> None:
    middleware = TaskiqAdminMiddleware("", "token")

    async def report(*, is_last: bool) -> int:
        async with serving() as dashboard:
            middleware.url = dashboard.url
            await middleware.post_send(message())
            await dashboard.was_asked.wait()
            if is_last:
                await middleware.shutdown()
            return len(dashboard.requests)

    assert asyncio.run(report(is_last=False)) == 1
    assert asyncio.run(report(is_last=True)) == 1
    gc.collect()  # the first session was never shut down, and says so


def test_without_aiohttp_the_constructor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    with pytest.raises(ImportError, match=r"pip install taskiq\[admin\]"):
        TaskiqAdminMiddleware("http://localhost", "token")
