"""A worker inside the running event loop."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from taskiq.receiver import Receiver
from taskiq.receiver.restart import RestartDelays

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

    A listener that fails is started again, after 0.1 seconds at first and 30 at most.
    The broker is started once at most, and never shut down here.

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
    options = {
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
    try:
        await _listen_forever(receiver_cls, options, run_startup)
    except asyncio.CancelledError:
        logger.warning("The listening task was cancelled.")
        raise
    finally:
        # Sync tasks that still run end in their own time; the loop is not kept waiting.
        executor.shutdown(wait=False)


async def _listen_forever(
    receiver_cls: type[Receiver],
    options: dict[str, Any],
    run_startup: bool,
) -> None:
    clock = asyncio.get_running_loop().time
    delays = RestartDelays()
    while True:
        began = clock()
        receiver = None
        try:
            receiver = receiver_cls(run_startup=run_startup, **options)
            await _listen(receiver)
        except Exception as exc:
            delay = delays.after_failure(clock() - began)
            logger.warning(
                "The listener failed, it is started again in %.1f s: %s",
                delay,
                exc,
                exc_info=True,
            )
        else:
            # It did not call `on_exit`, which ends this: it wants to listen again.
            delay = delays.after_failure(clock() - began)
            logger.info("The listener ended, it is started again in %.1f s.", delay)
        # A receiver class of somebody's own need not be a subclass.
        if getattr(receiver, "has_started_broker", False):
            run_startup = False
        await asyncio.sleep(delay)


async def _listen(receiver: Receiver) -> None:
    """Listen in an asyncio task of its own.

    Whatever it makes of a cancellation, an error or a wait that goes on: it is passed
    to it each time, and raised once it has ended.
    """
    listening = asyncio.ensure_future(receiver.listen(asyncio.Event()))
    cancellation: asyncio.CancelledError | None = None
    while not listening.done():
        try:
            await asyncio.wait([listening])
        except asyncio.CancelledError as exc:  # noqa: PERF203 - at most a few
            cancellation = exc
            listening.cancel()
    if cancellation is not None:
        answer = None if listening.cancelled() else listening.exception()
        raise cancellation from answer
    listening.result()


def _end_by_cancellation(_: Receiver) -> None:
    raise asyncio.CancelledError
