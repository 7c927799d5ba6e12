"""Importing what hangs below a package when it is first used (PEP 562)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def import_on_demand(
    package: str,
    names_of_modules: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package: what is asked for is imported, and stays.

    :param package: its name. The modules directly below it can be had as attributes.
    :param names_of_modules: which modules have which names of the package.
    :returns: a function that raises `AttributeError` for any other name.
    """
    module_of_name = {
        name: module
        for module, names in (names_of_modules or {}).items()
        for name in names
    }

    def find(name: str) -> Any:
        if name in module_of_name:
            return getattr(import_module(module_of_name[name]), name)
        missing = f"module {package!r} has no attribute {name!r}"
        if name.startswith("_"):
            raise AttributeError(missing, name=name)
        try:
            return import_module(f"{package}.{name}")
        except ModuleNotFoundError as exc:
            if exc.name != f"{package}.{name}":
                raise
            raise AttributeError(missing, name=name) from None

    def get_attribute(name: str) -> Any:
        value = find(name)
        setattr(sys.modules[package], name, value)
        return value

    return get_attribute
