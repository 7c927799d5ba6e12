"""Modules import downwards: whatever a module needs can be read without it.

The imports are read from the code, nothing is run. One inside a function counts, too:
there it only hides that two modules need each other. So do the packages that Python
imports on the way to a module.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent

#: Imports for type checkers alone that point upwards, and what they are needed for.
UPWARDS: Final = {
    # Public attributes of taskiq 0.13.0, by which applications reach their broker.
    ("taskiq.abc.middleware", "taskiq.abc.broker"): "TaskiqMiddleware.broker",
    ("taskiq.decor", "taskiq.abc.broker"): "AsyncTaskiqDecoratedTask.broker",
    ("taskiq.kicker", "taskiq.abc.broker"): "AsyncKicker.broker",
    ("taskiq.sending", "taskiq.abc.broker"): "what is sent through",
    ("taskiq.unique_sending", "taskiq.abc.broker"): "what is sent through",
    ("taskiq.dead_letters.store", "taskiq.abc.broker"): "whose letters are kept",
    # What its methods are overloaded for.
    ("taskiq.sender", "taskiq.context"): "tasks that are given one",
    # The parts of a receiver, which are made by whom they work for.
    ("taskiq.receiver.diagnosis", "taskiq.receiver.delivery"): "what is told of",
    ("taskiq.receiver.ranking", "taskiq.receiver.batcher"): "what it chooses from",
    (
        "taskiq.receiver.listening",
        "taskiq.receiver.receiver",
    ): "what it is made of",
    ("taskiq.receiver.listening", "taskiq.receiver.runtime"): "what it reads for",
    (
        "taskiq.receiver.admission",
        "taskiq.receiver.receiver",
    ): "what it is made of",
    (
        "taskiq.receiver.settlement",
        "taskiq.receiver.receiver",
    ): "what it is made of",
    (
        "taskiq.receiver.batch_run",
        "taskiq.receiver.runtime",
    ): "what it runs with",
    ("taskiq.receiver.aborting", "taskiq.receiver.runtime"): "what it looks through",
    ("taskiq.receiver.chunks", "taskiq.receiver.runtime"): "what it hands items to",
    (
        "taskiq.receiver.runtime",
        "taskiq.receiver.receiver",
    ): "what it is made of",
    # What an error carries for who catches it.
    ("taskiq.exceptions", "taskiq.task"): "SendManyError.handles",
    # A fallback of a base class, which is given what it is the fallback of.
    ("taskiq.waiting", "taskiq.abc.result_backend"): "poll_for_result",
}

#: Packages that hand on names of the modules below them, on demand: for them alone
#: these imports are written.
FACES: Final = frozenset({"taskiq", "taskiq.abc"})


class Import(NamedTuple):
    """One module needs another one."""

    importer: str
    imported: str
    for_types: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES: Final = {
    module_name(path): path for path in sorted((ROOT / "taskiq").rglob("*.py"))
}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def import_statements(
    nodes: Iterable[ast.AST],
    *,
    for_types: bool = False,
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Give each import below these nodes, and whether type checkers alone read it."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, for_types
        elif isinstance(node, ast.If) and is_for_types(node):
            yield from import_statements(node.body, for_types=True)
            yield from import_statements(node.orelse, for_types=for_types)
        else:
            children = ast.iter_child_nodes(node)
            yield from import_statements(children, for_types=for_types)


def named_modules(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Give the modules of ours that a statement names."""
    if isinstance(statement, ast.Import):
        yield from (each.name for each in statement.names if each.name in FILES)
        return
    assert statement.level == 0, f"write out: {ast.unparse(statement)}"
    for each in statement.names:
        below = f"{statement.module}.{each.name}"
        if below in FILES:
            yield below
        elif statement.module in FILES:
            yield statement.module


def packages_of(module: str) -> set[str]:
    """Give the packages a module lies in, and itself."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(FILES[module].read_text("utf-8"))
    for statement, for_types in import_statements(tree.body):
        for imported in named_modules(statement):
            needed = {imported} if for_types else packages_of(imported)
            for each in needed - packages_of(module):
                yield Import(module, each, for_types)


IMPORTS: Final = [each for module in FILES for each in imports_of(module)]


def graph_of(imports: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports:
        graph.setdefault(importer, set()).add(imported)
        graph.setdefault(imported, set())
    return graph


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Give a way from a module back to itself, nothing when there is none."""
    left = {module: set(targets) for module, targets in graph.items()}
    while leaves := {module for module, targets in left.items() if not targets}:
        left = {m: targets - leaves for m, targets in left.items() if m not in leaves}
    if not left:
        return []
    # Each module that is left leads to another one that is left.
    way = [min(left)]
    while way.count(way[-1]) == 1:
        way.append(min(left[way[-1]]))
    return way[way.index(way[-1]) :]


@pytest.mark.parametrize(
    ("imports", "cycle"),
    [
        ([], []),
        (["ab", "bc", "ac"], []),
        (["ab", "bc", "ca"], ["a", "b", "c", "a"]),
        (["ab", "bc", "cb", "bd"], ["b", "c", "b"]),
    ],
)
def test_a_cycle_is_found_where_there_is_one(
    imports: list[str],
    cycle: list[str],
) -> None:
    graph = graph_of((each[0], each[1]) for each in imports)
    assert find_cycle(graph) == cycle


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = graph_of(
        (each.importer, each.imported) for each in IMPORTS if not each.for_types
    )
    assert len(graph) > len(FILES) / 2
    cycle = find_cycle(graph)
    assert not cycle, "imported in a circle: " + " -> ".join(cycle)


def test_nor_do_they_for_types_but_for_what_is_listed() -> None:
    graph = graph_of(
        (each.importer, each.imported)
        for each in IMPORTS
        if (each.importer, each.imported) not in UPWARDS and each.importer not in FACES
    )
    cycle = find_cycle(graph)
    assert not cycle, "imported in a circle, for types: " + " -> ".join(cycle)


@pytest.mark.parametrize("listed", UPWARDS, ids=" -> ".join)
def test_what_is_listed_is_there_for_types_alone_and_closes_a_circle(
    listed: tuple[str, str],
) -> None:
    assert {each.for_types for each in IMPORTS if each[:2] == listed} == {True}
    others = UPWARDS.keys() - {listed}
    graph = graph_of(
        each[:2]
        for each in IMPORTS
        if each[:2] not in others and each.importer not in FACES
    )
    assert find_cycle(graph)


def test_the_page_on_the_design_counts_the_lines_of_the_receiver_rightly() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    package = ROOT / "taskiq" / "receiver"
    lines = {
        path.stem: len(path.read_text().splitlines())
        for path in package.glob("*.py")
        if path.stem != "__init__"
    }
    told: dict[str, tuple[int, int]] = {}
    for names, count in re.findall(
        r"^\| (`[a-z_`, ]+`) \| .* \| (\d+) \|$", page, re.M
    ):
        modules = re.findall(r"`(\w+)`", names)
        told |= dict.fromkeys(modules, (int(count), sum(lines[m] for m in modules)))

    assert told.keys() == lines.keys()
    wrong = {name: each for name, each in told.items() if not is_about(*each)}
    assert not wrong, "told, and counted"
    total = re.search(r"^About ([\d,]+) lines", page, re.M)
    assert total
    assert is_about(int(total[1].replace(",", "")), sum(lines.values()))


def is_about(told: int, counted: int) -> bool:
    return abs(told - counted) <= max(10, counted // 20)


def test_functions_are_short_enough_to_read_at_once() -> None:
    """No more than 40 lines of code, without docstring, comments and signature."""
    long = {
        name: count
        for path in (ROOT / "taskiq").rglob("*.py")
        for name, count in code_lines(path)
        if count > 40
    }
    # Configuration, in the order of the parameters that upstream has.
    assert long.keys() <= {"receiver/receiver.py:__init__"}, long


def code_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Give each function of a module, and how many lines of code it has."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1:2] if ast.get_docstring(node) else node.body[:1]
            body = lines[first[0].lineno - 1 : node.end_lineno] if first else []
            code = [line for line in map(str.strip, body) if line and line[0] != "#"]
            yield f"{path.parent.name}/{path.name}:{node.name}", len(code)
