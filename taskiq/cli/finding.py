"""Finding what a command line names, and saying in a line why it cannot be found."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskiq import registration
from taskiq.abc.broker import AsyncBroker
from taskiq.cli.utils import add_cwd_in_path, import_object
from taskiq.exceptions import TaskiqError
from taskiq.outage import brief

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import FunctionType, ModuleType

_T = TypeVar("_T")

#: Exit status of a command that was called wrongly, as of a wrong option.
WRONG_USE: Final = 2

_MOST_NAMED: Final = 5


class StartError(ValueError):
    """A command cannot start, and trying again would not help; the text is one line.

    :param status: exit status of the command.
    """

    def __init__(self, text: str, status: int = WRONG_USE) -> None:
        super().__init__(text)
        self.status = status


class RegistrationError(StartError):
    """The application has a task that cannot be one, as for a typo in its decorator."""


@contextmanager
def registration_told() -> Generator[None, None, None]:
    """Say in one line which task cannot be registered, and where, if one cannot.

    Trying again would not help: the application has to be mended.

    :raises RegistrationError: in the place of what the registration raised.
    """
    try:
        yield
    except Exception as exc:
        place = _place_of_registration(exc)
        if place is None:
            raise
        is_clear = isinstance(exc, TaskiqError)
        text = str(exc) if is_clear else f"Cannot register a task: {brief(exc)}"
        raise RegistrationError(f"{place}: {text}") from exc


def _place_of_registration(error: Exception) -> str | None:
    """Name file and line of the decorator that raised, `None` if none did."""
    place = None
    for frame, line in walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module == registration.__name__:
            return place
        if not module.startswith("taskiq."):
            place = f"{frame.f_code.co_filename}, line {line}"
    return None


def find_object(
    spec: str,
    app_dir: str | None,
    kind: type[Any],
    title: str,
) -> Any:
    """Import what a text like `package.module:variable` names.

    :param kind: what is looked for, to name others of it.
    :param title: what it is called in errors, as "broker".
    :raises StartError: there is no such module or variable.
    :raises Exception: what the module raises while it is imported.
    """
    module_name, colon, variable = spec.partition(":")
    if not (module_name and colon and variable) or ":" in variable:
        raise StartError(
            f"Cannot find the {title} {spec!r}: it must be written module:variable.",
        )
    try:
        return import_object(spec, app_dir=app_dir)
    except ModuleNotFoundError as exc:
        # One that the application itself imports and does not find is its own error.
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        where = _no_module(exc.name, app_dir)
        raise StartError(f"Cannot find the {title} {spec!r}: {where}") from exc
    except AttributeError as exc:
        # A module that was not imported to its end is not there.
        module = sys.modules.get(module_name)
        if module is None or hasattr(module, variable):
            raise
        where = _no_variable(module, variable, kind)
        raise StartError(f"Cannot find the {title} {spec!r}: {where}") from exc


def check_modules(modules: Iterable[str], app_dir: str | None) -> None:
    """Look whether there are modules of these names, without importing them.

    What a module cannot import itself is its own error, told when it is imported.

    :raises StartError: one is not there.
    """
    for name in modules:
        with add_cwd_in_path():
            missing = _missing_part(name)
        if missing is not None:
            where = _no_module(missing, app_dir)
            raise StartError(f"Cannot find the module {name!r} of tasks: {where}")


def _missing_part(name: str) -> str | None:
    """Give what is not there of a dotted name, if it is known that something is not."""
    try:
        return name if find_spec(name) is None else None
    except ModuleNotFoundError as exc:
        # It is that of a package, or what a package fails to import.
        part = exc.name or ""
        return part if part and f"{name}.".startswith(f"{part}.") else None
    except (ImportError, ValueError):
        return None


def _no_module(name: str, app_dir: str | None) -> str:
    """Say where a module was looked for, and which one there has a similar name."""
    parent, _, last = name.rpartition(".")
    if parent:
        path = list(getattr(sys.modules.get(parent), "__path__", []))
    else:
        path = [str(Path.cwd()), *([] if app_dir is None else [app_dir])]
    names = [module.name for module in pkgutil.iter_modules(path)]
    prefix = f"{parent}." if parent else ""
    beside = "" if parent else " nor among the installed packages"
    return (
        f"there is no module {name!r} in {', '.join(path) or parent}{beside}."
        + _meant(last, names, prefix)
    )


def _no_variable(module: ModuleType, name: str, kind: type[Any]) -> str:
    file = getattr(module, "__file__", None) or "built in"
    names = [each for each in vars(module) if not each.startswith("__")]
    guess = _meant(name, names) or _others(module, kind)
    return f"the module {module.__name__!r} ({file}) has no {name!r}.{guess}"


def _meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {prefix + near[0]!r}?" if near else ""


def _others(module: ModuleType, kind: type[Any]) -> str:
    found = [name for name, each in vars(module).items() if isinstance(each, kind)]
    if not found:
        return ""
    named = ", ".join(map(repr, found[:_MOST_NAMED]))
    return f" It has these of type {kind.__name__}: {named}."


def find_broker(spec: object, app_dir: str | None) -> AsyncBroker:
    """Import a broker, or call the function that makes one; see `find_or_make`."""
    # Nobody makes one of the abstract class here.
    kind: type[AsyncBroker] = AsyncBroker  # type: ignore[type-abstract]
    return find_or_make(spec, app_dir, kind, "broker")


def find_or_make(
    spec: object,
    app_dir: str | None,
    kind: type[_T],
    title: str,
) -> _T:
    """Import what a text names, or call the function that makes it.

    :param spec: `package.module:variable`, or the thing itself.
    :param kind: what it must be.
    :param title: what it is called in errors, as "broker".
    :raises StartError: what is named is neither.
    :raises Exception: what the module or the function raises.
    """
    found = spec
    if isinstance(spec, str):
        found = find_object(spec, app_dir, kind, title)
    if inspect.isfunction(found):
        return _made(found, spec, kind, title)
    if isinstance(found, kind):
        return found
    others = ""
    if isinstance(spec, str):
        others = _others(sys.modules[spec.partition(":")[0]], kind)
    raise StartError(
        f"{spec!r} is no {title}: it is neither of type {kind.__name__} nor a function "
        f"that returns one, but {_short(found)}.{others}",
    )


def _made(function: FunctionType, spec: object, kind: type[_T], title: str) -> _T:
    try:
        inspect.signature(function).bind()
    except TypeError as exc:
        raise StartError(
            f"{spec!r} cannot make a {title}: it is called without arguments, and has "
            f"the parameters {inspect.signature(function)}.",
        ) from exc
    made = function()
    if not isinstance(made, kind):
        if inspect.iscoroutine(made):
            made.close()
        raise StartError(
            f"{spec!r} must return a {title} of type {kind.__name__}, "
            f"but returned {_short(made)}.",
        )
    return made


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    most = 80
    text = text if len(text) <= most else f"{text[:most]}..."
    return f"{text} of type {type(value).__name__}"
