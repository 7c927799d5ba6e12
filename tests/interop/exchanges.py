"""A client of one package and workers of another, talking over a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .lines import RABBITMQ, REDIS, Line, remove, unacknowledged

Side: TypeAlias = Literal["ours", "released"]

#: Seconds after which a process hangs. A client gives up by itself before that.
_HANG = 60.0


@dataclass(frozen=True)
class Pairing:
    """Who talks to whom, over what."""

    client: Side
    workers: tuple[Side, ...]
    line: Line
    serializer: str

    def __str__(self) -> str:
        workers = "+".join(self.workers)
        return f"{self.client}-to-{workers}-{self.line}-{self.serializer}"


_SERIALIZERS = ("json", "orjson", "msgpack", "cbor", "pickle")
_LINES: tuple[Line, ...] = ("redis", "rabbitmq")
_ADAPTED: tuple[Line, ...] = ("adapted-redis", "adapted-rabbitmq")
_SPOKEN: list[tuple[Line, str]] = [
    *((line, serializer) for line in _LINES for serializer in _SERIALIZERS),
    *((line, "json") for line in _ADAPTED),
]
OUR_WORKERS = [Pairing("released", ("ours",), *spoken) for spoken in _SPOKEN]
OUR_CLIENTS = [Pairing("ours", ("released",), *spoken) for spoken in _SPOKEN]
FLEETS = [
    Pairing("ours", ("ours", "released"), line, "json") for line in (*_LINES, *_ADAPTED)
]


@dataclass(frozen=True)
class Exchange:
    """What came of it.

    :ivar answers: what the client read, by the name of the case.
    :ivar unacknowledged: how many messages our worker left when it ended on request;
        `None` if a worker of 0.13.0 took part, which may not end on request.
    :ivar log: what the workers logged.
    """

    pairing: Pairing
    answers: Mapping[str, Mapping[str, Any]]
    unacknowledged: int | None
    log: str


@dataclass(frozen=True)
class Stage:
    """Where the processes run, and with which interpreters.

    The directory is on their path and has this package in it as `interop`. Were it the
    checkout, the released interpreter would import our taskiq from there.
    """

    directory: Path
    pythons: Mapping[Side, Path]

    def hold(self, pairing: Pairing, cases: Sequence[str]) -> Exchange:
        """Start the workers, let the client send the cases, and clean up."""
        name = f"taskiq-interop-{uuid.uuid4().hex}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.directory),
            "TASKIQ_INTEROP_LINE": pairing.line,
            "TASKIQ_INTEROP_NAME": name,
            "TASKIQ_INTEROP_RABBITMQ": RABBITMQ,
            "TASKIQ_INTEROP_REDIS": REDIS,
            "TASKIQ_INTEROP_SERIALIZER": pairing.serializer,
        }
        with ExitStack() as stack:
            stack.callback(remove, pairing.line, name)
            workers = [
                stack.enter_context(self._worker(side, environment, name))
                for side in pairing.workers
            ]
            answers = self._ask(pairing.client, environment, cases)
            left = None
            if "released" not in pairing.workers:
                _stop(workers)
                left = unacknowledged(pairing.line, name)
            logs = [self._log(side, name) for side in pairing.workers]
        return Exchange(pairing, answers, left, "\n".join(logs))

    @contextmanager
    def _worker(
        self, side: Side, environment: Mapping[str, str], name: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        worker = ("-m", "taskiq", "worker", "interop.app:broker", "--workers=1")
        with self._log_path(side, name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [self.pythons[side], *worker],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_HANG)

    def _ask(
        self, side: Side, environment: Mapping[str, str], cases: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Run the client to its end."""
        done = subprocess.run(  # noqa: S603 - our own command
            [self.pythons[side], "-m", "interop.client", *cases],
            capture_output=True,
            check=False,
            cwd=self.directory,
            encoding="utf-8",
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_HANG,
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return {answer.pop("case"): answer for answer in answers}

    def _log_path(self, side: Side, name: str) -> Path:
        return self.directory / f"{name}-{side}.log"

    def _log(self, side: Side, name: str) -> str:
        log = self._log_path(side, name).read_text(encoding="utf-8", errors="replace")
        if side == "ours":
            return log
        # Tracebacks through the other package tell nothing about this one.
        return "\n".join(line for line in log.splitlines() if line.startswith("["))


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.wait(_HANG) == 0
