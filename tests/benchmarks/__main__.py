"""Command line of the benchmarks: `python -m tests.benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.environments import (
    BASELINE_VERSION,
    Interpreter,
    baseline,
    candidate,
)
from tests.support.environments import EnvironmentNotMadeError, say

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORT = "import"


@dataclass(frozen=True, slots=True)
class Workload:
    """What to compare: the case of this package with the one of the released."""

    ours: str
    theirs: str

    @property
    def title(self) -> str:
        """The name in the table."""
        same = self.ours == self.theirs
        return self.ours if same else f"{self.ours} (0.13.0: {self.theirs})"


#: In the order of the table. Only this package has batches: what the same messages cost
#: without them is the released package's plain `listen`.
WORKLOADS = {
    "kiq": Workload("kiq", "kiq"),
    "kiq-inmemory": Workload("kiq-inmemory", "kiq-inmemory"),
    "callback": Workload("callback", "callback"),
    "listen": Workload("listen", "listen"),
    "listen-acks": Workload("listen-acks", "listen-acks"),
    "batch": Workload("batch", "listen"),
    "batch-each": Workload("batch-each", "listen"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    rounds: int
    messages: int
    only: list[str]
    output: Path | None
    baseline_python: Path | None
    candidate_python: Path | None


def parse(arguments: list[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=f"Compare this checkout with taskiq {BASELINE_VERSION}. Each run "
        "is a process of its own, the packages take turns, and the table shows the "
        "medians of the CPU time. The first run makes two virtual environments in "
        ".benchmarks/.",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        metavar="N",
        help="runs of each workload on each package (default: 5)",
    )
    parser.add_argument(
        "--messages",
        type=_positive,
        default=20_000,
        metavar="N",
        help="messages of one run (default: 20000)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[*WORKLOADS, IMPORT],
        help="run this workload only; may be given several times",
    )
    parser.add_argument(
        "--output",
        type=_new_file,
        metavar="FILE",
        help="write the table there as well",
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
    return Options(
        rounds=given.rounds,
        messages=given.messages,
        only=given.only or [*WORKLOADS, IMPORT],
        output=given.output,
        baseline_python=given.baseline_python,
        candidate_python=given.candidate_python,
    )


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _new_file(text: str) -> Path:
    """Refuse before the long run what could not be written after it."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a directory")
    return path


def _interpreter(text: str) -> Path:
    """Absolute, but no link followed: a venv's Python is a link out of the venv."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no Python interpreter")
    return path


def compare(options: Options) -> str:
    """Run everything that was asked for and return the report as Markdown."""
    ours = candidate(options.candidate_python)
    theirs = baseline(options.baseline_python, beside=ours)
    parts = [_conditions(options, ours, theirs)]

    names = [name for name in WORKLOADS if name in options.only]
    if names:
        rows = [_compare_workload(name, options, ours, theirs) for name in names]
        parts.append(report.messages_table(rows))
    if IMPORT in options.only:
        parts.append(report.import_table(_compare_import(options, ours, theirs)))
    return "\n\n".join(parts) + "\n"


def _compare_workload(
    name: str,
    options: Options,
    ours: Interpreter,
    theirs: Interpreter,
) -> tuple[report.Comparison, report.Comparison]:
    workload, messages = WORKLOADS[name], options.messages

    def measure(interpreter: Interpreter) -> tuple[report.Samples, str]:
        case = workload.ours if interpreter is ours else workload.theirs
        sample = interpreter.run("workloads.py", case, str(messages))
        return sample, f"{case}: {sample['cpu'] / messages * 1e6:.1f} us/message"

    samples = _take_turns(options.rounds, ours, theirs, measure)
    return report.message_rows(workload.title, messages, *samples)


def _compare_import(
    options: Options,
    ours: Interpreter,
    theirs: Interpreter,
) -> list[report.Comparison]:
    def measure(interpreter: Interpreter) -> tuple[report.Samples, str]:
        sample = interpreter.run("import_cost.py")
        return sample, f"import: {sample['wall'] * 1e3:.0f} ms"

    samples = _take_turns(options.rounds, ours, theirs, measure)
    return report.import_rows(*samples)


def _take_turns(
    rounds: int,
    ours: Interpreter,
    theirs: Interpreter,
    measure: Callable[[Interpreter], tuple[report.Samples, str]],
) -> tuple[list[report.Samples], list[report.Samples]]:
    """Measure both in alternation, so that a slow minute of the machine hits both.

    Returns the samples of ours and of theirs, one a round.
    """
    samples: tuple[list[report.Samples], list[report.Samples]] = ([], [])
    for number in range(1, rounds + 1):
        for interpreter, collected in zip((ours, theirs), samples, strict=True):
            sample, summary = measure(interpreter)
            collected.append(sample)
            say(f"[{number}/{rounds}] {interpreter.label:>6} {summary}")
    return samples


def _conditions(options: Options, ours: Interpreter, theirs: Interpreter) -> str:
    """One paragraph: how it was measured, and what differs besides the package."""
    text = (
        f"{ours.versions['python']}, pydantic {ours.versions['pydantic']}, "
        f"{options.messages} messages, process CPU time, medians of {options.rounds} "
        f"rounds (the ratio is the median of the rounds' ratios); "
        f"taskiq {ours.versions['taskiq']} (ours) and {theirs.versions['taskiq']}."
    )
    differing = [
        f"{name} {ours.versions[name]} (ours) and {theirs.versions[name]}"
        for name in ours.versions
        if name != "taskiq" and ours.versions[name] != theirs.versions[name]
    ]
    if differing:
        text += f" **Not the same on both sides**: {'; '.join(differing)}."
    return text


def main() -> int:
    """Run the command; returns the exit status."""
    options = parse(sys.argv[1:])
    try:
        text = compare(options)
    except EnvironmentNotMadeError as error:
        say(f"benchmark failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
