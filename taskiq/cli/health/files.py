"""The directory of a worker's heartbeats: one file for each process of it.

A file is replaced as a whole, so that nobody reads half of one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from taskiq.health import Fleet, heartbeat_of, roster_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from taskiq.health import Heartbeat, Roster

#: The variable that names the directory where the option is not given.
VARIABLE: Final = "TASKIQ_HEALTH_FILE"

_ROSTER: Final = "main.json"
_PREFIX: Final = "worker-"
_SUFFIX: Final = ".json"


class HealthDirectory:
    """Heartbeats in files.

    :param path: the directory, for one worker command.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def clear(self) -> None:
        """Make the directory, and remove what a worker has left that was killed.

        Whoever still lives writes again within a second.

        :raises OSError: it cannot be made, or written to.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        for file in self._files():
            file.unlink(missing_ok=True)
        (self._path / _ROSTER).unlink(missing_ok=True)

    def write(self, beat: Heartbeat) -> None:
        """Write what a process says.

        :raises OSError: it cannot be written.
        """
        self._replace(self._file(beat.pid), beat.as_json())

    def write_roster(self, roster: Roster) -> None:
        """Write which processes run.

        :raises OSError: it cannot be written.
        """
        self._replace(self._path / _ROSTER, roster.as_json())

    def remove(self, pid: int) -> None:
        """Forget a process that has ended; more than once is no harm."""
        with suppress(OSError):
            self._file(pid).unlink()

    def remove_all(self) -> None:
        """Forget the worker, which has ended."""
        with suppress(OSError):
            self.clear()

    def read(self) -> Fleet:
        """Read what the processes of a worker said last.

        :raises ValueError: a file is no heartbeat.
        """
        roster = _load(self._path / _ROSTER)
        beats = [
            record for file in self._files() if (record := _load(file)) is not None
        ]
        try:
            return fleet_of(roster, beats)
        except (KeyError, TypeError) as exc:
            raise ValueError(f"{self._path} has no heartbeats: {exc!r}") from exc

    def _files(self) -> list[Path]:
        return sorted(self._path.glob(f"{_PREFIX}*{_SUFFIX}"))

    def _file(self, pid: int) -> Path:
        return self._path / f"{_PREFIX}{pid}{_SUFFIX}"

    @staticmethod
    def _replace(file: Path, record: Mapping[str, Any]) -> None:
        fresh = file.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(record), encoding="utf-8")
        fresh.replace(file)


def fleet_of(
    roster: Mapping[str, Any] | None,
    beats: Iterable[Mapping[str, Any]],
) -> Fleet:
    """Make a fleet of what was read as JSON.

    :raises KeyError: a field is missing.
    :raises TypeError: something is of another kind.
    :raises ValueError: something has a value that it cannot have.
    """
    return Fleet(
        None if roster is None else roster_of(roster),
        tuple(heartbeat_of(beat) for beat in beats),
    )


def _load(file: Path) -> Any:
    """Read a file; `None` when it is not there, or not any more."""
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{file} is no heartbeat: {exc}") from exc
