"""Which middlewares take part in which hook, in which order, and when that changes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from taskiq import TaskiqMessage, TaskiqMiddleware
from taskiq.hooks import HookLists, hooks_of, overriding
from taskiq.receiver.containment import run_hooks
from tests.support.brokers import QueueBroker
from tests.support.recorders import RecordingMiddleware

IN_ORDER = ("startup", "shutdown", "pre_send", "pre_execute", "on_batch_start")
REVERSED = (
    "post_send",
    "on_send_error",
    "on_ending",
    "on_dead_letter",
    "on_error",
    "post_execute",
    "post_save",
    "on_batch_end",
)


class EveryHook(TaskiqMiddleware):
    """Overrides all there are."""


for hook in (*IN_ORDER, *REVERSED):
    setattr(EveryHook, hook, lambda *_: None)


class OneHook(TaskiqMiddleware):
    """Overrides one."""

    def post_send(self, message: TaskiqMessage) -> None:
        raise NotImplementedError


class Inheriting(OneHook):
    """Overrides it by its base class."""


class CallingSuper(OneHook):
    """Overrides what is overridden already."""

    def post_send(self, message: TaskiqMessage) -> None:
        super().post_send(message)


@pytest.fixture
def broker() -> QueueBroker:
    return QueueBroker()


# -- Lists -------------------------------------------------------------------------


@pytest.mark.parametrize("hook", IN_ORDER)
def test_hooks_before_something_run_in_the_order_of_the_list(hook: str) -> None:
    first, second = EveryHook(), EveryHook()
    assert overriding(hook, [first, TaskiqMiddleware(), second]) == (first, second)


@pytest.mark.parametrize("hook", REVERSED)
def test_hooks_after_something_run_in_reverse(hook: str) -> None:
    first, second = EveryHook(), EveryHook()
    assert overriding(hook, [first, TaskiqMiddleware(), second]) == (second, first)


def test_every_hook_of_a_message_or_batch_has_its_list() -> None:
    middleware = EveryHook()
    lists = HookLists([middleware])
    kept = set(IN_ORDER + REVERSED) - {"startup", "shutdown"}

    assert {name for name in HookLists.__slots__ if name != "middlewares"} == kept
    assert {name: getattr(lists, name) for name in kept} == dict.fromkeys(
        kept,
        (middleware,),
    )


def test_a_hook_takes_part_where_a_class_or_its_base_overrides_it() -> None:
    inheriting, calling = Inheriting(), CallingSuper()
    middlewares = [TaskiqMiddleware(), inheriting, calling]

    lists = HookLists(middlewares)

    assert lists.post_send == (calling, inheriting)
    assert lists.pre_send == ()
    assert lists.post_save == ()


def test_a_hook_patched_onto_an_instance_takes_no_part() -> None:
    middleware = TaskiqMiddleware()
    vars(middleware)["post_send"] = print
    assert HookLists([middleware]).post_send == ()


# -- Keeping them ------------------------------------------------------------------


def test_lists_are_worked_out_once(broker: QueueBroker) -> None:
    broker.add_middlewares(EveryHook())
    assert hooks_of(broker) is hooks_of(broker)


def test_lists_follow_a_middleware_that_is_added_or_removed(
    broker: QueueBroker,
) -> None:
    first, second = EveryHook(), EveryHook()
    assert hooks_of(broker).pre_send == ()

    broker.add_middlewares(first)
    assert hooks_of(broker).pre_send == (first,)
    broker.middlewares.insert(0, second)
    assert hooks_of(broker).pre_send == (second, first)
    broker.middlewares.remove(first)
    assert hooks_of(broker).pre_send == (second,)


def test_lists_follow_an_exchanged_or_reordered_middleware(
    broker: QueueBroker,
) -> None:
    first, second = EveryHook(), EveryHook()
    broker.add_middlewares(first, second)
    assert hooks_of(broker).pre_send == (first, second)

    broker.middlewares.reverse()
    assert hooks_of(broker).pre_send == (second, first)
    broker.middlewares[0] = third = EveryHook()
    assert hooks_of(broker).pre_send == (third, first)


def test_lists_follow_a_list_that_is_replaced(broker: QueueBroker) -> None:
    broker.add_middlewares(EveryHook())
    assert len(hooks_of(broker).pre_send) == 1

    broker.middlewares = [own := EveryHook()]
    assert hooks_of(broker).pre_send == (own,)
    broker.middlewares = []
    assert hooks_of(broker).pre_send == ()


def test_two_brokers_keep_their_own_lists(broker: QueueBroker) -> None:
    other = QueueBroker()
    broker.add_middlewares(mine := EveryHook())
    other.add_middlewares(its := EveryHook())

    assert hooks_of(broker).pre_send == (mine,)
    assert hooks_of(other).pre_send == (its,)


def test_anything_with_middlewares_has_lists() -> None:
    middleware = EveryHook()
    assert hooks_of(SimpleNamespace(middlewares=[middleware])).pre_send == (middleware,)
    assert hooks_of(SimpleNamespace(middlewares=(middleware,))).pre_send == (
        middleware,
    )


# -- Running them ------------------------------------------------------------------


class Failing(TaskiqMiddleware):
    """Fails after everything, async before and sync after the result is saved."""

    async def post_execute(self, message: TaskiqMessage, result: Any) -> None:
        raise LookupError("post_execute fails")

    def post_save(self, message: TaskiqMessage, result: Any) -> None:
        raise LookupError("post_save fails")


@pytest.mark.parametrize("hook", ["post_execute", "post_save"])
async def test_a_hook_that_fails_is_logged_and_the_next_one_runs(
    hook: str,
    broker: QueueBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[tuple[str, str]] = []
    broker.add_middlewares(RecordingMiddleware("", events), Failing())
    message: Any = SimpleNamespace(task_id="id")

    middlewares = getattr(hooks_of(broker), hook)
    await run_hooks(middlewares, hook, "the subject", message, None)

    assert events == [(hook, "id")]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == f"The {hook} hook of Failing failed for the subject."
    assert record.exc_info is not None


async def test_a_hook_that_fails_stops_the_others_on_request(
    broker: QueueBroker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker.add_middlewares(Failing(), Failing())
    failed = await run_hooks(
        hooks_of(broker).post_save,
        "post_save",
        "x",
        None,
        None,
        ends_with_failure=True,
    )
    assert failed is not None
    assert isinstance(failed.error, LookupError)
    assert len(caplog.records) == 1
