"""The two virtual environments that are compared, and the interpreters in them."""

from __future__ import annotations

import json
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

_SCRIPTS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python with one of the two packages installed."""

    label: str
    python: Path
    versions: dict[str, str]

    def run(self, script: str, *arguments: str) -> dict[str, float]:
        """Run a child script in a fresh process and return what it measured."""
        measured: dict[str, float | None] = _run_script(self.python, script, *arguments)
        return {
            key: float(value) for key, value in measured.items() if value is not None
        }


def candidate(python: Path | None) -> Interpreter:
    """The interpreter with this checkout, from `python` or from a cached environment.

    The installation is editable, so a cached environment always runs the current files.
    """
    return _probe("ours", python or _candidate_environment())


def baseline(python: Path | None, beside: Interpreter) -> Interpreter:
    """The interpreter with the released taskiq.

    A made environment gets the dependency versions of `beside`, because a different
    pydantic alone would move the figures.
    """
    found = _probe(BASELINE_VERSION, python or _baseline_environment(beside.python))
    if found.versions["taskiq"] != BASELINE_VERSION:
        raise EnvironmentNotMadeError(
            f"{found.python} has taskiq {found.versions['taskiq']}, "
            f"but the baseline must be {BASELINE_VERSION}",
        )
    return found


def _candidate_environment() -> Path:
    return make_environment(
        CACHE / "candidate",
        requirements=["--editable", str(CHECKOUT)],
        made_from=(CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"),
    )


def _baseline_environment(beside: Path) -> Path:
    pins = run_command([str(beside), "-m", "pip", "freeze", "--exclude", "taskiq"])
    CACHE.mkdir(exist_ok=True)
    constraints = CACHE / "constraints.txt"
    constraints.write_text(_without_local_paths(pins), encoding="utf-8")
    return make_environment(
        CACHE / f"taskiq-{BASELINE_VERSION}",
        requirements=[
            f"taskiq=={BASELINE_VERSION}",
            "--constraint",
            str(constraints),
        ],
        made_from=pins,
    )


def _without_local_paths(pins: str) -> str:
    """Keep `name==version` lines; pip accepts no other kind as a constraint."""
    return "".join(line for line in pins.splitlines(keepends=True) if "==" in line)


def _probe(label: str, python: Path) -> Interpreter:
    """Ask the interpreter for its versions; also compiles both packages to bytecode."""
    return Interpreter(label, python, _run_script(python, "workloads.py", "versions"))


def _run_script(python: Path, script: str, *arguments: str) -> Any:
    """The JSON a script prints, run apart from the checkout and the environment."""
    return json.loads(
        run_command([str(python), "-I", str(_SCRIPTS / script), *arguments])
    )
