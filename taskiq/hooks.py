"""Which middlewares take part in which hook, worked out once per list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskiq.abc.middleware import TaskiqMiddleware

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        "on_dead_letter",
        "on_ending",
        "on_error",
        "on_send_error",
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
        self.on_send_error = overriding("on_send_error", middlewares)
        self.pre_execute = overriding("pre_execute", middlewares)
        self.on_error = overriding("on_error", middlewares)
        self.post_execute = overriding("post_execute", middlewares)
        self.post_save = overriding("post_save", middlewares)
        self.on_ending = overriding("on_ending", middlewares)
        self.on_dead_letter = overriding("on_dead_letter", middlewares)
        self.on_batch_start = overriding("on_batch_start", middlewares)
        self.on_batch_end = overriding("on_batch_end", middlewares)

    @property
    def take_results(self) -> bool:
        """Whether somebody is given results, and may change them."""
        return bool(
            self.on_error or self.post_execute or self.post_save or self.on_batch_end,
        )


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
