"""Why a message cannot be serialised: which argument of it, and where in that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskiq.chunks import ARGS, ITEMS
from taskiq.exceptions import (
    SendTaskError,
    UnsendableArgumentError,
    UnsendableBytesError,
)
from taskiq.faults import find_fault, reason_of
from taskiq.outage import is_unreachable
from taskiq.utils import has_lone_surrogate, is_odd_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from taskiq.abc.formatter import TaskiqFormatter
    from taskiq.message import BrokerMessage, TaskiqMessage

    _Pack: TypeAlias = Callable[[Any], dict[str, Any]]


_CHUNK_PATHS: Final = {ITEMS: "items", ARGS: "args"}


def dump_message(formatter: TaskiqFormatter, message: TaskiqMessage) -> BrokerMessage:
    """Turn a message into what a broker sends.

    :raises UnsendableArgumentError: when an argument or a label cannot be serialised.
    :raises SendTaskError: when the formatter fails for another reason.
    """
    try:
        return formatter.dumps(message)
    except Exception as exc:
        raise _send_error(formatter, message) from exc


def _send_error(formatter: TaskiqFormatter, message: TaskiqMessage) -> SendTaskError:
    """Tell which part of a message is the reason that it cannot be dumped."""
    nothing: dict[str, Any] = {"args": [], "kwargs": {}, "labels": {}}
    for path, value, pack in _parts_of(message):

        def dump(part: Any, pack: _Pack = pack) -> object:
            return formatter.dumps(message.model_copy(update=nothing | pack(part)))

        fault = find_fault(value, path, dump)
        if fault is not None:
            return UnsendableArgumentError(
                task_name=message.task_name,
                path=fault.path,
                kind=fault.kind,
                reason=reason_of(fault.error),
            )
    # Each part can be dumped by itself: they are too many together, or the formatter
    # is broken. Only the cause knows.
    return SendTaskError()


def refused_by(broker: object, sent: BrokerMessage, cause: Exception) -> SendTaskError:
    """Make the error of a message that a broker did not send, with its cause."""
    error = SendTaskError()
    kind = type(broker).__name__
    if isinstance(cause, UnicodeDecodeError):
        error = UnsendableBytesError(task_name=sent.task_name, broker=kind)
    elif not is_unreachable(cause):
        odd = [path for path, text in _texts_of(sent) if is_odd_text(text)]
        if odd:
            error = _no_text(sent.task_name, odd[0], f"{kind}: {reason_of(cause)}")
    error.__cause__ = cause
    return error


def check_id(message: TaskiqMessage) -> None:
    """Refuse an id that nobody could store a result under, or log.

    :raises UnsendableArgumentError: if it has a lone surrogate.
    """
    if has_lone_surrogate(message.task_id):
        reason = f"no result can be stored under {message.task_id!a}"
        raise _no_text(message.task_name, "task_id", reason)


def _no_text(task_name: str, path: str, reason: str) -> UnsendableArgumentError:
    return UnsendableArgumentError(
        task_name=_escaped(task_name),
        path=_escaped(path),
        kind="str with a lone surrogate or a NUL",
        reason=reason,
    )


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _texts_of(sent: BrokerMessage) -> Iterator[tuple[str, object]]:
    """Walk what a broker sends beside the bytes."""
    yield "task_id", sent.task_id
    yield "task_name", sent.task_name
    for name, value in sent.labels.items():
        yield f"the name of labels[{name!r}]", name
        yield f"labels[{name!r}]", value


def _as_argument(part: Any) -> dict[str, Any]:
    return {"args": [part]}


def _as_label(part: Any) -> dict[str, Any]:
    return {"labels": {"": part}}


def _parts_of(message: TaskiqMessage) -> Iterator[tuple[str, Any, _Pack]]:
    """Walk what a message carries: path, value, and what a message of it alone has."""
    for index, value in enumerate(message.args):
        yield f"args[{index}]", value, _as_argument
    for name, value in message.kwargs.items():
        # Of a chunk under the names that its sender knows.
        path = _CHUNK_PATHS.get(name, f'kwargs["{name}"]')
        yield path, value, _as_argument
    for name, value in message.labels.items():
        yield f'labels["{name}"]', value, _as_label
