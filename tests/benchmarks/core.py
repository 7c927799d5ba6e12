"""The table `core`: what a message costs against released taskiq, and the import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import report
from tests.benchmarks.rounds import take_turns

if TYPE_CHECKING:
    from tests.benchmarks.environments import Interpreter
    from tests.benchmarks.options import Options

IMPORT = "import"
#: The released package loads everything at once; this one what is used.
IMPORTS: dict[str, list[str]] = {
    "`import taskiq`": [],
    "`from taskiq import *`": ["every-name"],
}
MESSAGES = 20_000


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


def measure(options: Options) -> report.Page:
    """Compare this checkout with the released taskiq."""
    ours, theirs = options.environments.candidate(), options.environments.baseline()
    parts = [_conditions(options, ours, theirs)]
    plots = []
    only = options.only or (*WORKLOADS, IMPORT)
    names = [name for name in WORKLOADS if name in only]
    if names:
        rows = [_compare_workload(name, options, ours, theirs) for name in names]
        parts.append(report.messages_table(rows))
        plots.append(_plot([cpu for cpu, _ in rows]))
    if IMPORT in only:
        parts.append(report.import_table(_compare_imports(options, ours, theirs)))
    return report.Page("\n\n".join(parts), tuple(plots))


def _plot(rows: list[report.Comparison]) -> report.Plot:
    return report.Plot(
        name="core",
        kind="bars",
        title="CPU time of one message",
        x_label="µs",
        y_label="",
        x=[row.name.partition(" ")[0] for row in rows],
        series={
            "taskiq 0.13.0": [report.median(row.theirs) for row in rows],
            "ours": [report.median(row.ours) for row in rows],
        },
    )


def _compare_workload(
    name: str,
    options: Options,
    ours: Interpreter,
    theirs: Interpreter,
) -> tuple[report.Comparison, report.Comparison]:
    workload, messages = WORKLOADS[name], options.scaled(MESSAGES)
    samples = take_turns(
        options.rounds,
        {
            f"ours {workload.ours}": partial(ours.run, "core", workload.ours, messages),
            f"0.13.0 {workload.theirs}": partial(
                theirs.run, "core", workload.theirs, messages
            ),
        },
        lambda sample: f"{sample['cpu'] / messages * 1e6:.1f} us/message",
    )
    return report.message_rows(workload.title, messages, *samples.values())


def _compare_imports(
    options: Options,
    ours: Interpreter,
    theirs: Interpreter,
) -> list[report.Comparison]:
    return [
        row
        for statement, arguments in IMPORTS.items()
        for row in report.import_rows(
            statement,
            *take_turns(
                options.rounds,
                {
                    f"ours {statement}": partial(
                        ours.run_file, "import_cost", *arguments
                    ),
                    f"0.13.0 {statement}": partial(
                        theirs.run_file, "import_cost", *arguments
                    ),
                },
                lambda sample: f"{sample['wall'] * 1e3:.0f} ms",
            ).values(),
        )
    ]


def _conditions(options: Options, ours: Interpreter, theirs: Interpreter) -> str:
    """One paragraph: how it was measured, and what differs besides the package."""
    text = (
        f"{ours.versions['python']}, pydantic {ours.versions['pydantic']}, "
        f"{options.scaled(MESSAGES)} messages, process CPU time, medians of "
        f"{options.rounds} rounds (the ratio is the median of the rounds' ratios); "
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
