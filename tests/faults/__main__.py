"""Command line of the fault runs: `python -m tests.faults --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from taskiq import AcknowledgeType
from tests.support.arguments import positive

from . import report
from .lines import ACKNOWLEDGING, LINES, Line, unavailable
from .servers import OWN_SERVERS
from .trial import FAULTS, Fault, Outcome, Trial, run


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    lines: list[Line]
    faults: list[Fault]
    messages: int
    strikes: int
    interval: float
    grace: float | None
    ack_type: str
    throughput: bool
    logs: Path | None


def parse(arguments: list[str]) -> Options:
    """Read the command line; ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Send messages of a batch task through real brokers to `taskiq "
        "worker` processes, let faults strike meanwhile, and print as a Markdown table "
        "what became of the messages. Every message should have its result in the end. "
        "Needs the servers of the tests; `restart` needs redis-server or nats-server "
        "to start one of its own. Exit status 1 if a message has not its own result "
        "or the workers do not end.",
    )
    parser.add_argument(
        "--broker",
        action="append",
        choices=LINES,
        help="only this one; may be given several times (default: all that take "
        "acknowledgements)",
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=FAULTS,
        help="only this one; may be given several times. sigkill: a random worker "
        "process; sigterm: the whole command, started again once it has ended; cut: "
        "every connection of the workers to the broker; restart: the server",
    )
    parser.add_argument(
        "--messages",
        type=positive,
        default=20_000,
        metavar="N",
        help="messages of one run (default: 20000)",
    )
    parser.add_argument(
        "--strikes",
        type=positive,
        default=10,
        metavar="N",
        help="how often the fault strikes while there is work (default: 10)",
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=1.5,
        metavar="SECONDS",
        help="from one strike to the next, on average (default: 1.5)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="--wait-tasks-timeout of the workers (default: no limit)",
    )
    parser.add_argument(
        "--ack-type",
        choices=[member.value for member in AcknowledgeType],
        default=AcknowledgeType.WHEN_SAVED.value,
        help="--ack-type of the workers (default: when_saved, which loses nothing)",
    )
    parser.add_argument(
        "--throughput",
        action="store_true",
        help="no faults: print how fast it is, how large the calls are, and how the "
        "processes share the work",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="DIRECTORY",
        help="keep the logs of the workers there",
    )
    given = parser.parse_args(arguments)
    return Options(
        lines=given.broker or list(ACKNOWLEDGING),
        faults=given.fault or [fault for fault in FAULTS if fault != "none"],
        messages=given.messages,
        strikes=given.strikes,
        interval=given.interval,
        grace=given.grace,
        ack_type=given.ack_type,
        throughput=given.throughput,
        logs=given.logs,
    )


def trials(options: Options) -> Iterable[Trial]:
    """Give what is to be run; says what is left out, and why."""
    for line in options.lines:
        if reason := unavailable(line):
            say(f"left out: {line}. {reason}")
            continue
        if options.throughput:
            yield Trial(
                line,
                "none",
                options.messages,
                call_seconds=0,
                max_buffered=1000,
                redelivery=60,
                is_sent_before=True,
            )
            continue
        for fault in options.faults:
            server = OWN_SERVERS.get(line)
            if fault == "restart" and (server is None or not server.is_installed()):
                say(f"left out: {line} x restart, there is no server to restart.")
                continue
            yield Trial(
                line,
                fault,
                options.messages,
                strikes=options.strikes,
                interval=options.interval,
                grace=options.grace,
                ack_type=options.ack_type,
                # Nobody can send while the server is away.
                is_sent_before=fault == "restart",
            )


def say(text: str) -> None:
    """Print a line apart from the table on standard output."""
    _show(f"{text}\n")


def progress(text: str) -> None:
    """Print how far it is, over what was printed before."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        _show(text[:width].ljust(width) + "\r")


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> int:
    """Run the command; returns the exit status."""
    options = parse(sys.argv[1:])
    # As Ctrl-C does: the workers run in sessions of their own, and would stay.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Clients say at length that their server is away.
    logging.getLogger().addHandler(logging.NullHandler())
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    status = 0
    try:
        for trial in trials(options):
            outcome = asyncio.run(run(trial, progress, keep=options.logs))
            outcomes.append(outcome)
            say(
                f"{trial}: {outcome.results} of {trial.messages} results, "
                f"{len(outcome.repeated)} run more than once, {outcome.seconds:.1f} s",
            )
    except KeyboardInterrupt:
        say("interrupted")
        status = 130
    table = report.throughput_table if options.throughput else report.faults_table
    if outcomes:
        sys.stdout.write(table(outcomes) + "\n")
    if status == 0 and not all(outcome.is_good for outcome in outcomes):
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
