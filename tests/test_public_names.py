"""The names that applications and plugins of taskiq 0.13.0 import, and how they look.

The table is `public_names.txt`; a module is added to it by adding a section.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import taskiq_dependencies
from pydantic import BaseModel

import taskiq

TABLE = Path(__file__).with_name("public_names.txt")

#: Where the names of the package's root come from.
ROOT = {
    "AckableMessage": "taskiq.acks",
    "AcknowledgeType": "taskiq.acks",
    "AsyncBroker": "taskiq.abc.broker",
    "AsyncResultBackend": "taskiq.abc.result_backend",
    "AsyncTaskiqDecoratedTask": "taskiq.decor",
    "AsyncTaskiqTask": "taskiq.task",
    "BrokerMessage": "taskiq.message",
    "Context": "taskiq.context",
    "InMemoryBroker": "taskiq.brokers.inmemory_broker",
    "NoResultError": "taskiq.exceptions",
    "PrometheusMiddleware": "taskiq.middlewares",
    "ResultGetError": "taskiq.exceptions",
    "ResultIsReadyError": "taskiq.exceptions",
    "ScheduleSource": "taskiq.abc.schedule_source",
    "ScheduledTask": "taskiq.scheduler.scheduled_task",
    "SecurityError": "taskiq.exceptions",
    "SendTaskError": "taskiq.exceptions",
    "SimpleRetryMiddleware": "taskiq.middlewares",
    "SmartRetryMiddleware": "taskiq.middlewares",
    "TaskiqError": "taskiq.exceptions",
    "TaskiqEvents": "taskiq.events",
    "TaskiqFormatter": "taskiq.abc.formatter",
    "TaskiqMessage": "taskiq.message",
    "TaskiqMiddleware": "taskiq.abc.middleware",
    "TaskiqResult": "taskiq.result",
    "TaskiqResultTimeoutError": "taskiq.exceptions",
    "TaskiqScheduler": "taskiq.scheduler.scheduler",
    "TaskiqState": "taskiq.state",
    "ZeroMQBroker": "taskiq.brokers.zmq_broker",
    "async_shared_broker": "taskiq.brokers.shared_broker",
    "gather": "taskiq.funcs",
}

#: What a bare ``import taskiq`` does not load: these modules and those below them.
NOT_LOADED = (
    "taskiq.__main__",
    "taskiq.abc.cmd",
    "taskiq.api",
    "taskiq.cli",
    "taskiq.formatters.json_formatter",
    "taskiq.instrumentation",
    "taskiq.middlewares.opentelemetry_middleware",
    "taskiq.package",
    "taskiq.schedule_sources",
    "taskiq.scheduler.merge_functions",
)

OPTIONAL = [
    "aiohttp",
    "cbor2",
    "gitignore_parser",
    "msgpack",
    "opentelemetry",
    "orjson",
    "prometheus_client",
    "psutil",
    "pycron",
    "pytz",
    "uvloop",
    "watchdog",
    "zmq",
]


# -- The root ----------------------------------------------------------------------


def test_the_root_exports_the_names_it_always_did() -> None:
    assert sorted(taskiq.__all__) == sorted([*ROOT, "TaskiqDepends", "__version__"])
    assert len(taskiq.__all__) == 33


@pytest.mark.parametrize(("name", "module"), ROOT.items())
def test_a_name_of_the_root_is_the_one_of_its_module(name: str, module: str) -> None:
    assert getattr(taskiq, name) is getattr(importlib.import_module(module), name)


def test_a_star_import_gives_all_of_them() -> None:
    given: dict[str, Any] = {}
    exec("from taskiq import *", given)  # noqa: S102 - our own words
    assert set(given) - {"__builtins__"} == set(taskiq.__all__)


def test_depends_is_the_one_of_its_package() -> None:
    assert taskiq.TaskiqDepends is taskiq_dependencies.Depends


def test_the_version_satisfies_the_ranges_of_plugins() -> None:
    assert type(taskiq.__version__) is str
    assert re.match(r"0\.(1[3-9]|[2-9]\d)\.\d+", taskiq.__version__)


def test_an_unknown_name_of_the_root_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = taskiq.no_such_name  # type: ignore[attr-defined] # checkers know, too


def test_the_package_is_typed() -> None:
    assert Path(str(taskiq.__file__)).with_name("py.typed").read_bytes() == b""


def sections() -> list[tuple[str, str]]:
    """Split the table into modules and what is said of each."""
    _, *parts = re.split(r"^### (\S+)$", TABLE.read_text("utf-8"), flags=re.MULTILINE)
    return list(zip(parts[::2], parts[1::2], strict=True))


def python_says(code: str) -> str:
    """Run code in a new interpreter, in which nothing is imported yet."""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        encoding="utf-8",
    )
    return done.stdout.strip()


def test_importing_the_package_loads_no_optional_library() -> None:
    loaded = python_says(
        # taskiq_dependencies loads FastAPI where it is installed, and that the rest.
        "import sys\nsys.modules['fastapi'] = None\nfrom taskiq import *\n"
        f"print([n for n in {OPTIONAL} if n in sys.modules])",
    )
    assert loaded == "[]"


def modules_within_reach() -> list[str]:
    """Give the modules that a bare `import taskiq` of 0.13.0 had loaded."""
    return [
        module
        for module, _ in sections()
        if not any(f"{module}.".startswith(f"{each}.") for each in NOT_LOADED)
    ]


@pytest.mark.parametrize("imported", ["taskiq", "taskiq.acks", "taskiq.scheduler"])
def test_whatever_is_imported_first_its_modules_are_attributes(imported: str) -> None:
    wanted = modules_within_reach()
    assert "taskiq.depends.progress_tracker" in wanted

    found = python_says(
        f"import operator, taskiq, {imported}\n"
        f"for name in {[module.removeprefix('taskiq.') for module in wanted]}:\n"
        "    print(operator.attrgetter(name)(taskiq).__name__)",
    )

    assert found.split() == wanted


def test_any_module_can_be_the_first_that_is_imported() -> None:
    """Run all in one interpreter that forgets what it has loaded before each."""
    says = python_says(
        "import importlib, sys\n"
        f"for name in {[module for module, _ in sections()]}:\n"
        "    for each in [n for n in sys.modules if n.partition('.')[0] == 'taskiq']:\n"
        "        del sys.modules[each]\n"
        "    importlib.import_module(name)\n"
        "    print(name)",
    )

    assert says.split() == [module for module, _ in sections()]


def test_importing_the_package_loads_nothing_that_is_not_used() -> None:
    assert (
        python_says("import sys, taskiq; print('pydantic' in sys.modules)") == "False"
    )


# -- The modules -------------------------------------------------------------------


def statements() -> list[Any]:
    """Give each statement of the table as a parameter, with a name to be read."""
    return [
        pytest.param(
            module, each, id=f"{module}: {ast.unparse(each).partition('(')[0]}"
        )
        for module, text in sections()
        for each in ast.parse(text).body
    ]


@pytest.mark.parametrize(("module", "statement"), statements())
def test_a_module_has_the_names_of_the_table(module: str, statement: ast.stmt) -> None:
    check(importlib.import_module(module), statement)


def check(owner: Any, statement: ast.stmt) -> None:
    """Check what one statement of the table says of a module or a class."""
    match statement:
        case ast.ImportFrom(module=str(source), names=names):
            for alias in names:
                original = getattr(importlib.import_module(source), alias.name)
                assert getattr(owner, alias.name) is original
        case ast.Expr(value=ast.Name(id=name)):
            assert hasattr(owner, name)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            check_value(getattr(owner, name), value)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            assert look_of(owner, name) == described_look(statement)
        case ast.ClassDef(name=name):
            check_class(getattr(owner, name), statement)
        case _:
            raise AssertionError(f"the table cannot say {ast.unparse(statement)!r}")


def check_value(found: Any, described: ast.expr) -> None:
    match described:
        case ast.Call(args=[ast.Constant(value=name)]):
            assert isinstance(found, logging.Logger)
            assert found.name == name
        case _:
            expected = ast.literal_eval(described)
            assert plain(found) == expected


def check_class(found: Any, described: ast.ClassDef) -> None:
    bases = {base.__name__ for base in inspect.getmro(found)}
    assert {ast.unparse(base) for base in described.bases} <= bases
    fields = [each for each in described.body if isinstance(each, ast.AnnAssign)]
    if fields:
        check_fields(found, fields)
    for statement in described.body:
        if not isinstance(statement, ast.AnnAssign) and not is_ellipsis(statement):
            check(found, statement)


def is_ellipsis(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def check_fields(model: type[Any], described: list[ast.AnnAssign]) -> None:
    """Check the fields of a class; the order of a model's is the one on the wire."""
    found = fields_of(model)
    assert list(found) == [ast.unparse(each.target) for each in described]
    for field, each in zip(found.values(), described, strict=True):
        if each.value is None:
            assert field == Field(is_required=True)
        elif ast.unparse(each.value) == "new":
            assert field.has_factory
        else:
            assert field.default == ast.literal_eval(each.value)


@dataclasses.dataclass
class Field:
    """What the table says of one field, whoever declares it."""

    is_required: bool = False
    has_factory: bool = False
    default: Any = None


def fields_of(model: type[Any]) -> dict[str, Field]:
    if issubclass(model, BaseModel):
        return {
            name: Field(
                is_required=field.is_required(),
                has_factory=field.default_factory is not None,
                default=None if field.is_required() else field.default,
            )
            for name, field in model.model_fields.items()
        }
    missing = dataclasses.MISSING
    return {
        field.name: Field(
            is_required=field.default is missing and field.default_factory is missing,
            has_factory=field.default_factory is not missing,
            default=None if field.default is missing else plain(field.default),
        )
        for field in dataclasses.fields(model)
    }


def plain(value: Any) -> Any:
    """Give a value as it can be written down: a member of an enum by its value."""
    return value.value if isinstance(value, enum.Enum) else value


def look_of(owner: Any, name: str) -> str:
    """Write down a function as the table does."""
    function = inspect.getattr_static(owner, name)
    marks = ""
    if isinstance(function, classmethod | staticmethod):
        marks = f"@{type(function).__name__} "
        function = function.__func__
    elif isinstance(function, property):
        marks = "@property "
        function = function.fget
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(
        function,
    )
    signature = inspect.signature(function)
    bare = signature.replace(
        parameters=[
            each.replace(annotation=inspect.Parameter.empty, default=named(each))
            for each in signature.parameters.values()
        ],
        return_annotation=inspect.Signature.empty,
    )
    return f"{marks}{'async ' if is_async else ''}{name}{bare}"


class Named:
    """A default value that is written as its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def named(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    is_named = isinstance(default, type) and default is not inspect.Parameter.empty
    return Named(default.__name__) if is_named else default


def described_look(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    marks = "".join(f"@{ast.unparse(each)} " for each in function.decorator_list)
    is_async = isinstance(function, ast.AsyncFunctionDef)
    parameters = ast.unparse(function.args)
    return f"{marks}{'async ' if is_async else ''}{function.name}({parameters})"
