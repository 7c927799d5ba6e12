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
from .cases import CASES
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
        handle = await kicker.kiq(*case.args, **case.kwargs)
        result = await handle.wait_result(check_interval=INTERVAL, timeout=TIMEOUT)
        progress = await handle.get_progress()
    except TaskiqError as error:
        return {"case": name, "no result": f"{error!r} because of {error.__cause__!r}"}
    return {
        "case": name,
        "failed": result.is_err,
        "value": describe(result.return_value),
        "error": describe_error(result.error),
        "chain": describe_chain(result.error),
        "labels": {name: describe(value) for name, value in result.labels.items()},
        "progress": progress and f"{progress.state} {progress.meta}",
    }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
