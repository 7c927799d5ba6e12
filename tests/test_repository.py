"""The files for those who change the project fit together."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def test_every_label_that_is_put_on_something_exists() -> None:
    labels = json.loads((GITHUB / "labels.json").read_text("utf-8"))
    users = [*GITHUB.glob("ISSUE_TEMPLATE/*.yml"), GITHUB / "dependabot.yml"]
    lists = [
        found
        for file in users
        for found in re.findall(
            r"^ *labels: \[(.*)\]$", file.read_text("utf-8"), re.MULTILINE
        )
    ]
    used = {label for found in lists for label in found.split(", ")}
    assert used
    assert used <= {label["name"] for label in labels}


def test_git_runs_the_checks_of_ci_and_nothing_else() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.findall(r"repo: (.*)", hooks) == ["local"]
    entries = re.findall(r"entry: bash (.*)", hooks)
    assert entries == [".ci/lint", ".ci/types"]
    assert all((ROOT / entry).is_file() for entry in entries)


def test_what_a_release_publishes_was_signed_before() -> None:
    release = (GITHUB / "workflows" / "release.yml").read_text("utf-8")
    assert release.index("subject-path: dist/*") < release.index("gh release create")


def test_the_page_for_contributors_names_every_workflow_and_no_other() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    named = re.findall(r"^\| `workflows/(\S+)`", page, re.MULTILINE)
    assert sorted(named) == [file.name for file in WORKFLOWS]
