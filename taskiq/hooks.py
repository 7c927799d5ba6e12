"""Which middlewares take part in which hook, worked out once per list of them."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.middleware import TaskiqMiddleware

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("taskiq.receiver.receiver")

#: Hooks that run in the order of the list; all others run in the reverse of it.
_IN_ORDER: Final = frozenset(
    {"startup", "shutdown", "pre_send", "pre_execute", "on_batch_start"},
)


class HookLists:
    """For each hook, the middlewares whose class overrides it, in calling order."""

    __slots__ = (
        "middlewares",
        "on_batch_end",
        "on_batch_start",
        "on_error",
        "post_execute",
        "post_save",
        "post_send",
        "pre_execute",
        "pre_send",
    )

    def __init__(self, middlewares: Sequence[TaskiqMiddleware]) -> None:
        self.middlewares = list(middlewares)
        self.pre_send = overriding("pre_send", middlewares)
        self.post_send = overriding("post_send", middlewares)
        self.pre_execute = overriding("pre_execute", middlewares)
        self.on_error = overriding("on_error", middlewares)
        self.post_execute = overriding("post_execute", middlewares)
        self.post_save = overriding("post_save", middlewares)
        self.on_batch_start = overriding("on_batch_start", middlewares)
        self.on_batch_end = overriding("on_batch_end", middlewares)


def overriding(
    hook: str,
    middlewares: Sequence[TaskiqMiddleware],
) -> tuple[TaskiqMiddleware, ...]:
    """List the middlewares whose class overrides `hook`, in calling order.

    A hook assigned on the instance does not count: the lists are worked out once.
    """
    base = getattr(TaskiqMiddleware, hook)
    found = tuple(m for m in middlewares if getattr(type(m), hook, base) is not base)
    return found if hook in _IN_ORDER else found[::-1]


def hooks_of(broker: Any) -> HookLists:
    """Give the hook lists of a broker, or of anything that has `middlewares`.

    They are kept on the broker and worked out again when its list changed.
    """
    lists = getattr(broker, "_hook_lists", None)
    # Comparing lists of the same objects costs less than asking each for its class.
    if type(lists) is HookLists and lists.middlewares == broker.middlewares:
        return lists
    lists = HookLists(broker.middlewares)
    broker._hook_lists = lists  # noqa: SLF001 - a cache that lives as long as its broker
    return lists


async def run_hooks(
    broker: Any,
    hook: str,
    subject: object,
    *args: Any,
    raise_err: bool = False,
) -> None:
    """Run one hook of all middlewares; one that fails does not stop the next.

    :param subject: names in the log what the hook ran for, by its `str`.
    :param args: what each hook is called with.
    :param raise_err: raise what a hook raises, after logging it.
    """
    middlewares: tuple[TaskiqMiddleware, ...] = getattr(hooks_of(broker), hook)
    for middleware in middlewares:
        try:
            returned = getattr(middleware, hook)(*args)
            if inspect.isawaitable(returned):
                await returned
        except Exception:  # noqa: PERF203 - each hook fails for itself
            logger.exception(
                "The %s hook of %s failed for %s.",
                hook,
                type(middleware).__name__,
                subject,
            )
            if raise_err:
                raise
