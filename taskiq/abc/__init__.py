"""Base classes to build brokers, result backends and the like on."""

from typing import TYPE_CHECKING

from taskiq._lazy import import_on_demand

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker
    from taskiq.abc.result_backend import AsyncResultBackend

__all__ = ["AsyncBroker", "AsyncResultBackend"]

if not TYPE_CHECKING:  # which would take any name for one of ours
    __getattr__ = import_on_demand(
        __name__,
        {
            "taskiq.abc.broker": ["AsyncBroker"],
            "taskiq.abc.result_backend": ["AsyncResultBackend"],
        },
    )
