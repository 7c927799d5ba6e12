"""What the main process of a worker does for its health: the roster, and HTTP."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from http import HTTPStatus
from logging import getLogger
from typing import TYPE_CHECKING, Any

from taskiq.cli.finding import StartError
from taskiq.cli.health.cmd import verdict
from taskiq.cli.health.endpoint import Answer, Endpoint
from taskiq.cli.health.files import HealthDirectory
from taskiq.health import INTERVAL, Roster

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskiq.cli.worker.args import WorkerArgs
    from taskiq.health import Fleet

logger = getLogger("taskiq.process-manager")


class HealthWatch:
    """Says which processes run, and answers probes.

    :param args: of the worker. Without a directory nothing is said; with a port alone
        its processes are given a directory of their own.
    :raises StartError: the directory or the port cannot be used.
    """

    def __init__(self, args: WorkerArgs) -> None:
        self._args = args
        self._started_at = time.time()
        self._said: tuple[int, ...] = ()
        self._said_at = 0.0
        self._has_failed = False
        self._own_directory: str | None = None
        self._directory: HealthDirectory | None = None
        self._endpoint: Endpoint | None = None
        if args.health_port is not None:
            self._endpoint = _opened(args.health_port)
        if args.health_port is not None and args.health_file is None:
            self._own_directory = tempfile.mkdtemp(prefix="taskiq-health-")
            args.health_file = self._own_directory
        if args.health_file is not None:
            self._directory = _cleared(args.health_file)

    @property
    def waited_for(self) -> list[Any]:
        """Sockets that are readable when there is something to answer."""
        return [] if self._endpoint is None else self._endpoint.sockets

    def look(self, running: Iterable[int]) -> None:
        """Say which processes run, if that is not known, and answer who has asked.

        :param running: their pids.
        """
        directory = self._directory
        if directory is None:
            return
        pids, now = tuple(running), time.time()
        for gone in set(self._said) - set(pids):
            directory.remove(gone)
        # A clock that was set back is no reason to be silent.
        if pids != self._said or not 0 <= now - self._said_at < INTERVAL:
            self._said, self._said_at = pids, now
            self._write(directory, now)
        if self._endpoint is not None:
            self._endpoint.serve(lambda path: self._answer(directory, path))

    @staticmethod
    def _answer(directory: HealthDirectory, path: str) -> Answer:
        try:
            return answer(directory.read(), path, time.time())
        except (OSError, ValueError) as exc:
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{exc}\n")

    def _write(self, directory: HealthDirectory, now: float) -> None:
        roster = Roster(
            host=platform.node(),
            pid=os.getpid(),
            broker=self._args.broker,
            started_at=self._started_at,
            written_at=now,
            workers=self._args.workers,
            running=self._said,
        )
        try:
            directory.write_roster(roster)
        except OSError as exc:
            if not self._has_failed:
                logger.warning("Cannot write which processes run: %s", exc)
            self._has_failed = True
        else:
            self._has_failed = False

    def close(self) -> None:
        """Answer no more, and leave no files."""
        if self._endpoint is not None:
            self._endpoint.close()
        if self._directory is not None:
            self._directory.remove_all()
        if self._own_directory is not None:
            shutil.rmtree(self._own_directory, ignore_errors=True)


def answer(fleet: Fleet, path: str, now: float) -> Answer:
    """Answer a request: `/live`, `/ready`, or `/workers` for all there is as JSON."""
    if path == "/workers":
        return Answer(HTTPStatus.OK, json.dumps(as_json(fleet)), "application/json")
    if path not in {"/live", "/ready"}:
        return Answer(HTTPStatus.NOT_FOUND, "There are /live, /ready and /workers.\n")
    text, is_well = verdict(fleet, now, is_live_only=path == "/live")
    return Answer(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, text)


def as_json(fleet: Fleet) -> dict[str, Any]:
    """Give a fleet as what `json` writes."""
    return {
        "main": None if fleet.roster is None else fleet.roster.as_json(),
        "workers": [beat.as_json() for beat in fleet.running()],
    }


def _cleared(path: str) -> HealthDirectory:
    directory = HealthDirectory(path)
    try:
        directory.clear()
    except OSError as exc:
        text = f"Cannot write heartbeats to {path!r}: {exc}"
        raise StartError(text, status=1) from exc
    return directory


def _opened(port: int) -> Endpoint:
    try:
        return Endpoint(port)
    except (OSError, OverflowError) as exc:
        text = f"Cannot answer probes at port {port}: {exc}"
        raise StartError(text, status=1) from exc
