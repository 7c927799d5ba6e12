"""A broker for tasks that do not know yet which broker they will be sent by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from taskiq.abc.broker import AsyncBroker
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import SharedBrokerListenError, SharedBrokerSendTaskError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskiq.kicker import AsyncKicker
    from taskiq.message import BrokerMessage

_Params = ParamSpec("_Params")
_ReturnType = TypeVar("_ReturnType")


class SharedDecoratedTask(AsyncTaskiqDecoratedTask[_Params, _ReturnType]):
    """A task that is sent by the shared broker's default broker."""

    def kicker(self) -> AsyncKicker[_Params, _ReturnType]:
        """Give a sender to the default broker, or to the task's own without one."""
        broker = getattr(self.broker, "_default_broker", None) or self.broker
        return super().kicker().with_broker(broker)


class AsyncSharedBroker(AsyncBroker):
    """Collects tasks that every broker finds, and sends them by a default one."""

    def __init__(self) -> None:
        super().__init__()
        self._default_broker: AsyncBroker | None = None
        self.decorator_class = SharedDecoratedTask

    def default_broker(self, new_broker: AsyncBroker) -> None:
        """Send shared tasks by this broker."""
        self._default_broker = new_broker

    async def kick(self, message: BrokerMessage) -> None:  # noqa: ARG002
        """Refuse to send.

        :raises SharedBrokerSendTaskError: always; shared tasks need a default broker.
        """
        raise SharedBrokerSendTaskError

    async def listen(  # type: ignore[override] # a coroutine that raises, as it was
        self,
    ) -> AsyncGenerator[bytes, None]:
        """Refuse to listen.

        :raises SharedBrokerListenError: always.
        """
        raise SharedBrokerListenError

    def _register_task(
        self,
        task_name: str,
        task: AsyncTaskiqDecoratedTask[Any, Any],
    ) -> None:
        self.global_task_registry[task_name] = task


async_shared_broker = AsyncSharedBroker()
shared_task = async_shared_broker.task
