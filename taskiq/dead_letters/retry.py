"""From a dead letter back to the message that it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskiq.dead_letters.letter import OWN_PREFIX
from taskiq.message import BrokerMessage
from taskiq.unsendable import dump_message

if TYPE_CHECKING:
    from taskiq.abc.formatter import TaskiqFormatter
    from taskiq.dead_letters.letter import DeadLetter


def restored(formatter: TaskiqFormatter, letter: DeadLetter) -> BrokerMessage:
    """Give the message to be sent again: its bytes as they were.

    Labels that taskiq has written, such as counts of deliveries, are taken off; only
    then are the bytes made anew. What cannot be read is sent as it is.
    """
    try:
        message = formatter.loads(letter.data)
    except Exception:  # noqa: BLE001 - of a formatter of somebody's
        return BrokerMessage(
            task_id=letter.task_id,
            task_name=letter.task_name,
            message=letter.data,
            labels={},
        )
    own = [name for name in message.labels if name.startswith(OWN_PREFIX)]
    if own:
        for name in own:
            del message.labels[name]
            (message.labels_types or {}).pop(name, None)
        return dump_message(formatter, message)
    return BrokerMessage(
        task_id=message.task_id,
        task_name=message.task_name,
        message=letter.data,
        labels=message.labels,
    )
