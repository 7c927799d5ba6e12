"""What is told of failures: one line each, in one form for messages and batches.

An error is told with its traceback once; one that is followed by another try is a
warning, without.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.chunks import INDEX_LABEL
from taskiq.exceptions import NoResultError, TaskAbortedError
from taskiq.hooks import hooks_of
from taskiq.outage import brief, messages
from taskiq.outcome import Failed
from taskiq.receiver.containment import attempt
from taskiq.receiver.diagnosis import fields_of, fields_of_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchInfo
    from taskiq.message import TaskiqMessage

logger = logging.getLogger("taskiq.receiver.receiver")

#: Most messages that one line about a batch names.
_MOST_NAMED: Final = 10

#: Most characters of a message that cannot be read.
_MOST_SHOWN: Final = 200


def log_unparsable(data: Any, error: BaseException) -> None:
    """Say that a message cannot be read, and how it begins."""
    size = len(data) if hasattr(data, "__len__") else 0
    # Cut before it is written out: it may be of any size.
    shown = repr(data[:_MOST_SHOWN] if isinstance(data, (bytes, str)) else data)
    logger.warning(
        "Cannot parse message: %s%s (length %d): %s. Skipping.",
        shown[:_MOST_SHOWN],
        "..." if size > _MOST_SHOWN or len(shown) > _MOST_SHOWN else "",
        size,
        brief(error),
        extra={"length": size, "error": brief(error)},
    )


def log_failure(
    broker: AsyncBroker,
    name: str,
    failed: Sequence[TaskiqMessage],
    error: BaseException,
    batch: BatchInfo | None = None,
) -> None:
    """Say in one line what a call failed with.

    A traceback follows unless all of its messages are sent again.

    :param name: names the call.
    :param failed: its messages.
    :param batch: the batch it was of, if it was.
    """
    fields = fields_of(failed[0]) if batch is None else fields_of_batch(batch)
    if isinstance(error, NoResultError):
        logger.warning("%s asked for no result: none is set.", name, extra=fields)
        return
    if isinstance(error, TaskAbortedError):
        logger.info("%s was aborted.", name, extra=fields)
        return
    again, outlook = _outlook(broker, [(message, error) for message in failed])
    logger.log(
        logging.WARNING if again == len(failed) else logging.ERROR,
        "Exception found while executing %s: %s%s",
        name,
        brief(error),
        outlook,
        exc_info=None if again == len(failed) else error,
        extra={
            **fields,
            "messages": len(failed),
            "error": brief(error),
            "sent_again": again,
        },
    )


def log_culprits(
    broker: AsyncBroker,
    batch: BatchInfo,
    failures: Sequence[tuple[TaskiqMessage, BaseException]],
    *,
    extra_calls: int = 0,
) -> None:
    """Say in one line which messages of a batch failed alone, and with what.

    A traceback of the first error follows, if it was raised and its message is not sent
    again: they are mostly the same.

    :param extra_calls: how many calls it took to find them.
    """
    again, outlook = _outlook(broker, failures)
    named = [
        f"ID {message.task_id}: {brief(error)}"
        for message, error in failures[:_MOST_NAMED]
    ]
    if len(failures) > _MOST_NAMED:
        named.append(f"and {len(failures) - _MOST_NAMED} more")
    first = failures[0][1]
    is_traced = first.__traceback__ is not None and again < len(failures)
    calls = "1 more call" if extra_calls == 1 else f"{extra_calls} more calls"
    logger.log(
        logging.WARNING if again == len(failures) else logging.ERROR,
        "Exception found while executing batch %s of task %s: "
        "%d of %s failed alone%s: %s%s",
        batch.batch_id,
        batch.task_name,
        len(failures),
        messages(len(batch.messages)),
        f", found with {calls}" if extra_calls else "",
        "; ".join(named),
        outlook,
        exc_info=first if is_traced else None,
        extra={
            **fields_of_batch(batch),
            "messages": len(batch.messages),
            "failed": len(failures),
            "failed_ids": [message.task_id for message, _ in failures],
            "error": brief(first),
            "sent_again": again,
        },
    )


def _outlook(
    broker: AsyncBroker,
    failures: Sequence[tuple[TaskiqMessage, BaseException]],
) -> tuple[int, str]:
    """Foresee what retry middlewares make of failures.

    :returns: how many messages are sent again, and a sentence about it.
    """
    retrying = [
        planned
        for middleware in hooks_of(broker).on_error
        if (planned := getattr(middleware, "planned_retry", None)) is not None
    ]
    if not retrying:
        return 0, ""
    plans = [
        attempt(planned, message, error)
        for message, error in failures
        if INDEX_LABEL not in message.labels
        for planned in retrying
    ]
    known = [plan for plan in plans if plan and not isinstance(plan, Failed)]
    again = sum(plan.may_retry for plan in known)
    if len(failures) == 1 and known:
        of = f"run {known[0].number} of {known[0].limit}"
        return again, f" ({of}, sent again)" if again else f" ({of}, not sent again)"
    return again, f" ({messages(again)} sent again)" if again else ""
