"""Run Python files one after the other, each as a program of its own.

``python run_blocks.py LOG FILE...`` imports taskiq once and forks for every
file, which takes milliseconds where a new interpreter takes half a second. It writes
one JSON line per file to LOG: its status and what it printed. Each file runs in the
directory it is in. Where nothing forks (Windows) every file gets an interpreter.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Seconds a file may take; then its stacks are printed and it fails.
TIMEOUT = 60.0


def main(log: Path, files: list[Path]) -> None:
    """Run the files and log what became of each."""
    run = _run_forked if hasattr(os, "fork") else _run_anew
    with log.open("w", encoding="utf-8") as lines:
        for file in files:
            output = file.with_suffix(".output")
            status = run(file, output)
            text = output.read_text(encoding="utf-8", errors="replace")
            record = {"file": str(file), "status": status, "output": text}
            lines.write(json.dumps(record) + "\n")


def _run_forked(file: Path, output: Path) -> int:
    child = os.fork()
    if child == 0:
        _become(file, output)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _become(file: Path, output: Path) -> Any:
    """Be this program: its output, its directory, its arguments, its end."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable(2)
    faulthandler.dump_traceback_later(TIMEOUT, exit=True, file=2)
    os.chdir(file.parent)
    sys.argv = [str(file)]
    sys.path.insert(0, str(file.parent))
    status = 1
    try:
        runpy.run_path(str(file), run_name="__main__")
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # noqa: BLE001 - printed as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_anew(file: Path, output: Path) -> int:
    with output.open("wb") as stream:
        try:
            done = subprocess.run(  # noqa: S603 - our own files
                [sys.executable, str(file)],
                check=False,
                cwd=file.parent,
                stderr=subprocess.STDOUT,
                stdout=stream,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return -1
    return done.returncode


if __name__ == "__main__":
    import taskiq
    import taskiq.receiver

    # What most of the files use: imported here, it is not imported by each of them.
    assert taskiq.InMemoryBroker is not None
    main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])
