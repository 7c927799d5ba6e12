"""Dependencies that tasks can ask for."""

from typing import TYPE_CHECKING

from taskiq._lazy import import_on_demand

if not TYPE_CHECKING:  # which would take any name for one of ours
    __getattr__ = import_on_demand(__name__)
