"""Send the cases named on the command line; print an answer to each, as a line of JSON.

Runs unchanged on both packages, all cases at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from taskiq import TaskiqError

from .app import broker
from .cases import CASES, Case
from .values import describe, describe_chain, describe_error

#: Seconds after which there will be no result, and between two looks at it.
TIMEOUT = 20.0
INTERVAL = 0.05


async def main(names: list[str]) -> None:
    await broker.startup()
    try:
        answers = await asyncio.gather(*map(ask, names))
    finally:
        await broker.shutdown()
    for answer in answers:
        sys.stdout.write(json.dumps(answer) + "\n")


async def ask(name: str) -> dict[str, Any]:
    """Tell all that the sender of a task gets to know."""
    case = CASES[name]
    task = broker.find_task(case.task)
    assert task is not None, f"{case.task!r} is no task"
    kicker: Any = task.kicker().with_labels(**case.labels)
    try:
        handle = await send(kicker, case)
        result = await handle.wait_result(check_interval=INTERVAL, timeout=TIMEOUT)
        progress = await handle.get_progress()
    except TaskiqError as error:
        return {"case": name, "no result": f"{error!r} because of {error.__cause__!r}"}
    return {
        "case": name,
        "failed": result.is_err,
        "value": describe(value_of(case, result.return_value)),
        "error": describe_error(result.error),
        "chain": describe_chain(result.error),
        "labels": {name: describe(value) for name, value in result.labels.items()},
        "progress": progress and f"{progress.state} {progress.meta}",
    }


async def send(kicker: Any, case: Case) -> Any:
    if case.items is None:
        return await kicker.kiq(*case.args, **case.kwargs)
    if hasattr(kicker, "kiq_chunk"):
        return await kicker.kiq_chunk(case.items, *case.args, **case.kwargs)
    # As the guide says what is on the wire.
    wire = {"batch_chunk.items": case.items, "batch_chunk.args": case.args}
    return await kicker.with_labels(batch_chunk=len(case.items)).kiq(**wire)


def value_of(case: Case, value: Any) -> Any:
    """Give what was returned; of a chunk that of each item, or the name of its error.

    Who does not know of chunks reads the results of items as they are stored.
    """
    if case.items is None or value is None:
        return value
    entries = [each if isinstance(each, dict) else vars(each) for each in value]
    return [
        name_of(each["error"]) if each["is_err"] else each["return_value"]
        for each in entries
    ]


def name_of(error: Any) -> str:
    if isinstance(error, BaseException):
        return type(error).__name__
    name: str = error["exc_type"] if isinstance(error, dict) else error.exc_type
    return name


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
