"""Telling which changed files matter. Needs the extra `reload`."""

from __future__ import annotations

import os
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gitignore_parser  # pyright: ignore[reportMissingTypeStubs] - it has none
from watchdog.events import FileSystemEventHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from watchdog.events import FileSystemEvent

logger = getLogger("taskiq.worker")

#: Events that tell of no change of a file's content.
_HARMLESS: Final = frozenset({"opened", "closed", "closed_no_write"})

_IGNORE_FILE: Final = ".gitignore"
_BYTE_CODE: Final = frozenset({".pyc", ".pyo"})


class FileWatcher(FileSystemEventHandler):
    """Calls back when a file changes that may matter to a running application.

    Byte code, what git keeps in `.git` and what it ignores do not matter. Like git, it
    reads the `.gitignore` of every directory from the root of the repository down to
    the file, but a pattern that takes a file back in counts within one of them only.

    :param callback: called once for each change.
    :param path: the directory that is watched.
    :param use_gitignore: whether files that git ignores are left out.
    :param callback_kwargs: passed to the callback.
    """

    def __init__(
        self,
        callback: Callable[..., None],
        path: Path,
        use_gitignore: bool = True,
        **callback_kwargs: Any,
    ) -> None:
        self.callback = callback
        self.callback_kwargs = callback_kwargs
        self._root = _repository_root(path.resolve()) if use_gitignore else None
        self._rules: dict[Path, Callable[[Path], bool] | None] = {}

    def dispatch(self, event: FileSystemEvent) -> None:
        """Call back if a file that matters has changed.

        :param event: what happened, to which file or files.
        """
        if event.is_directory or event.event_type in _HARMLESS:
            return
        paths = [_absolute(path) for path in (event.src_path, event.dest_path) if path]
        if any(path.name == _IGNORE_FILE for path in paths):
            self._rules.clear()
        try:
            matters = any(self._matters(path) for path in paths)
        except Exception as exc:  # noqa: BLE001 - the thread of the observer goes on
            logger.info("Cannot tell whether %s is ignored: %s", paths, exc)
            return
        if matters:
            logger.debug("File changed: %s", paths)
            self.callback(**self.callback_kwargs)

    def _matters(self, path: Path) -> bool:
        return not (
            ".git" in path.parts
            or "__pycache__" in path.parts
            or path.suffix in _BYTE_CODE
            or self._is_git_ignored(path)
        )

    def _is_git_ignored(self, path: Path) -> bool:
        return any(rule(path) for rule in self._rules_for(path))

    def _rules_for(self, path: Path) -> Iterator[Callable[[Path], bool]]:
        if self._root is None or not path.is_relative_to(self._root):
            return
        for directory in path.parents:
            if directory not in self._rules:
                self._rules[directory] = _read_rules(directory)
            rule = self._rules[directory]
            if rule is not None:
                yield rule
            if directory == self._root:
                return


def _read_rules(directory: Path) -> Callable[[Path], bool] | None:
    ignore_file = directory / _IGNORE_FILE
    if not ignore_file.is_file():
        return None
    untyped: Any = gitignore_parser
    rules: Callable[[Path], bool] = untyped.parse_gitignore(ignore_file)
    return rules


def _repository_root(path: Path) -> Path:
    """Find the directory from which `.gitignore` files count.

    :param path: an absolute path.
    :returns: the repository the path is in. Outside of one, the current directory if
        the path is in it, else the path itself.
    """
    for directory in (path, *path.parents):
        if (directory / ".git").exists():
            return directory
    cwd = Path.cwd()
    return cwd if path.is_relative_to(cwd) else path


def _absolute(path: str | bytes) -> Path:
    # The file may be gone; the directory tells which of several names is the real one.
    found = Path(os.fsdecode(path))
    return found.parent.resolve() / found.name
