"""The table of cases: what is sent, and what its sender is to read back."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from unittest.mock import ANY

from .values import Box, Point


@dataclass(frozen=True)
class Case:
    """A message, and what its sender reads back.

    :ivar value: the return value.
    :ivar value_by_released: what a worker of 0.13.0 returns, if not that.
    :ivar items: what a chunk has in the place of the first argument.
    :ivar error: the error; `None` if the task succeeds.
    :ivar error_by_released: the error at a worker of 0.13.0, if it knows no such thing.
    :ivar error_at_released: how a client of 0.13.0 reads the error, if not like that.
    :ivar chain: what the error was raised from, or while handling what.
    :ivar labels_stored: the labels of the result, if not those that were sent.
    :ivar progress: the progress the task reported.
    """

    name: str
    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Any, ...] | None = None
    value: Any = None
    value_by_released: Any = None
    error: str | None = None
    error_by_released: str | None = None
    error_at_released: str | None = None
    chain: str | None = None
    labels_stored: Mapping[str, Any] | None = None
    progress: str | None = None


def argument(name: str, sent: Any, received: Any) -> Case:
    """A value that travels as an argument and comes back as a part of the result."""
    return Case(
        f"{name} as argument",
        "echo",
        args=(sent,),
        kwargs={"again": sent},
        value=[[received], {"again": received}],
    )


def label(name: str, sent: Any, received: str, stored: Any) -> Case:
    """A label, as the task sees it and as the result keeps it."""
    return Case(
        f"{name} as label",
        "describe_labels",
        labels={"sent": sent},
        value={"sent": received},
        labels_stored={"sent": stored},
    )


WHEN = dt.datetime(2024, 2, 29, 12, 30, 15, tzinfo=dt.timezone.utc)
KEY = uuid.UUID("c0ffee00-0000-4000-8000-000000000001")

PLAIN = (
    argument("nothing", None, None),
    argument("a flag", True, True),
    argument("an integer", -(2**63), -(2**63)),
    argument("a float", 0.1, 0.1),
    argument("text", "ünï\n\x00 😀", "ünï\n\x00 😀"),
    argument("bytes", b"text", "text"),
    argument("a list", [1, [2, []]], [1, [2, []]]),
    argument("a tuple", (1, (2,)), [1, [2]]),
    argument("a dict", {"a": {"b": None}, 1: 2}, {"a": {"b": None}, "1": 2}),
    argument("a date", WHEN, "2024-02-29T12:30:15Z"),
    argument("a duration", dt.timedelta(seconds=90), "PT1M30S"),
    argument("a UUID", KEY, str(KEY)),
    argument("a model", Point(x=1), {"x": 1, "label": "unnamed"}),
    argument(
        "a dataclass",
        Box(2, [Point(x=3, label="c")]),
        {"width": 2, "corners": [{"x": 3, "label": "c"}]},
    ),
    Case(
        "arguments cast to their annotations",
        "describe_typed",
        args=(WHEN, KEY),
        kwargs={"point": Point(x=1), "box": Box(2, [Point(x=3)]), "numbers": {4}},
        value=[
            f"datetime({WHEN})",
            f"UUID({KEY})",
            "Point(x=1 label='unnamed')",
            "Box(Box(width=2, corners=[Point(x=3, label='unnamed')]))",
            "set({4})",
        ],
    ),
    Case(
        "a return value cast to its annotation",
        "midnight",
        value=dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc),
    ),
    Case("a model returned", "origin", value=Point(x=0)),
    Case("progress", "report_progress", progress="STARTED {'done': [1, 2]}"),
    Case(
        "a message requeued by its task",
        "requeue_once",
        labels={"number": 3, "ratio": 0.5, "flag": True, "text": "ü"},
        value={
            "number": "int(3)",
            "ratio": "float(0.5)",
            "flag": "bool(True)",
            "text": "str(ü)",
            "X-Taskiq-requeue": "str(1)",
        },
        labels_stored={
            "number": 3,
            "ratio": 0.5,
            "flag": True,
            "text": "ü",
            "X-Taskiq-requeue": "1",
        },
    ),
)

LABELS = (
    label("an integer", -3, "int(-3)", -3),
    label("a huge integer", 2**60, f"int({2**60})", 2**60),
    label("a float", 0.1, "float(0.1)", 0.1),
    label("text", "ünï 😀", "str(ünï 😀)", "ünï 😀"),
    label("empty text", "", "str()", ""),
    label("text like a number", "007", "str(007)", "007"),
    label("true", True, "bool(True)", True),
    label("false", False, "bool(False)", False),
    label("bytes", b"text", "bytes(b'text')", "text"),
    label("empty bytes", b"", "bytes(b'')", ""),
    label("nothing", None, "str(None)", "None"),
    label("a list", [1, "a"], "str([1, 'a'])", "[1, 'a']"),
    label("a dict", {"a": 1}, "str({'a': 1})", "{'a': 1}"),
    label("a date", WHEN, f"str({WHEN})", str(WHEN)),
    Case(
        "binary bytes as label",
        "take_labels_out",
        labels={"sent": b"\x00\x80\xff"},
        value={"sent": r"bytes(b'\x00\x80\xff')"},
        labels_stored={},
    ),
)

ERRORS = (
    Case(
        "an error of the language",
        "fail_with_value_error",
        error="builtins.ValueError('bad', 3, None)",
    ),
    Case(
        "an error of the application",
        "fail_with_own_error",
        labels={"number": 3},
        error="interop.values.RefusedError('no', {'reasons': [1, 'ü']})",
    ),
    Case(
        "an error that cannot be made from its args",
        "fail_with_fragile_error",
        error="interop.values.CodedError('7: ask later',)",
        error_at_released="builtins.Exception("
        "\"<class 'interop.values.CodedError'>(('7: ask later',))\",)",
    ),
    Case(
        "an error of an unknown class",
        "fail_with_local_error",
        error="interop.app.fail_with_local_error.<locals>.LocalError"
        "('nobody else knows this class',)",
        error_at_released="taskiq.exceptions.fail_with_local_error.<locals>.LocalError"
        "('nobody else knows this class',)",
    ),
    Case(
        "an error with an argument that does not travel",
        "fail_with_object",
        error="interop.values.RefusedError(\"<class 'interop.values.Point'>\",)",
    ),
    Case(
        "an error with a cause",
        "fail_because",
        error="interop.values.RefusedError('no',)",
        chain="from builtins.KeyError('k',)",
    ),
    Case(
        "an error while handling another",
        "fail_while_handling",
        error="interop.values.RefusedError('no',)",
        chain="while handling builtins.KeyError('k',)",
    ),
    Case(
        "an exit",
        "exit_process",
        error="builtins.Exception(\"<class 'SystemExit'>((3,))\",)",
        error_at_released="builtins.SystemExit(3,)",
    ),
    Case(
        "a rejection",
        "reject",
        error="taskiq.exceptions.TaskRejectedError('Task was rejected',)",
        error_at_released="builtins.Exception(\"<class 'taskiq.exceptions."
        "TaskRejectedError'>(('Task was rejected',))\",)",
    ),
    Case(
        "a timeout",
        "wait_for_ever",
        labels={"timeout": 0.01},
        error="builtins.TimeoutError()",
        chain=ANY,  # how the task was cancelled is each package's own business
    ),
)


def retried(name: str, failures: int, max_retries: int, **outcome: Any) -> Case:
    """A task that fails a few times and is sent again, at once."""
    labels = {"retry_on_error": True, "max_retries": max_retries, "delay": 0.01}
    return Case(
        name,
        "fail_times",
        args=(failures,),
        labels=labels,
        labels_stored=labels | {"_retries": 2},
        **outcome,
    )


RETRIES = (
    retried(
        "a task that succeeds in the end",
        failures=2,
        max_retries=5,
        value="succeeded after 2",
    ),
    retried(
        "a task that fails for good",
        failures=9,
        max_retries=3,
        error="interop.values.RefusedError('run 2',)",
    ),
    Case(
        "a task without retries",
        "fail_times",
        args=(1,),
        labels={"max_retries": 3},
        error="interop.values.RefusedError('run 0',)",
    ),
)


def measured(word: str, unit: str) -> Case:
    """An item of a batch of four."""
    whole: dict[str, Any] = {"length": len(word), "unit": unit}
    return Case(
        f"{word} in {unit}",
        "measure",
        args=(word, unit),
        labels={"word": word, "blob": b"b"},
        labels_stored={"word": word, "blob": "b"},
        value=whole | {"together": 4},
        value_by_released=whole | {"together": 1},
    )


def added_up(number: int) -> Case:
    """An item of a batch with one result for all."""
    return Case(
        f"{number} of a sum",
        "add_up",
        args=(number,),
        value=6,
        value_by_released=number,
    )


def settled(amount: int, failures: int) -> Case:
    """An item of a batch that is retried if it fails, and alone."""
    labels = {"retry_on_error": True, "max_retries": 3, "delay": 0.01}
    return Case(
        f"{amount} settled",
        "settle",
        args=(amount,),
        labels=labels,
        labels_stored=labels | ({"_retries": failures} if failures else {}),
        value=f"{amount} after {failures}",
    )


BATCHES = (
    measured("one", "letters"),
    measured("three", "letters"),
    measured("seventeen", "letters"),
    Case(
        "an item that fails alone",
        "measure",
        args=("", "letters"),
        error="builtins.ValueError('an empty word', 'letters')",
    ),
    *(measured(word, "runes") for word in ("two", "four", "eighteen", "eleven")),
    *map(added_up, (1, 2, 3)),
    settled(10, failures=0),
    settled(-20, failures=1),
    settled(30, failures=0),
)

CHUNK = Case(
    "four words in one message",
    "measure",
    items=("one", "three", "", "seventeen"),
    args=("signs",),
    labels={"word": "many"},
    labels_stored={"word": "many", "batch_chunk": 4},
    value=[
        {"length": 3, "unit": "signs", "together": 4},
        {"length": 5, "unit": "signs", "together": 4},
        "ValueError",
        {"length": 9, "unit": "signs", "together": 4},
    ],
    error_by_released='builtins.TypeError("measure_one__taskiq_original() got an '
    "unexpected keyword argument 'batch_chunk.items'\",)",
)

VERSION = Case(
    "the version of the worker",
    "worker_version",
    value=version("taskiq"),
    value_by_released="0.13.0",
)


def handed_over(giver: str, taker: str, *, requeue: bool) -> Case:
    """A message that one package sends again and the other one finishes."""
    labels = {"retry_on_error": True, "max_retries": 1000, "delay": 0.01}
    return Case(
        f"{'requeued' if requeue else 'retried'} by {giver}",
        "hand_over",
        args=(giver, requeue),
        labels=labels,
        labels_stored={},
        value=f"from {giver} to {taker}",
    )


HAND_OVERS = tuple(
    handed_over(giver, taker, requeue=requeue)
    for giver, taker in (("ours", "released"), ("released", "ours"))
    for requeue in (False, True)
)

#: What one worker can serve.
SINGLE = (VERSION, *PLAIN, *LABELS, *ERRORS, *RETRIES, *BATCHES, CHUNK)
CASES = {case.name: case for case in (*SINGLE, *HAND_OVERS)}
