"""A broker without a server: ZeroMQ's publish and subscribe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from taskiq.abc.broker import AsyncBroker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import zmq.asyncio

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.acks import AckableMessage
    from taskiq.message import BrokerMessage

_T = TypeVar("_T")

#: Bytes in each part of a message on the wire.
_PART_SIZE: Final = 100


class ZeroMQBroker(AsyncBroker):
    """Publishes tasks to every worker that is connected at that moment.

    Every worker runs every task. Tasks sent while no worker is connected are lost,
    nothing is acknowledged, and a worker cannot send: it only subscribes.

    :param zmq_pub_host: address that the sending process listens on.
    :param zmq_sub_host: address that workers connect to.
    :param result_backend: deprecated, use `with_result_backend`.
    :param task_id_generator: deprecated, use `with_id_generator`.
    :raises RuntimeError: when pyzmq is not installed.
    """

    #: Created by `startup`.
    socket: zmq.asyncio.Socket

    def __init__(
        self,
        zmq_pub_host: str = "tcp://0.0.0.0:5555",
        zmq_sub_host: str = "tcp://localhost:5555",
        result_backend: AsyncResultBackend[_T] | None = None,
        task_id_generator: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(result_backend, task_id_generator)
        try:
            from zmq.asyncio import Context  # noqa: PLC0415 - an optional library
        except ImportError as exc:
            raise RuntimeError(
                "To use the ZeroMQ broker install pyzmq: pip install taskiq[zmq]",
            ) from exc
        self.context = Context()
        self.pub_host = zmq_pub_host
        self.sub_host = zmq_sub_host

    async def startup(self) -> None:
        """Subscribe in a worker, start to publish elsewhere, then start the rest."""
        import zmq  # noqa: PLC0415 - an optional library

        if self.is_worker_process:
            self.socket = self.context.socket(zmq.SUB)
            self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            self.socket = self.context.socket(zmq.PUB)
            self.socket.bind(self.pub_host)
        await super().startup()

    async def shutdown(self) -> None:
        """Stop the rest, then give the socket and its address back."""
        try:
            await super().shutdown()
        finally:
            if hasattr(self, "socket"):
                self.socket.close()

    async def kick(self, message: BrokerMessage) -> None:
        """Publish one message."""
        data = message.message
        parts = [data[at : at + _PART_SIZE] for at in range(0, len(data), _PART_SIZE)]
        await self.socket.send_multipart(parts)  # pyright: ignore[reportUnknownMemberType] - its annotation is incomplete

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Connect, and receive messages until the generator is closed."""
        self.socket.connect(self.sub_host)
        while True:
            yield b"".join(await self.socket.recv_multipart())
