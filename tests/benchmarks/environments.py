"""The two virtual environments that are compared, and the interpreters in them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = CHECKOUT / ".benchmarks"
BASELINE_VERSION = "0.13.0"

_SCRIPTS = Path(__file__).resolve().parent
_STAMP = "benchmark-stamp"
_CHILD_TIMEOUT = 600.0


class BenchmarkError(Exception):
    """An environment cannot be made, or a child process failed; the text says why."""


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
        raise BenchmarkError(
            f"{found.python} has taskiq {found.versions['taskiq']}, "
            f"but the baseline must be {BASELINE_VERSION}",
        )
    return found


def _candidate_environment() -> Path:
    return _environment(
        CACHE / "candidate",
        requirements=["--editable", str(CHECKOUT)],
        made_from=(CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"),
    )


def _baseline_environment(beside: Path) -> Path:
    pins = _run([str(beside), "-m", "pip", "freeze", "--exclude", "taskiq"])
    CACHE.mkdir(exist_ok=True)
    constraints = CACHE / "constraints.txt"
    constraints.write_text(_without_local_paths(pins), encoding="utf-8")
    return _environment(
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


def _environment(directory: Path, requirements: list[str], made_from: str) -> Path:
    """Make the virtual environment, or reuse it if nothing it was made from changed.

    Returns its Python. The stamp is written last, so an interrupted or failed
    installation is made again the next time.
    """
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = directory / _STAMP
    recipe = "\n".join((sys.version, sys.base_prefix, *requirements, made_from))
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return python

    say(f"making {directory.relative_to(CHECKOUT)} ...")
    shutil.rmtree(directory, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(directory)])
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements])
    stamp.write_text(digest, encoding="utf-8")
    return python


def _probe(label: str, python: Path) -> Interpreter:
    """Ask the interpreter for its versions; also compiles both packages to bytecode."""
    return Interpreter(label, python, _run_script(python, "workloads.py", "versions"))


def _run_script(python: Path, script: str, *arguments: str) -> Any:
    """The JSON a script prints, run apart from the checkout and the environment."""
    return json.loads(_run([str(python), "-I", str(_SCRIPTS / script), *arguments]))


def _run(command: list[str]) -> str:
    """Run a command and return its output; `BenchmarkError` if it cannot or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the command is built here
            command,
            capture_output=True,
            check=True,
            cwd=CHECKOUT.anchor,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            timeout=_CHILD_TIMEOUT,
        )
    except subprocess.CalledProcessError as error:
        ended, output = f"exit status {error.returncode}", error.stderr or error.stdout
    except subprocess.TimeoutExpired as error:
        ended, output = f"no end within {error.timeout:.0f} seconds", ""
    except OSError as error:
        ended, output = str(error), ""
    else:
        return done.stdout
    last_lines = "\n".join(output.strip().splitlines()[-15:])
    raise BenchmarkError(f"{' '.join(command)}\n{ended}\n{last_lines}".rstrip())


def say(line: str) -> None:
    """Print progress, apart from the table on standard output."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
