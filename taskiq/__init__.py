"""Distributed async task queue that can run many messages as one batch call.

A name is imported when it is first used: who only sends tasks does not wait for the
receiver, and `taskiq --help` for neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskiq._lazy import import_on_demand

if TYPE_CHECKING:
    from taskiq_dependencies import Depends as TaskiqDepends

    from taskiq.abc.broker import AsyncBroker, AsyncTaskiqDecoratedTask
    from taskiq.abc.formatter import TaskiqFormatter
    from taskiq.abc.middleware import TaskiqMiddleware
    from taskiq.abc.result_backend import AsyncResultBackend
    from taskiq.abc.schedule_source import ScheduleSource
    from taskiq.acks import AckableMessage, AcknowledgeType
    from taskiq.batch import BatchConfig as BatchConfig
    from taskiq.batch import BatchInfo as BatchInfo
    from taskiq.brokers.inmemory_broker import InMemoryBroker
    from taskiq.brokers.shared_broker import async_shared_broker
    from taskiq.brokers.zmq_broker import ZeroMQBroker
    from taskiq.chunks import AsyncTaskiqChunk as AsyncTaskiqChunk
    from taskiq.context import BatchContext as BatchContext
    from taskiq.context import Context
    from taskiq.events import TaskiqEvents
    from taskiq.exceptions import (
        NoResultError,
        ResultGetError,
        ResultIsReadyError,
        SecurityError,
        SendTaskError,
        TaskiqError,
        TaskiqResultTimeoutError,
    )
    from taskiq.exceptions import SendManyError as SendManyError
    from taskiq.funcs import gather
    from taskiq.funcs import gather_results as gather_results
    from taskiq.message import BrokerMessage, TaskiqMessage
    from taskiq.middlewares import (
        PrometheusMiddleware,
        SimpleRetryMiddleware,
        SmartRetryMiddleware,
    )
    from taskiq.result import TaskiqResult
    from taskiq.scheduler.scheduled_task import ScheduledTask
    from taskiq.scheduler.scheduler import TaskiqScheduler
    from taskiq.state import TaskiqState
    from taskiq.task import AsyncTaskiqTask

__version__: str

# The names of taskiq 0.13.0; what came after it is imported by name only, so that a
# star import gives what it always gave.
__all__ = [
    "AckableMessage",
    "AcknowledgeType",
    "AsyncBroker",
    "AsyncResultBackend",
    "AsyncTaskiqDecoratedTask",
    "AsyncTaskiqTask",
    "BrokerMessage",
    "Context",
    "InMemoryBroker",
    "NoResultError",
    "PrometheusMiddleware",
    "ResultGetError",
    "ResultIsReadyError",
    "ScheduleSource",
    "ScheduledTask",
    "SecurityError",
    "SendTaskError",
    "SimpleRetryMiddleware",
    "SmartRetryMiddleware",
    "TaskiqDepends",
    "TaskiqError",
    "TaskiqEvents",
    "TaskiqFormatter",
    "TaskiqMessage",
    "TaskiqMiddleware",
    "TaskiqResult",
    "TaskiqResultTimeoutError",
    "TaskiqScheduler",
    "TaskiqState",
    "ZeroMQBroker",
    "__version__",
    "async_shared_broker",
    "gather",
]

#: Which module gives which names: what the imports for type checkers say, for Python.
_NAMES_OF_MODULES = {
    "taskiq.abc.broker": ["AsyncBroker", "AsyncTaskiqDecoratedTask"],
    "taskiq.abc.formatter": ["TaskiqFormatter"],
    "taskiq.abc.middleware": ["TaskiqMiddleware"],
    "taskiq.abc.result_backend": ["AsyncResultBackend"],
    "taskiq.abc.schedule_source": ["ScheduleSource"],
    "taskiq.acks": ["AckableMessage", "AcknowledgeType"],
    "taskiq.batch": ["BatchConfig", "BatchInfo"],
    "taskiq.brokers.inmemory_broker": ["InMemoryBroker"],
    "taskiq.brokers.shared_broker": ["async_shared_broker"],
    "taskiq.brokers.zmq_broker": ["ZeroMQBroker"],
    "taskiq.chunks": ["AsyncTaskiqChunk"],
    "taskiq.context": ["BatchContext", "Context"],
    "taskiq.events": ["TaskiqEvents"],
    "taskiq.exceptions": [
        "NoResultError",
        "ResultGetError",
        "ResultIsReadyError",
        "SecurityError",
        "SendManyError",
        "SendTaskError",
        "TaskiqError",
        "TaskiqResultTimeoutError",
    ],
    "taskiq.funcs": ["gather", "gather_results"],
    "taskiq.message": ["BrokerMessage", "TaskiqMessage"],
    "taskiq.middlewares": [
        "PrometheusMiddleware",
        "SimpleRetryMiddleware",
        "SmartRetryMiddleware",
    ],
    "taskiq.result": ["TaskiqResult"],
    "taskiq.scheduler.scheduled_task": ["ScheduledTask"],
    "taskiq.scheduler.scheduler": ["TaskiqScheduler"],
    "taskiq.state": ["TaskiqState"],
    "taskiq.task": ["AsyncTaskiqTask"],
}
_find = import_on_demand(__name__, _NAMES_OF_MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Type checkers would take any name for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "TaskiqDepends":
            return import_module("taskiq_dependencies").Depends
        if name == "__version__":
            return import_module("importlib.metadata").version("taskiq")
        return _find(name)
