"""Reports to the taskiq-admin dashboard."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from logging import getLogger
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic_core import to_jsonable_python

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.serialization import safe_repr
from taskiq.serializers._optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from aiohttp import ClientSession

    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

logger = getLogger("taskiq.taskiq_admin_middleware")


class TaskiqAdminMiddleware(TaskiqMiddleware):
    """Tells taskiq-admin when a task is queued, started and executed.

    Reports are sent in the background: they delay no task, and one that cannot be
    delivered is logged. What JSON cannot express is reported by its `repr`.

    :param url: address of taskiq-admin, with the path it is served under.
    :param api_token: the token that it expects.
    :param timeout: seconds one report may take.
    :param taskiq_broker_name: the worker's name in the dashboard.
    :raises ImportError: when aiohttp is not installed.
    """

    def __init__(
        self,
        url: str,
        api_token: str,
        timeout: int = 5,
        taskiq_broker_name: str | None = None,
    ) -> None:
        import_optional("aiohttp", extra="admin")
        super().__init__()
        self.url = url
        self.api_token = api_token
        self.timeout = timeout
        self._broker_name = taskiq_broker_name
        self._connection: _Connection | None = None

    async def startup(self) -> None:
        """Open the HTTP session."""
        self._connect()

    async def shutdown(self) -> None:
        """Wait for the reports under way and close the HTTP session."""
        if self._connection is not None and self._connection.is_usable:
            await self._connection.close()
        self._connection = None

    async def post_send(self, message: TaskiqMessage) -> None:
        """Report a message that was sent."""
        self._report(message, "queued", self._about(message, "queuedAt"))

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Report a message that is about to be executed.

        :returns: the message.
        """
        self._report(message, "started", self._about(message, "startedAt"))
        return message

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        """Report a result."""
        body = {
            "finishedAt": _now(),
            "executionTime": result.execution_time,
            "error": None if result.error is None else safe_repr(result.error),
            "returnValue": {"return_value": _jsonable(result.return_value)},
        }
        self._report(message, "executed", body)

    def _about(self, message: TaskiqMessage, moment: str) -> dict[str, Any]:
        """Describe a message now: it may change before the report is sent."""
        return {
            "args": [_jsonable(each) for each in message.args],
            "kwargs": {name: _jsonable(each) for name, each in message.kwargs.items()},
            "labels": {name: _jsonable(each) for name, each in message.labels.items()},
            moment: _now(),
            "taskName": message.task_name,
            "worker": self._broker_name,
        }

    def _report(self, message: TaskiqMessage, event: str, body: dict[str, Any]) -> None:
        endpoint = f"/api/tasks/{quote(message.task_id, safe='')}/{event}"
        connection = self._connect()
        connection.start(self._send(connection.session, endpoint, body))

    def _connect(self) -> _Connection:
        connection = self._connection
        if connection is None or not connection.is_usable:
            connection = self._connection = _Connection()
        return connection

    async def _send(
        self,
        session: ClientSession,
        endpoint: str,
        body: dict[str, Any],
    ) -> None:
        from aiohttp import ClientTimeout  # noqa: PLC0415 - an optional library

        try:
            async with session.post(
                _under(self.url, endpoint),
                headers={"access-token": self.api_token},
                json=body,
                timeout=ClientTimeout(total=self.timeout),
            ) as response:
                if not response.ok:
                    logger.warning(
                        "taskiq-admin did not take the report %s: status %d, %s",
                        endpoint,
                        response.status,
                        await response.text(),
                    )
        except Exception as exc:  # noqa: BLE001 - a dashboard must harm no task
            logger.warning("Cannot send the report %s: %r", endpoint, exc)


class _Connection:
    """The HTTP session of one event loop, and the reports under way in it."""

    def __init__(self) -> None:
        from aiohttp import ClientSession  # noqa: PLC0415 - an optional library

        self.session = ClientSession()
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and belongs to the running event loop."""
        return not self.session.closed and self._loop is asyncio.get_running_loop()

    def start(self, report: Coroutine[Any, Any, None]) -> None:
        """Send a report beside what runs now."""
        task = self._loop.create_task(report)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Let the reports under way end, and close the session."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        await self.session.close()


def _under(url: str, endpoint: str) -> str:
    """Append an endpoint to the path of a URL."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + endpoint
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _jsonable(value: Any) -> Any:
    """Turn a value into what JSON can express, in the worst case into its `repr`."""
    try:
        return to_jsonable_python(value)
    except Exception:  # noqa: BLE001 - a value of the user's can raise anything
        return safe_repr(value)


def _now() -> str:
    """Give the time as taskiq-admin reads it: UTC, and no offset behind it."""
    return datetime.now(timezone.utc).replace(tzinfo=None).isoformat()
