"""What is stored in the place of a result that cannot be stored.

Whoever waits for a result has to get one. If its value is the reason why it could not
be stored, that is not mended by another attempt, so an error that says so takes its
place. Any other failure is the result backend's own, and may be over the next time.
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from taskiq.chunks import CHUNK_LABEL
from taskiq.exceptions import UnstorableResultError
from taskiq.faults import Fault, error_of, find_fault, kind_of, largest_part, reason_of
from taskiq.labels import prepare_label
from taskiq.result import TaskiqResult
from taskiq.serialization import prepare_exception

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.faults import Dump

#: Most bytes of a string in Redis, and more than anything else takes at once. Redis
#: does not say so: it closes the connection.
_MOST_BYTES: Final = 512 * 1024 * 1024

#: What refuses a value for its size, by the name of the class: the libraries need not
#: be installed, and are not imported to ask.
_TOO_LARGE: Final = frozenset(
    {
        "DocumentTooLarge",  # pymongo
        "MaxPayloadError",  # nats
        "ProgramLimitExceeded",  # psycopg
        "ProgramLimitExceededError",  # asyncpg
    },
)

#: What Redis says of a string over `proto-max-bulk-len`.
_TOO_LARGE_TEXTS: Final = ("invalid bulk length", "exceeds maximum allowed size")

#: What refuses a value for another reason: asyncpg, psycopg and redis call it this.
_REFUSED: Final = "DataError"

#: What serialisers raise, also those that a result backend has built in.
_VALUE_ERRORS: Final = (
    AttributeError,  # pickle, of what is local to a function
    OverflowError,
    pickle.PicklingError,
    RecursionError,
    TypeError,
    ValueError,
)

_ANYTHING: Final = TypeAdapter[Any](Any)


def storable_instead(
    result: TaskiqResult[Any],
    failure: BaseException,
    backend: AsyncResultBackend[Any],
) -> TaskiqResult[Any] | None:
    """Give what to store in the place of a result that could not be stored.

    If only labels are at fault they become text, and value and error stay. Otherwise
    it is the result of a failed task, whose error names the part that was refused, and
    its type. Nothing is stored here, and `result` is not changed.

    :param failure: what `set_result` raised, or `set_results` returned, for it.
    :param backend: the result backend that refused it. Its `serializer`, if it has
        one, is asked again what it makes of each part.
    :returns: `None` if the failure is not about the value: the same result may be
        stored the next time.
    """
    dump = _dump_that_fails(result, failure, backend)
    fault, labels = None, result.labels
    if dump is not None and CHUNK_LABEL in labels:
        instead = _with_storable_items(result, dump)
        if instead is not None:
            return instead
    if dump is not None:
        fault = _fault_of(result, dump)
        labels = {name: _as_text(label, dump) for name, label in labels.items()}
        if fault is None and labels != result.labels:
            return result.model_copy(update={"labels": labels})
    fault = fault or _refusal_of(result, failure, backend)
    if fault is None:
        return None
    error = UnstorableResultError(
        path=fault.path,
        kind=fault.kind,
        reason=reason_of(fault.error) + _failure_before(result),
    )
    replaced = {"is_err": True, "return_value": None, "labels": labels, "error": error}
    return result.model_copy(update=replaced)


def _with_storable_items(
    result: TaskiqResult[Any],
    dump: Dump,
) -> TaskiqResult[Any] | None:
    """Put an error in the place of each item of a chunk that cannot be stored.

    :returns: `None` if that does not help.
    """
    entries: Any = result.return_value
    if not isinstance(entries, list):
        return None
    listed: list[Any] = entries  # pyright: ignore[reportUnknownVariableType]
    items = [_storable_item(entry, index, dump) for index, entry in enumerate(listed)]
    instead = result.model_copy(update={"return_value": items})
    return instead if error_of(dump, instead) is None else None


def _storable_item(entry: Any, index: int, dump: Dump) -> Any:
    if not issubclass(entry.__class__, TaskiqResult):
        return entry  # a hook has put it there
    item: TaskiqResult[Any] = entry
    fault = _fault_of(item, dump)
    if fault is None:
        return item
    error = UnstorableResultError(
        path=f"item {index}: {fault.path}",
        kind=fault.kind,
        reason=reason_of(fault.error) + _failure_before(item),
    )
    return item.model_copy(
        update={"is_err": True, "return_value": None, "error": error},
    )


def _dump_that_fails(
    result: TaskiqResult[Any],
    failure: BaseException,
    backend: AsyncResultBackend[Any],
) -> Dump | None:
    """Find a way to serialise that fails for this result, as its backend did."""
    serializer = getattr(backend, "serializer", None)
    if serializer is not None:
        dump = _through(serializer.dumpb)
        return None if error_of(dump, result) is None else dump
    reported = {type(error) for error in _causes_of(failure)}
    for dump in (_json_data, _finite_json, pickle.dumps):
        if type(error_of(dump, result)) in reported:
            return dump
    return None


def _json_data(value: Any) -> Any:
    return _ANYTHING.dump_python(value, mode="json")


def _finite_json(value: Any) -> str:
    """Refuse numbers that JSON does not have, and nothing else."""
    part = value  # for the type checkers, to which the result is one of unknowns
    if isinstance(value, TaskiqResult):
        part = part.return_value
    return json.dumps(part, allow_nan=False, default=str)


def _through(write: Dump) -> Dump:
    return lambda value: write(_json_data(value))


def _fault_of(result: TaskiqResult[Any], dump: Dump) -> Fault | None:
    fault = find_fault(result.return_value, "return_value", dump)
    if fault is None and result.error is not None:
        return find_fault(prepare_exception(result.error, json), "error", dump)
    return fault


def _as_text(label: Any, dump: Dump) -> Any:
    """Give a label as it travels in a message, if it cannot be stored as it is."""
    if error_of(dump, label) is None:
        return label
    text, _ = prepare_label(label)
    return text.encode("utf-8", "backslashreplace").decode()


def _refusal_of(
    result: TaskiqResult[Any],
    failure: BaseException,
    backend: AsyncResultBackend[Any],
) -> Fault | None:
    """Tell whether a result that can be serialised was refused for what it is."""
    value, path = result.return_value, "return_value"
    if result.error is not None:
        value, path = result.error.args, "error.args"
    for error in _causes_of(failure):
        if not isinstance(error, Exception) or isinstance(error, OSError):
            continue
        if _is_about_size(error):
            return Fault(*largest_part(value, path), error)
        if isinstance(error, _VALUE_ERRORS) or _REFUSED in _class_names(error):
            return Fault(path, kind_of(value), error)
    size = _size_of(result, backend)
    if size <= _MOST_BYTES:
        return None
    reason = ValueError(f"{size} bytes are too many: {reason_of(failure)}")
    return Fault(*largest_part(value, path), reason)


def _is_about_size(error: Exception) -> bool:
    is_named = not _TOO_LARGE.isdisjoint(_class_names(error))
    return is_named or any(text in str(error) for text in _TOO_LARGE_TEXTS)


def _class_names(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _size_of(result: TaskiqResult[Any], backend: AsyncResultBackend[Any]) -> int:
    serializer = getattr(backend, "serializer", None)
    if serializer is None:
        return 0
    size: int = len(serializer.dumpb(_json_data(result)))
    return size


def _causes_of(failure: BaseException) -> Iterator[BaseException]:
    """Walk an error and what it was raised from."""
    error: BaseException | None = failure
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__


def _failure_before(result: TaskiqResult[Any]) -> str:
    if result.error is None:
        return ""
    return f"; the task failed with {kind_of(result.error)}: {reason_of(result.error)}"
