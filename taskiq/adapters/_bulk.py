"""What all adapters need to do many operations in few round trips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskiq.bulk import CHUNK_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from taskiq.result import TaskiqResult

_Entry = TypeVar("_Entry")

#: Bytes of one round trip, more or less. What is larger travels alone, so that a server
#: that takes offence at it harms nobody else.
_CHUNK_BYTES: Final = 4 * 1024 * 1024


def plugin_is_missing(adapter: str, distribution: str) -> ImportError:
    """Make the error of an adapter whose plugin cannot be imported.

    :param adapter: name of the module.
    :param distribution: what to install.
    """
    return ImportError(
        f"{adapter} adapts {distribution}, which cannot be imported; "
        f"install it: pip install '{distribution}'",
    )


def chunks(
    entries: Sequence[_Entry],
    size_of: Callable[[_Entry], int],
) -> Iterator[Sequence[_Entry]]:
    """Cut entries into pieces that are one round trip each, in order.

    :param size_of: gives the bytes of an entry.
    """
    start = size = 0
    for end, entry in enumerate(entries):
        size += size_of(entry)
        is_full = end - start == CHUNK_SIZE or size > _CHUNK_BYTES
        if is_full and end > start:
            yield entries[start:end]
            start, size = end, size_of(entry)
    if start < len(entries):
        yield entries[start:]


def _fit(entries: Sequence[_Entry], size_of: Callable[[_Entry], int] | None) -> bool:
    """Whether entries are one round trip, and each of them can be sent."""
    if len(entries) > CHUNK_SIZE:
        return False
    try:
        return size_of is None or sum(map(size_of, entries)) <= _CHUNK_BYTES
    except Exception:  # noqa: BLE001 - it is found who this was
        return False


async def in_chunks(
    operation: Callable[[Sequence[_Entry]], Awaitable[Sequence[Any]]],
    entries: Sequence[_Entry],
    size_of: Callable[[_Entry], int] | None = None,
) -> list[Any]:
    """Do entries chunk by chunk, each chunk in one round trip.

    :param operation: gives an outcome for each entry, in order. What it raises, such as
        for a lost connection, is the outcome of each entry of its chunk.
    :param size_of: gives the bytes of an entry, where they may be many. What it raises,
        for one that cannot be sent, is the outcome of that entry.
    :returns: the outcomes, in order.
    """
    if not entries:
        return []
    if _fit(entries, size_of):  # mostly
        return list(await _outcomes(operation, entries))
    outcomes: list[Any] = [None] * len(entries)
    sizes: dict[int, int] = {}
    for number, entry in enumerate(entries):
        try:
            sizes[number] = 0 if size_of is None else size_of(entry)
        except Exception as exc:  # noqa: BLE001, PERF203 - each fails for itself
            outcomes[number] = exc
    for numbers in chunks(list(sizes), sizes.__getitem__):
        done = await _outcomes(operation, [entries[number] for number in numbers])
        for number, outcome in zip(numbers, done, strict=True):
            outcomes[number] = outcome
    return outcomes


async def _outcomes(
    operation: Callable[[Sequence[_Entry]], Awaitable[Sequence[Any]]],
    entries: Sequence[_Entry],
) -> Sequence[Any]:
    try:
        return await operation(entries)
    except Exception as exc:  # noqa: BLE001 - what was done is unknown
        return [exc] * len(entries)


def dump_all(
    results: Mapping[str, TaskiqResult[Any]],
    dump: Callable[[TaskiqResult[Any]], bytes],
) -> tuple[list[tuple[str, bytes]], dict[str, Exception]]:
    """Serialise results; each fails for itself.

    :returns: ids and serialised results, and the errors of the others by id.
    """
    dumped: list[tuple[str, bytes]] = []
    errors: dict[str, Exception] = {}
    for task_id, result in results.items():
        try:
            dumped.append((task_id, dump(result)))
        except Exception as exc:  # noqa: BLE001, PERF203 - see above
            errors[task_id] = exc
    return dumped, errors


def failures(
    entries: Sequence[tuple[str, Any]],
    outcomes: Sequence[Exception | None],
) -> dict[str, Exception]:
    """Give the errors among outcomes, by the ids of their entries."""
    if outcomes.count(None) == len(entries):  # mostly
        return {}
    return {
        task_id: outcome
        for (task_id, _), outcome in zip(entries, outcomes, strict=True)
        if outcome is not None
    }


def load_all(
    task_ids: Sequence[str],
    outcomes: Sequence[bytes | Exception | None],
    load: Callable[[bytes], TaskiqResult[Any]],
) -> dict[str, TaskiqResult[Any]]:
    """Deserialise those of many results that are there.

    :param outcomes: for each id the serialised result, `None` if there is none, or why
        it could not be read.
    :raises Exception: the first error, if there was one and nothing could be read.
    """
    found: dict[str, TaskiqResult[Any]] = {}
    errors: list[Exception] = []
    for task_id, outcome in zip(task_ids, outcomes, strict=True):
        if isinstance(outcome, Exception):
            errors.append(outcome)
        elif outcome is not None:
            try:
                found[task_id] = load(outcome)
            except Exception as exc:  # noqa: BLE001 - each fails for itself
                errors.append(exc)
    if errors and not found:
        raise errors[0]
    return found
