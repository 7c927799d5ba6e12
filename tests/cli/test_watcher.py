from __future__ import annotations

from pathlib import Path

import pytest
from watchdog.events import (
    DirModifiedEvent,
    FileClosedEvent,
    FileClosedNoWriteEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileOpenedEvent,
    FileSystemEvent,
)

from taskiq.cli.watcher import FileWatcher


class Watched:
    """A directory, and how often its watcher called back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[dict[str, object]] = []

    def watcher(self, path: Path | None = None, **settings: bool) -> FileWatcher:
        return FileWatcher(
            lambda **given: self.calls.append(given),
            path or self.root,
            queue="the queue",
            **settings,
        )

    def write(self, name: str, text: str = "") -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def tells(self, *names: str, watcher: FileWatcher | None = None) -> list[bool]:
        """Say for each file whether a change of it is told."""
        watcher = watcher or self.watcher()
        told: list[bool] = []
        for name in names:
            self.calls.clear()
            watcher.dispatch(FileModifiedEvent(self.write(name)))
            told.append(bool(self.calls))
        return told


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.chdir(tmp_path)
    return Watched(tmp_path)


@pytest.mark.parametrize(
    "event",
    [
        FileModifiedEvent("module.py"),
        FileCreatedEvent("data.json"),
        FileDeletedEvent("gone.py"),
        FileMovedEvent(".old.swp", "module.py"),
        FileModifiedEvent(b"bytes.py"),
    ],
)
def test_a_change_of_any_file_is_told_with_the_given_arguments(
    watched: Watched,
    event: FileSystemEvent,
) -> None:
    watched.watcher().dispatch(event)
    assert watched.calls == [{"queue": "the queue"}]


@pytest.mark.parametrize(
    "event",
    [
        DirModifiedEvent("package"),
        FileOpenedEvent("module.py"),
        FileClosedEvent("module.py"),
        FileClosedNoWriteEvent("module.py"),
    ],
)
def test_what_changes_no_file_is_not_told(
    watched: Watched,
    event: FileSystemEvent,
) -> None:
    watched.watcher().dispatch(event)
    assert not watched.calls


def test_byte_code_is_not_told_even_without_an_ignore_file(watched: Watched) -> None:
    assert watched.tells(
        "module.pyc",
        "package/__pycache__/module.cpython-311.pyc.1234",
        "module.py",
    ) == [False, False, True]


def test_the_git_directory_is_not_told_but_its_namesakes_are(watched: Watched) -> None:
    assert watched.tells(
        ".git/index",
        "package/.git/HEAD",
        ".github/workflows/ci.yml",
        ".gitignore",
        "digits.git.py",
    ) == [False, False, True, True, True]


def test_files_that_git_ignores_are_not_told(watched: Watched) -> None:
    watched.write(".gitignore", "*.log\n/build/\n!keep.log\n")
    assert watched.tells("some.log", "build/a.py", "keep.log", "deep/build/a.py") == [
        False,
        False,
        True,
        True,
    ]


def test_every_ignore_file_from_the_repository_down_to_the_file_counts(
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched.write(".git/HEAD")
    watched.write(".gitignore", "*.log\n")
    watched.write("app/.gitignore", "*.tmp\n")
    watched.write("app/deep/.gitignore", "/generated.py\n")
    monkeypatch.chdir(watched.root / "app")
    assert watched.tells(
        "app/a.log",
        "app/a.tmp",
        "a.tmp",
        "app/deep/generated.py",
        "app/generated.py",
        watcher=watched.watcher(Path()),
    ) == [False, False, True, False, True]


def test_a_changed_ignore_file_counts_at_once(watched: Watched) -> None:
    watcher = watched.watcher()
    assert watched.tells("a.log", watcher=watcher) == [True]
    watcher.dispatch(FileCreatedEvent(watched.write(".gitignore", "*.log\n")))
    assert watched.tells("a.log", watcher=watcher) == [False]


def test_ignore_files_can_be_left_out(watched: Watched) -> None:
    watched.write(".gitignore", "*.log\n")
    assert watched.tells("a.log", watcher=watched.watcher(use_gitignore=False)) == [
        True
    ]


def test_a_directory_elsewhere_can_be_watched(
    watched: Watched,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    elsewhere = Watched(tmp_path_factory.mktemp("elsewhere"))
    elsewhere.write(".gitignore", "*.py\n")  # beyond what is watched
    elsewhere.write("deep/.gitignore", "*.log\n")
    watcher = elsewhere.watcher(elsewhere.root / "deep")
    assert elsewhere.tells("deep/a.log", "deep/a.py", watcher=watcher) == [False, True]


def test_an_ignore_file_that_cannot_be_read_ignores_the_change_and_says_so(
    watched: Watched,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (watched.root / ".gitignore").write_bytes(b"\x81*.log")
    assert watched.tells("a.log") == [False]
    assert "Cannot tell whether" in caplog.text
