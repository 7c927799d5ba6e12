"""The `dead` subcommand: its arguments, and what is printed."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.common_args import add_import_options
from taskiq.cli.dead.letters import Choice, Page, drop, page_of, retry
from taskiq.cli.finding import WRONG_USE, StartError
from taskiq.cli.help import HelpFormatter, command_parser, examples_of
from taskiq.cli.inspect import tasks
from taskiq.cli.inspect.screen import width_of_terminal
from taskiq.cli.inspect.table import table
from taskiq.dead_letters import DeadLetter, DeadLetterStore, store_of
from taskiq.exceptions import DeadLetterNotFoundError
from taskiq.policies import Reason

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable, Sequence

    from taskiq.abc.broker import AsyncBroker

    _Work = Callable[[Namespace, AsyncBroker, DeadLetterStore], Awaitable[None]]

#: Letters of one page, unless told otherwise.
_PAGE: Final = 50
#: Exit status when the server did not do it.
_FAILED: Final = 1

#: Titles of the columns, by what has the values.
_COLUMNS: Final = {
    "id": "ID",
    "time": "TIME",
    "task_name": "TASK",
    "reason": "REASON",
    "deliveries": "DELIVERIES",
    "error": "ERROR",
}


class DeadCMD(TaskiqCMD):
    """List dead letters, show them, send them again or drop them."""

    short_help = "List, show, retry or drop dead letters"

    def exec(self, args: Sequence[str]) -> int | None:
        """Do what the arguments say.

        :param args: command line arguments after the name of the command.
        :returns: exit status: `None` for success, 1 if the server did not do it, 2 for
            a bad call.
        """
        options = self.make_parser().parse_args(args)
        try:
            _check(options)
            broker = tasks.application_of(options).broker
            asyncio.run(options.work(options, broker, _store(broker)))
        except StartError as exc:
            sys.stderr.write(f"taskiq dead: {exc}\n")
            return exc.status
        except Exception as exc:  # noqa: BLE001 - of whatever client the broker has
            sys.stderr.write(f"taskiq dead: it is not done: {exc!r}\n")
            return _FAILED
        return None

    def make_parser(self) -> ArgumentParser:
        """Give what reads the arguments."""
        return _parser()


def _check(options: Namespace) -> None:
    """Refuse to change all letters for a filter that was forgotten."""
    is_said = options.ids or options.task or options.reason or options.all
    if options.changes and not is_said:
        text = "name letters by their ids, --task or --reason, or say --all."
        raise StartError(text, WRONG_USE)


def _store(broker: AsyncBroker) -> DeadLetterStore:
    store, name = store_of(broker), type(broker).__name__
    if store is None:
        raise StartError(f"{name} has no queue for dead letters.", WRONG_USE)
    if not store.is_shared:
        text = f"{name} keeps dead letters in the memory of its own process."
        raise StartError(text, WRONG_USE)
    return store


def _choice(options: Namespace) -> Choice:
    return Choice(frozenset(options.ids), options.task, options.reason)


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


# -- What is done ---------------------------------------------------------------------


async def _list(
    options: Namespace,
    broker: AsyncBroker,
    store: DeadLetterStore,
) -> None:
    del broker
    try:
        page = await page_of(store, _choice(options), options.limit, options.after)
    except DeadLetterNotFoundError as exc:
        raise StartError(f"{exc}: begin without --after.", _FAILED) from exc
    if options.json:
        record = {
            "queue": store.queue,
            "letters": page.records,
            "next": page.following,
        }
        _write(json.dumps(record))
        return
    for line in _lines(page, store.queue):
        _write(line)


def _lines(page: Page, queue: str) -> list[str]:
    if not page.records:
        return [f"No dead letters in {queue}."]
    rows = [
        tuple("-" if row[name] in {None, ""} else str(row[name]) for name in _COLUMNS)
        for row in page.records
    ]
    lines = table(
        tuple(_COLUMNS.values()),
        rows,
        width_of_terminal(),
        spare=("TIME", "DELIVERIES"),
        whole=("ID",),
    )
    if page.following is not None:
        lines += ["", f"There are more: --after {page.following}"]
    return lines


async def _show(
    options: Namespace,
    broker: AsyncBroker,
    store: DeadLetterStore,
) -> None:
    view = partial(_whole, broker)
    page = await page_of(store, _choice(options), len(options.ids), view=view)
    missing = set(options.ids) - {record["id"] for record in page.records}
    for record in page.records:
        if options.json:
            _write(json.dumps(record, default=repr))
        else:
            for name, value in record.items():
                _write(f"{name}: {value}")
            _write("")
    if missing:
        text = f"no such letter in {store.queue}: {', '.join(sorted(missing))}"
        raise StartError(text, _FAILED)


def _whole(broker: AsyncBroker, letter: DeadLetter) -> dict[str, Any]:
    """Give a letter with what can be read of its message."""
    record = letter.as_json()
    try:
        message = broker.formatter.loads(letter.data)
    except Exception as exc:  # noqa: BLE001 - of a formatter of somebody's
        return {**record, "unparsable": repr(exc), "data": repr(letter.data)}
    parts = {"labels": message.labels, "args": message.args, "kwargs": message.kwargs}
    return {**record, **parts}


async def _retry(
    options: Namespace,
    broker: AsyncBroker,
    store: DeadLetterStore,
) -> None:
    await broker.startup()
    try:
        count = await retry(broker, store, _choice(options))
    finally:
        await broker.shutdown()
    _report("retried", count, store, options)


async def _drop(
    options: Namespace,
    broker: AsyncBroker,
    store: DeadLetterStore,
) -> None:
    del broker
    _report("dropped", await drop(store, _choice(options)), store, options)


def _report(what: str, count: int, store: DeadLetterStore, options: Namespace) -> None:
    if options.json:
        _write(json.dumps({"queue": store.queue, what: count}))
    else:
        letters = "dead letter" if count == 1 else "dead letters"
        _write(f"{what.capitalize()} {count} {letters} of {store.queue}.")


# -- Arguments ------------------------------------------------------------------------


#: Lines after `taskiq dead`, and what each does, by what is done.
_EXAMPLES: Final = {
    "list": (
        ("list app:broker", f"the {_PAGE} oldest"),
        (
            "list app:broker --task shop:charge --reason error --limit 500",
            "up to 500 of one task that failed",
        ),
        ("list app:broker --json", "for scripts: `next` is what --after takes"),
    ),
    "show": (("show app:broker ID", "its labels and arguments, too"),),
    "retry": (
        ("retry app:broker ID ID", "two letters"),
        ("retry app:broker --task shop:charge", "all of one task"),
    ),
    "drop": (
        ("drop app:broker --reason unparsable", "all that nobody can read"),
        ("drop app:broker --all", "all there are"),
    ),
}


def _parser() -> ArgumentParser:
    examples = [lines[0] for lines in _EXAMPLES.values()]
    parser = command_parser(
        "dead",
        "List, show, send again or drop the dead letters of a broker.",
        examples,
    )
    kinds = parser.add_subparsers(title="what is done", required=True, metavar="what")
    listing = _add(kinds, "list", _list, "list dead letters, the oldest first")
    listing.add_argument(
        "--limit",
        type=_count,
        default=_PAGE,
        metavar="LETTERS",
        help="how many at most",
    )
    listing.add_argument(
        "--after",
        default="",
        metavar="ID",
        help="begin behind this letter, as the page before says. "
        "Without it: with the oldest",
    )
    _add(kinds, "show", _show, "show letters with their messages", ids="+")
    _add(kinds, "retry", _retry, "send letters again, as they were", ids="*")
    _add(kinds, "drop", _drop, "drop letters for good", ids="*")
    return parser


def _add(
    kinds: Any, name: str, work: _Work, text: str, ids: str | None = None
) -> ArgumentParser:
    how = "started as a client" if name == "retry" else "not started"
    title = f"{text[0].upper()}{text[1:]}."
    parser: ArgumentParser = kinds.add_parser(
        name,
        help=text,
        formatter_class=HelpFormatter,
        description=f"{title}\nThe application is imported, and {how}.",
        epilog=examples_of("dead", _EXAMPLES[name]),
    )
    changes = ids == "*"
    parser.set_defaults(work=work, changes=changes, ids=[], all=False, modules=[])
    parser.add_argument(
        "broker",
        help="where the broker, or a function returning it, is found: "
        "`module.path:variable`",
    )
    if ids is not None:
        parser.add_argument("ids", nargs=ids, metavar="id", help="ids, as listed")
    if changes:
        parser.add_argument("--all", action="store_true", help="all letters")
    _add_options(parser)
    return parser


def _add_options(parser: ArgumentParser) -> None:
    """Add what all that is done has: filters, JSON, and where tasks are found."""
    parser.add_argument("--task", metavar="NAME", help="those of the task of this name")
    parser.add_argument(
        "--reason",
        choices=[reason.value for reason in Reason],
        metavar="REASON",
        help="those that are dead for this reason: %(choices)s",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="write JSON, for scripts",
    )
    add_import_options(parser)


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no number above 0")
