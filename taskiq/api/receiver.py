"""A worker inside the running event loop."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from taskiq.receiver import Receiver
from taskiq.receiver.restart import ListenLoop

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from taskiq.abc.broker import AsyncBroker
    from taskiq.acks import AcknowledgeType

logger = logging.getLogger("taskiq.receiver")


async def run_receiver_task(
    broker: AsyncBroker,
    receiver_cls: type[Receiver] = Receiver,
    sync_workers: int | None = None,
    validate_params: bool = True,
    max_async_tasks: int = 100,
    max_async_tasks_jitter: int = 0,
    max_prefetch: int = 0,
    propagate_exceptions: bool = True,
    run_startup: bool = False,
    ack_time: AcknowledgeType | None = None,
    use_process_pool: bool = False,
) -> None:
    """Receive and run tasks in this event loop until cancelled.

    A listener that fails, or ends without calling `on_exit`, is started again, after
    0.1 seconds at first and 5 at most. Before that a broker that was started is
    reconnected: its `shutdown` and `startup` are called, in which handlers and
    middlewares that have run do not run again. In the end it is not shut down here.

    :param receiver_cls: the receiver to build.
    :param sync_workers: threads, or processes, for sync tasks.
    :param run_startup: whether to start the broker first.
    :param ack_time: when messages are acknowledged, when saved by default.
    :param use_process_pool: run sync tasks in processes instead of threads.
    :raises asyncio.CancelledError: when cancelled, or when the broker's messages end.
    :raises ValueError: when `max_prefetch` is negative.

    The other parameters are those of :class:`taskiq.receiver.Receiver`.
    """
    if max_prefetch < 0:
        raise ValueError(f"max_prefetch cannot be negative, got {max_prefetch}")
    executor: Executor = (
        ProcessPoolExecutor(max_workers=sync_workers)
        if use_process_pool
        else ThreadPoolExecutor(max_workers=sync_workers)
    )
    broker.is_worker_process = True
    options: dict[str, Any] = {
        "broker": broker,
        "executor": executor,
        "validate_params": validate_params,
        "max_async_tasks": max_async_tasks,
        "max_async_tasks_jitter": max_async_tasks_jitter,
        "max_prefetch": max_prefetch,
        "propagate_exceptions": propagate_exceptions,
        "ack_type": ack_time,
        "on_exit": _end_by_cancellation,
    }
    loop = ListenLoop(
        broker,
        lambda run_startup: receiver_cls(run_startup=run_startup, **options),
        run_startup=run_startup,
        ends_with_listener=False,
    )
    try:
        await loop.run(asyncio.Event())
    except asyncio.CancelledError:
        logger.warning("The listening task was cancelled.")
        raise
    finally:
        # Sync tasks that still run end in their own time; the loop is not kept waiting.
        executor.shutdown(wait=False)


def _end_by_cancellation(_: Receiver) -> None:
    raise asyncio.CancelledError
