"""`taskiq inspect tasks`: the tasks of an application, which is not started."""

from __future__ import annotations

import dataclasses
import logging
import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from taskiq.advice import advise, batch_configs, settings_of
from taskiq.batch import BATCH_ARGUMENTS
from taskiq.callables import function_name
from taskiq.cli.common_args import DEFAULT_TASKS_PATTERN
from taskiq.cli.finding import (
    StartError,
    check_modules,
    find_broker,
    registration_told,
)
from taskiq.cli.inspect.flushes import flush_lines, merged
from taskiq.cli.inspect.table import prose, table, warning
from taskiq.cli.utils import import_tasks

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Generator, Iterable, Sequence

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchConfig
    from taskiq.health import TaskFlushes

#: Where it is said what a broker can do with messages, if it is.
_CAPABILITIES: Final = "taskiq.capabilities"

#: Those of a batch's settings that have a column.
_SHOWN: Final = {"batch_size", "batch_timeout"}


@dataclasses.dataclass(frozen=True)
class Application:
    """What was imported, and what was complained of meanwhile."""

    name: str
    broker: AsyncBroker
    warnings: list[str]

    def has_batches(self) -> bool:
        """Whether any of its tasks runs in batches."""
        tasks = self.broker.get_all_tasks().values()
        return any(task.batch is not None for task in tasks)


def load(
    spec: str,
    modules: list[str],
    app_dir: str | None,
    patterns: Sequence[str],
    *,
    discover: bool,
) -> Application:
    """Import a broker and its tasks, and start nothing.

    :raises StartError: there is no such broker, or a task cannot be registered.
    :raises Exception: what a module raises while it is imported.
    """
    with _complaints() as warnings, registration_told():
        broker = find_broker(spec, app_dir)
        check_modules(modules, app_dir)
        import_tasks(modules, patterns, discover)
    return Application(spec, broker, [*warnings, *_advice(broker)])


def application_of(options: Namespace) -> Application:
    """Import what the arguments of a command name.

    :param options: with `broker`, `modules` and those of `add_import_options`.
    :raises StartError: it is not there, or cannot be imported.
    """
    try:
        return load(
            options.broker,
            options.modules,
            options.app_dir,
            options.tasks_pattern or DEFAULT_TASKS_PATTERN,
            discover=options.fs_discover,
        )
    except StartError:
        raise
    except Exception as exc:
        text = f"{options.broker!r} cannot be imported: {exc!r}"
        raise StartError(text, status=1) from exc


@contextmanager
def _complaints() -> Generator[list[str], None, None]:
    """Gather what taskiq logs as a warning, instead of showing it."""
    texts: list[str] = []

    class Gatherer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler = Gatherer(logging.WARNING)
    root = logging.getLogger("taskiq")
    before = root.propagate
    root.addHandler(handler)
    root.propagate = False
    try:
        yield texts
    finally:
        root.removeHandler(handler)
        root.propagate = before


def _advice(broker: AsyncBroker) -> list[str]:
    return advise(settings_of(broker), batch_configs(broker))


def capabilities_of(broker: AsyncBroker) -> Any:
    """Say what a broker can do with messages; `None` where nobody says it."""
    if find_spec(_CAPABILITIES) is None:
        return None
    return import_module(_CAPABILITIES).resolve(broker)


def as_json(
    application: Application,
    flushes: Iterable[TaskFlushes],
) -> dict[str, Any]:
    """Give the tasks as what `json` writes."""
    broker = application.broker
    can = capabilities_of(broker)
    left = {each.task: each.as_json() for each in merged(flushes)}
    return {
        "broker": application.name,
        "class": _class_name(broker),
        "capabilities": None if can is None else dataclasses.asdict(can),
        "tasks": [
            {
                "name": name,
                "function": _place(task.original_func),
                "batch": None if task.batch is None else _settings(task.batch),
                "rate": task.rate,
                "labels": {key: str(value) for key, value in task.labels.items()},
                "flushes": left.get(name),
            }
            for name, task in sorted(broker.get_all_tasks().items())
        ],
        "warnings": application.warnings,
    }


def lines(
    application: Application,
    flushes: list[TaskFlushes] | None,
    width: int | None,
) -> list[str]:
    """Show the tasks to people.

    :param flushes: how batches left, `None` where no worker is asked.
    """
    broker = application.broker
    told = [f"{application.name}: {_class_name(broker)}"]
    can = capabilities_of(broker)
    if can is not None:
        told += prose(str(can), width)
    rows = [
        _row(name, task.batch, task.rate)
        for name, task in sorted(broker.get_all_tasks().items())
    ]
    titles = ("TASK", "RUNS", "SIZE", "TIMEOUT", "OTHER SETTINGS")
    told += ["", *(table(titles, rows, width) if rows else ["There is no task."])]
    if flushes is not None:
        told += ["", *flush_lines(merged(flushes), width)]
    for text in application.warnings:
        told += warning(text, width)
    return told


def _row(name: str, batch: BatchConfig | None, rate: str | None) -> tuple[str, ...]:
    if batch is None:
        return name, "one by one", "", "", "" if rate is None else f"rate={rate}"
    others = ", ".join(
        f"{key}={value}"
        for key, value in _settings(batch).items()
        if f"batch_{key}" not in _SHOWN and value not in (None, False)
    )
    return name, "in batches", str(batch.size), f"{batch.timeout:g} s", others


def _settings(batch: BatchConfig) -> dict[str, Any]:
    """Give the settings of a batch task by name, functions and classes by theirs."""
    names = [name.removeprefix("batch_") for name in BATCH_ARGUMENTS]
    return {name: _plain(getattr(batch, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        kinds = cast("tuple[type[Exception], ...]", value)
        return [function_name(each) for each in kinds]
    return function_name(value) if callable(value) else value


def _class_name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _place(function: Any) -> str:
    module = getattr(function, "__module__", None)
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    code = getattr(function, "__code__", None)
    name = f"{module}:{function_name(function)}"
    return name if code is None or file is None else f"{name}:{code.co_firstlineno}"
