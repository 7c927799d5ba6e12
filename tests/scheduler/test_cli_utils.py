from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskiq.cli import utils


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory; leave path and modules as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect what would be imported."""
    calls: list[list[str]] = []
    monkeypatch.setattr(utils, "import_from_modules", calls.append)
    return calls


def write(*names: str, text: str = "") -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_current_directory_is_first_on_the_path_for_a_while(
    directory: Path,
) -> None:
    before = list(sys.path)
    with utils.add_cwd_in_path():
        assert sys.path == [str(directory), *before]
    assert sys.path == before


def test_a_directory_that_was_on_the_path_stays_there(directory: Path) -> None:
    sys.path.append(str(directory))
    before = list(sys.path)
    with utils.add_cwd_in_path():
        assert sys.path == before
    assert sys.path == before


def test_a_path_that_cannot_be_restored_is_said(
    directory: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with utils.add_cwd_in_path():
        sys.path.remove(str(directory))
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("taskiq.worker", "WARNING"),
    ]


def test_an_object_is_imported_from_the_current_directory() -> None:
    write("a_package_here/module.py", text="value = 5")
    assert utils.import_object("a_package_here.module:value") == 5


def test_the_directory_of_the_application_stays_on_the_path() -> None:
    write("src/a_module_there.py", text="value = 6")
    assert utils.import_object("a_module_there:value", app_dir="src") == 6
    assert sys.path[0] == "src"


@pytest.mark.parametrize("spec", ["json", "json:a:b", ""])
def test_a_spec_needs_exactly_one_colon(spec: str) -> None:
    with pytest.raises(ValueError, match="`module:variable` format"):
        utils.import_object(spec)


def test_what_cannot_be_imported_raises() -> None:
    with pytest.raises(ModuleNotFoundError):
        utils.import_object("no_such_module:value")
    with pytest.raises(AttributeError):
        utils.import_object("json:decoder.JSONDecoder")
    assert utils.import_object("json:dumps") is json.dumps


def test_a_module_that_cannot_be_imported_is_said_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write("a_task_module.py")
    utils.import_from_modules(["no_such_module", "a_task_module"])
    assert "a_task_module" in sys.modules
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING", "ERROR", "INFO"]
    assert caplog.records[2].exc_info is not None


def test_other_errors_of_a_module_propagate() -> None:
    write("a_broken_module.py", text="1 / 0")
    with pytest.raises(ZeroDivisionError):
        utils.import_from_modules(["a_broken_module"])


def test_nothing_is_looked_for_unless_asked(imported: list[list[str]]) -> None:
    write("a/tasks.py")
    modules = ["one"]
    utils.import_tasks(modules, "**/tasks.py", fs_discover=False)
    assert imported == [["one"]]
    assert imported[0] is modules


def test_found_modules_extend_the_given_list(imported: list[list[str]]) -> None:
    write("tasks.py", "a/tasks.py", "a/b/tasks.py", "a/other.py", "c/tasks.txt")
    modules = ["one"]
    utils.import_tasks(modules, "**/tasks.*", fs_discover=True)
    assert imported == [["one", "a.b.tasks", "a.tasks", "tasks"]]
    assert imported[0] is modules


def test_several_patterns_find_each_module_once(imported: list[list[str]]) -> None:
    write("a/tasks.py", "a/jobs.py", "b/__init__.py")
    patterns = ["**/tasks.py", "a/*.py", "b/__init__.py"]
    utils.import_tasks([], patterns, fs_discover=True)
    utils.import_tasks([], [], fs_discover=True)
    assert imported == [["a.jobs", "a.tasks", "b.__init__"], []]


def test_all_suffixes_of_a_compiled_module_are_cut_off(
    imported: list[list[str]],
) -> None:
    write("a/tasks.cpython-313-darwin.so", "b/tasks.pyc", "c/tasks.pyd")
    utils.import_tasks([], "**/tasks.*", fs_discover=True)
    assert imported == [["a.tasks", "b.tasks", "c.tasks"]]


def test_a_matching_directory_is_a_package(imported: list[list[str]]) -> None:
    write("a/tasks/__init__.py")
    utils.import_tasks([], "**/tasks", fs_discover=True)
    assert imported == [["a.tasks"]]


def test_hidden_files_and_directories_are_not_imported(
    imported: list[list[str]],
) -> None:
    write(".venv/lib/tasks.py", "a/.cache/tasks.py", "a/.tasks.py", "a/tasks.py")
    utils.import_tasks([], ["**/tasks.py", "**/.tasks.py", "**"], fs_discover=True)
    [names] = imported
    assert "a.tasks" in names
    assert not [name for name in names if "venv" in name or "cache" in name]
    assert all(name and not name.startswith(".") for name in names)


def test_absolute_patterns_find_what_is_below_the_current_directory(
    directory: Path,
    imported: list[list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write("here/a/tasks.py", "elsewhere/tasks.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("here")
        utils.import_tasks([], str(directory / "**" / "tasks.py"), fs_discover=True)
    assert imported == [["a.tasks"]]
    assert "elsewhere" in caplog.text
