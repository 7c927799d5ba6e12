"""Arguments of keys, weights, duplicates and isolation that both checkers refuse.

Each line is wrong on purpose; a line that one of them accepts makes its comment unused,
which is an error, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskiq import InMemoryBroker, async_shared_broker

if TYPE_CHECKING:
    from collections.abc import Hashable

broker = InMemoryBroker()


async def function(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def awaited(item: str) -> int:
    return len(item)


def weighs(item: str) -> float:
    return len(item)


def names(item: str) -> str:
    return item


def key(item: str, *rest: Any, **named: Any) -> Hashable:
    return item


def unhashable(item: str) -> list[str]:
    return [item]


@broker.task(
    batch=True,
    batch_key=key,
    batch_weight=weighs,
    batch_max_weight=10,
    batch_coalesce=names,
    batch_isolate_errors=(ValueError, KeyError),
)
async def accepted(items: list[str]) -> None: ...


def wrong_arguments_are_refused() -> None:
    broker.task(batch=True, batch_key="tenant")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_key=unhashable)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_weight=names, batch_max_weight=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_weight=awaited, batch_max_weight=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_weight=3, batch_max_weight=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_weight=weighs, batch_max_weight="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_coalesce="id")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_coalesce=unhashable)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_isolate_errors=ValueError)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_isolate_errors=[ValueError])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_isolate_errors=(ValueError, int))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_isolate_errors=(KeyboardInterrupt,))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_isolate_errors="all")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task("name", batch=True, batch_key="tenant")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(task_name="name", batch=True, batch_coalesce="id")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results="shared", batch_key="tenant")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.task(batch=True, batch_results="shared", batch_isolate_errors=ValueError)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    async_shared_broker.task(batch=True, batch_key="tenant")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    async_shared_broker.task(batch=True, batch_isolate_errors="all")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_key="tenant")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_weight=names)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_max_weight="1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_coalesce="id")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    broker.register_task(function, batch=True, batch_isolate_errors=ValueError)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
