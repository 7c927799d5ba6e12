"""Files of prometheus_client's multi-process mode that outlived their process.

Each process keeps its values in files of its own, named after its id, and a scrape
adds up all files. Nobody removes them, so a restarted worker would go on counting
where the one before ended.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FILE_NAME: Final = re.compile(r"(?:counter|gauge_\w+|histogram|summary)_(\d+)\.db")


def remove_leftovers(directory: Path) -> None:
    """Remove what processes that ended have left, unless others are still counting.

    As long as another process writes there, the counts of those that ended belong to
    the totals: a total that shrinks looks to Prometheus like a counter that started
    again, and its rest like a jump. Only the live gauges of the ended are removed.

    :raises OSError: when the directory cannot be read, or a file not be removed.
    """
    files = _files_by_process(directory.iterdir())
    in_use = {pid for pid in files if any(_is_in_use(f, pid) for f in files[pid])}
    ended = files.keys() - in_use
    if in_use - {os.getpid()}:
        _mark_dead(directory, ended)
        return
    for pid in ended:
        for file in files[pid]:
            file.unlink(missing_ok=True)  # a sibling may be doing the same


def _mark_dead(directory: Path, pids: Iterable[int]) -> None:
    from prometheus_client import multiprocess  # noqa: PLC0415 - an optional library

    for pid in pids:
        multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call] # pyright: ignore[reportUnknownMemberType]


def _files_by_process(paths: Iterable[Path]) -> dict[int, list[Path]]:
    files: dict[int, list[Path]] = {}
    for path in paths:
        if match := _FILE_NAME.fullmatch(path.name):
            files.setdefault(int(match[1]), []).append(path)
    return files


def _is_in_use(file: Path, pid: int) -> bool:
    """Whether the process that a file is named after is still writing to it.

    Where that can be seen (Linux), a new process that got the id of an ended one, as
    in each start of a container, is not taken for it.
    """
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as mapped:
            return any(line.rstrip().endswith(f"/{file.name}") for line in mapped)
    except OSError:
        return _is_running(pid)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # asking would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True
