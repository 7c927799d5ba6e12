"""Virtual environments that are made once, and commands run in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
RELEASED_VERSION = "0.13.0"

_STAMP = "environment-stamp"
_CHILD_TIMEOUT = 600.0
_RELEASED = (
    f"taskiq[cbor,msgpack,orjson]=={RELEASED_VERSION}",
    "taskiq-redis>=1.2",
    "taskiq-aio-pika>=0.6",
    # How values are written depends on it.
    f"pydantic=={version('pydantic')}",
)
_PRINT_VERSION = "from importlib.metadata import version; print(version('taskiq'))"


class EnvironmentNotMadeError(Exception):
    """An environment cannot be made, or a child process failed; the text says why."""


def released_python() -> Path:
    """Find or make the interpreter: `TASKIQ_RELEASED_PYTHON`, or one in `.released`.

    :raises EnvironmentNotMadeError: it cannot be made, or has another taskiq.
    """
    given = os.environ.get("TASKIQ_RELEASED_PYTHON")
    python = Path(given).absolute() if given else _made_released_python()
    found = run_command([str(python), "-I", "-c", _PRINT_VERSION]).strip()
    if found != RELEASED_VERSION:
        raise EnvironmentNotMadeError(
            f"{python} has taskiq {found}, not {RELEASED_VERSION}",
        )
    return python


def _made_released_python() -> Path:
    directory = CHECKOUT / ".released"
    return make_environment(directory, requirements=list(_RELEASED), made_from="")


def make_environment(directory: Path, requirements: list[str], made_from: str) -> Path:
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
    run_command([sys.executable, "-m", "venv", str(directory)])
    run_command([str(python), "-m", "pip", "install", "--quiet", *requirements])
    stamp.write_text(digest, encoding="utf-8")
    return python


def run_command(command: list[str]) -> str:
    """Run a command and return its output.

    :raises EnvironmentNotMadeError: when it cannot be run, or fails.
    """
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
    raise EnvironmentNotMadeError(
        f"{' '.join(command)}\n{ended}\n{last_lines}".rstrip()
    )


def say(line: str) -> None:
    """Print progress, apart from the table on standard output."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
