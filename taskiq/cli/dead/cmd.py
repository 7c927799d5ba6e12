"""The `dead` subcommand: its arguments, and what is printed."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.cmd import TaskiqCMD
from taskiq.cli.common_args import add_import_options
from taskiq.cli.dead.letters import Choice, Page, drop, page_of, retry
from taskiq.cli.finding import WRONG_USE, StartError
from taskiq.cli.help import command_parser
from taskiq.cli.inspect import tasks
from taskiq.cli.inspect.screen import width_of_terminal
from taskiq.cli.inspect.table import table
from taskiq.dead_letters import DeadLetter, DeadLetterStore, store_of
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


_EXAMPLES: Final = (
    ("list app:broker --reason error", "the oldest of those whose task failed"),
    ("show app:broker ID", "a letter with its message"),
    ("retry app:broker --all --task shop:pay", "send all of a task again"),
)


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
    page = await page_of(store, _choice(options), options.limit, options.after)
    if options.json:
        record = {
            "queue": store.queue,
            "letters": [letter.as_json() for letter in page.letters],
            "next": page.following,
        }
        _write(json.dumps(record))
        return
    for line in _lines(page, store.queue):
        _write(line)


def _lines(page: Page, queue: str) -> list[str]:
    if not page.letters:
        return [f"No dead letters in {queue}."]
    records = [letter.as_json() for letter in page.letters]
    rows = [
        tuple("-" if row[name] is None else str(row[name]) for name in _COLUMNS)
        for row in records
    ]
    lines = table(tuple(_COLUMNS.values()), rows, width_of_terminal(), spare=("TIME",))
    if page.following is not None:
        lines += ["", f"There are more: --after {page.following}"]
    return lines


async def _show(
    options: Namespace,
    broker: AsyncBroker,
    store: DeadLetterStore,
) -> None:
    page = await page_of(store, _choice(options), len(options.ids))
    missing = set(options.ids) - {letter.id for letter in page.letters}
    for letter in page.letters:
        record = _whole(letter, broker)
        if options.json:
            _write(json.dumps(record, default=repr))
        else:
            for name, value in record.items():
                _write(f"{name}: {value}")
            _write("")
    if missing:
        text = f"no such letter in {store.queue}: {', '.join(sorted(missing))}"
        raise StartError(text, _FAILED)


def _whole(letter: DeadLetter, broker: AsyncBroker) -> dict[str, Any]:
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
        _write(f"{what.capitalize()} {count} dead letters of {store.queue}.")


# -- Arguments ------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    parser = command_parser(
        "dead",
        "List, show, send again or drop the dead letters of a broker.",
        _EXAMPLES,
    )
    kinds = parser.add_subparsers(title="what is done", required=True, metavar="what")
    listing = _add(kinds, "list", _list, "list dead letters, the oldest first")
    listing.add_argument(
        "--limit",
        type=_count,
        default=_PAGE,
        help="how many at most, %(default)s by default",
    )
    listing.add_argument(
        "--after",
        default="",
        metavar="ID",
        help="begin behind this letter, as the page before says",
    )
    _add(kinds, "show", _show, "show letters with their messages", ids="+")
    _add(kinds, "retry", _retry, "send letters again, as they were", ids="*")
    _add(kinds, "drop", _drop, "drop letters for good", ids="*")
    return parser


def _add(
    kinds: Any, name: str, work: _Work, text: str, ids: str | None = None
) -> ArgumentParser:
    parser: ArgumentParser = kinds.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}. The application is imported"
        f"{' and started as a client' if name == 'retry' else ', and not started'}.",
    )
    changes = ids == "*"
    parser.set_defaults(work=work, changes=changes, ids=[], all=False, modules=[])
    parser.add_argument(
        "broker",
        help="where the broker, or a function returning it, is found: "
        "`module.path:variable`",
    )
    if ids is not None:
        parser.add_argument("ids", nargs=ids, metavar="id", help="ids of letters")
    if changes:
        parser.add_argument("--all", action="store_true", help="all there are")
    parser.add_argument("--task", help="those of the task of this name")
    parser.add_argument(
        "--reason",
        choices=[reason.value for reason in Reason],
        help="those that are dead for this reason",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="write JSON, for scripts",
    )
    add_import_options(parser)
    return parser


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is no number above 0")
