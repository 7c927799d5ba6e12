"""Base classes to build brokers, result backends and the like on."""

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend

__all__ = ["AsyncBroker", "AsyncResultBackend"]
