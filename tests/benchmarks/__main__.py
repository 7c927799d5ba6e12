"""Command line of the benchmarks: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import (
    bulk,
    core,
    embeddings,
    growth,
    in_process,
    lateness,
    memory,
    pacing,
    peers,
    postgres,
    servers,
    waiting,
)
from tests.benchmarks.environments import BASELINE_VERSION, Environments
from tests.benchmarks.options import Options
from tests.benchmarks.publish import publish
from tests.support.arguments import positive
from tests.support.environments import EnvironmentNotMadeError, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.report import Page

TABLES: dict[str, Callable[[Options], Page]] = {
    "core": core.measure,
    "in-process": in_process.measure,
    "memory": memory.measure,
    "lateness": lateness.measure,
    "servers": servers.measure,
    "postgres": postgres.measure,
    "peers": peers.measure,
    "bulk": bulk.measure,
    "embeddings": embeddings.measure,
    "waiting": waiting.measure,
    "growth": growth.measure,
    "pacing": pacing.measure,
}


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line asked for."""

    tables: list[str]
    options: Options
    output: Path | None
    docs: Path | None


def parse(arguments: list[str]) -> Command:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure this checkout against taskiq "
        f"{BASELINE_VERSION} and other packages. Each run is a process of its own, "
        "what is compared takes turns, and the tables show medians. The first run "
        "makes virtual environments in .benchmarks/. Servers, postgres, growth and "
        "bulk need Redis, RabbitMQ, NATS and PostgreSQL on this machine, peers and "
        "waiting a redis-server on the PATH.",
    )
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="TABLE",
        type=_table,
        help=f"what to measure: {', '.join(TABLES)} or all (default: core)",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=5,
        metavar="N",
        help="runs of each case (default: 5)",
    )
    parser.add_argument(
        "--scale",
        type=_factor,
        default=1.0,
        metavar="F",
        help="multiply every number of messages, to try something out (default: 1)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[*core.WORKLOADS, core.IMPORT],
        help="of core, run this workload only; may be given several times",
    )
    parser.add_argument(
        "--output",
        type=_new_file,
        metavar="FILE",
        help="write the tables there as well",
    )
    parser.add_argument(
        "--docs",
        type=_docs,
        metavar="DIR",
        help="put the tables into performance.md there, and the plots beside it",
    )
    parser.add_argument(
        "--baseline-python",
        type=_interpreter,
        metavar="PYTHON",
        help=f"use this interpreter, which has taskiq {BASELINE_VERSION}, as it is",
    )
    parser.add_argument(
        "--candidate-python",
        type=_interpreter,
        metavar="PYTHON",
        help="use this interpreter, which has the package to judge, as it is",
    )
    given = parser.parse_args(arguments)
    names = given.tables or ["core"]
    return Command(
        tables=list(TABLES) if "all" in names else names,
        options=Options(
            rounds=given.rounds,
            scale=given.scale,
            environments=Environments(given.candidate_python, given.baseline_python),
            only=tuple(given.only or ()),
        ),
        output=given.output,
        docs=given.docs,
    )


def _table(text: str) -> str:
    if text != "all" and text not in TABLES:
        raise argparse.ArgumentTypeError(f"there is no table {text!r}")
    return text


def _factor(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _new_file(text: str) -> Path:
    """Refuse before the long run what could not be written after it."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a directory")
    return path


def _docs(text: str) -> Path:
    path = Path(text).absolute()
    if not (path / "performance.md").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} has no performance.md")
    return path


def _interpreter(text: str) -> Path:
    """Absolute, but no link followed: a venv's Python is a link out of the venv."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no Python interpreter")
    return path


def run(command: Command) -> str:
    """Measure what was asked for, publish each table, and return all as Markdown."""
    texts: list[str] = []
    for name in command.tables:
        say(f"== {name}")
        page = TABLES[name](command.options)
        texts.append(page.text)
        if command.docs is not None:
            plotter = command.options.environments.peer("plots")
            publish(command.docs, name, page, plotter)
    return "\n\n".join(texts) + "\n"


def main() -> int:
    """Run the command; returns the exit status."""
    command = parse(sys.argv[1:])
    try:
        text = run(command)
    except EnvironmentNotMadeError as error:
        say(f"benchmark failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    if command.output is not None:
        command.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
