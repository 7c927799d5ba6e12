"""Log lines that a program reads."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from taskiq.cli.worker.logs import JSONFormatter


def line_of(**fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {
            "name": "taskiq.worker",
            "levelname": "INFO",
            "msg": "started %d",
            "args": (3,),
            "created": 86_400.25,
            "msecs": 250.0,
            "processName": "worker-0",
            **fields,
        },
    )
    text = JSONFormatter().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


PLAIN = {
    "time": "1970-01-02T00:00:00.250Z",
    "logger": "taskiq.worker",
    "level": "INFO",
    "process": "worker-0",
    "message": "started 3",
}


def test_a_record_is_an_object_in_a_line() -> None:
    assert line_of() == PLAIN


def test_what_was_given_with_a_record_is_kept_and_replaces_nothing() -> None:
    given: Any = {"task_id": "a", "what": {1}, "level": "mine"}
    assert line_of(**given) == {**PLAIN, "task_id": "a", "what": "{1}"}


def test_a_traceback_is_one_field() -> None:
    try:
        dict[str, int]()["a"]
    except KeyError:
        line = line_of(exc_info=sys.exc_info())
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("\nKeyError: 'a'")


def test_a_message_of_several_lines_is_one_line() -> None:
    assert line_of(msg="a\nb", args=())["message"] == "a\nb"


@pytest.mark.parametrize("value", [object, ValueError("x"), b"x"])
def test_what_json_has_no_form_for_is_written_as_its_repr(value: Any) -> None:
    assert line_of(value=value)["value"] == repr(value)
