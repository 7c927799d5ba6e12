"""Finding and importing what a command line names."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

logger = getLogger("taskiq.worker")

_MODULE_SUFFIXES: Final = frozenset({".py", ".pyc", ".pyd", ".so"})


@contextmanager
def add_cwd_in_path() -> Generator[None, None, None]:
    """Put the current directory first on `sys.path` while the block runs.

    Nothing happens if it is on the path already.
    """
    cwd = str(Path.cwd())
    if cwd in sys.path:
        yield
        return
    logger.debug("Inserting %s in sys.path", cwd)
    sys.path.insert(0, cwd)
    try:
        yield
    finally:
        try:
            sys.path.remove(cwd)
        except ValueError:
            logger.warning("Cannot remove '%s' from sys.path", cwd)


def import_object(object_spec: str, app_dir: str | None = None) -> Any:
    """Import the object a text like `package.module:variable` names.

    :param object_spec: dotted module name and attribute name, joined by one colon.
    :param app_dir: directory to import from; stays first on `sys.path`.
    :returns: the object.
    :raises ValueError: the text has no colon, or several.
    :raises ImportError: there is no such module.
    :raises AttributeError: the module has no such attribute.
    """
    parts = object_spec.split(":")
    if len(parts) != 2:  # noqa: PLR2004 - module and variable
        raise ValueError(
            "You should provide object path in `module:variable` format, "
            f"got {object_spec!r}.",
        )
    module_name, variable = parts
    with add_cwd_in_path():
        if app_dir is not None:
            sys.path.insert(0, app_dir)
        module = import_module(module_name)
    return getattr(module, variable)


def import_from_modules(modules: list[str]) -> None:
    """Import modules for their side effects; what cannot be imported is logged.

    :param modules: dotted names.
    """
    for module in modules:
        logger.info("Importing tasks from module %s", module)
        with add_cwd_in_path():
            try:
                import_module(module)
            except ImportError:
                logger.warning("Cannot import %s. Cause:", module)
                logger.exception("Importing %s failed.", module)


def import_tasks(
    modules: list[str],
    pattern: str | Sequence[str],
    fs_discover: bool,
) -> None:
    """Import task modules, on request also those found below the current directory.

    :param modules: dotted names; found modules are added to this list.
    :param pattern: glob pattern or patterns of the files to look for.
    :param fs_discover: whether to look for files at all.
    """
    if fs_discover:
        patterns = [pattern] if isinstance(pattern, str) else pattern
        cwd = Path.cwd()
        modules.extend(sorted(_module_names(_find(cwd, patterns), cwd)))
    import_from_modules(modules)


def _find(directory: Path, patterns: Iterable[str]) -> Generator[Path, None, None]:
    for pattern in patterns:
        anchor = Path(pattern).anchor
        if anchor:  # pathlib globs only relative patterns
            yield from Path(anchor).glob(str(Path(pattern).relative_to(anchor)))
        else:
            yield from directory.glob(pattern)


def _module_names(paths: Iterable[Path], root: Path) -> set[str]:
    names: set[str] = set()
    for path in paths:
        if not path.is_relative_to(root):
            logger.warning("Cannot import %s: it is not below %s.", path, root)
            continue
        is_directory = path.is_dir()
        name = dotted_name(path.relative_to(root), is_directory=is_directory)
        if name is not None:
            names.add(name)
    return names


def dotted_name(path: Path, *, is_directory: bool) -> str | None:
    """Return the dotted name a path is imported by.

    :param path: relative to the directory imports start from.
    :param is_directory: whether the path is a package rather than a file.
    :returns: the name, or `None` if nothing can be imported there: a hidden
        directory such as `.venv`, a file that is not Python.
    """
    parts = list(path.parts)
    if not parts or any(part.startswith(".") for part in parts):
        return None
    if not is_directory:
        if path.suffix not in _MODULE_SUFFIXES:
            return None
        # `a.cpython-313-darwin.so` is the module `a`.
        parts[-1] = path.name.split(".", maxsplit=1)[0]
    return ".".join(parts)
