"""The page of rules names tests that exist, at least one for each rule."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "rules.md"

ROW = re.compile(r"^\| (?P<rule>.+?) \| (?P<tests>.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)::(?P<name>\w+)`")


def rows() -> dict[str, list[tuple[str, str]]]:
    """The tests of each rule: their file and their name."""
    found = ROW.findall(PAGE.read_text("utf-8"))
    heads = {"rule", "---"}
    return {rule: NAMED.findall(tests) for rule, tests in found if rule not in heads}


def test_each_rule_has_a_test() -> None:
    assert len(rows()) > 50
    assert [rule for rule, named in rows().items() if not named] == []


def test_each_test_of_a_rule_exists() -> None:
    missing = [
        f"{file}::{name}"
        for named in rows().values()
        for file, name in named
        if not (TESTS / file).is_file()
        or not re.search(rf"def test_{name}\(", (TESTS / file).read_text("utf-8"))
    ]
    assert missing == []


def test_each_file_of_tests_of_batches_is_named() -> None:
    named = {file for tests in rows().values() for file, _ in tests}
    there = {f"batching/{file.name}" for file in TESTS.glob("batching/test_*.py")}
    assert there - named == set()


def test_each_promise_is_a_rule_word_for_word_and_made_once() -> None:
    page = (PAGE.parent / "guide" / "batching" / "guarantees.md").read_text("utf-8")
    [section] = re.findall(r"## What is promised\n\n(.*?)\n\n", page, re.DOTALL)
    promises = re.findall(
        r"^\d+\. .*?(?=^\d+\. |\Z)", section, re.DOTALL | re.MULTILINE
    )
    plain = [
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(p.split())) for p in promises
    ]
    assert len(set(plain)) == len(plain) > 5
    assert [rule for rule in rows() if re.match(r"\d+\. ", rule)] == plain
