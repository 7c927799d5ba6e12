"""What is said to who sends or calls a task in a way that cannot work."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest

from taskiq import (
    BatchContext,
    Context,
    InMemoryBroker,
    SendManyError,
    TaskiqDepends,
)
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.testing import context_for
from tests.support.virtual_time import run_virtual
from tests.support.worker import Worker

broker = InMemoryBroker()


@broker.task
async def pay(amount: int, context: Annotated[Context, TaskiqDepends()]) -> str:
    return f"{amount} by {context.message.task_id}"


@broker.task
async def pay_by_default(amount: int, context: Context = TaskiqDepends()) -> str:  # noqa: B008
    return f"{amount} by {context.message.task_id}"


@broker.task
def pay_at_once(amount: int, context: Context = TaskiqDepends()) -> str:  # noqa: B008
    return f"{amount} by {context.message.task_id}"


@broker.task(batch=True)
async def insert(
    rows: list[int],
    context: Annotated[BatchContext, TaskiqDepends()],
    *,
    table: str = "rows",
) -> list[str]:
    ids = [message.task_id for message in context.messages]
    return [f"{row} by {each}" for row, each in zip(rows, ids, strict=True)]


# -- What the guide says ------------------------------------------------------------

GUIDE = (Path(__file__).parents[1] / "docs" / "guide" / "errors.md").read_text("utf-8")


def first_hour() -> list[tuple[str, str]]:
    """What one does, and what is said then: rows of the guide's table."""
    rows = re.findall(r"^\| [^|]+ \| `(.+?)` \| `(.+)` \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 8
    return rows


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the guide, as a file like those of users."""
    [code] = re.findall(r'```python title="shop.py"\n(.+?)```', GUIDE, re.DOTALL)
    (tmp_path / "shop.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("shop")
    del sys.modules["shop"]


@pytest.mark.parametrize(("line", "said"), first_hour())
async def test_the_errors_of_the_first_hour_are_those_of_the_guide(
    line: str,
    said: str,
    shop: ModuleType,
) -> None:
    exec(f"async def call(): {line}", vars(shop))  # noqa: S102 - our own guide
    with pytest.raises(TypeError) as caught:
        await shop.call()
    assert str(caught.value) == said


# -- Sending ------------------------------------------------------------------------


async def test_more_arguments_than_a_batch_function_has_are_refused_at_once() -> None:
    call: Any = insert.kiq
    with pytest.raises(TypeError) as caught:
        await call(1, 2, 3)
    text = str(caught.value)
    assert text.startswith("insert.kiq() takes one item and the arguments after it")
    assert "too many positional arguments" in text
    assert text.endswith("use insert.kiq_many(items)")


@pytest.mark.parametrize("how", ["kiq", "kicker"])
async def test_a_batch_task_is_not_sent_without_an_item(how: str) -> None:
    sending: Any = insert if how == "kiq" else insert.kicker()
    with pytest.raises(TypeError, match="the item is missing"):
        await sending.kiq(table="others")


@pytest.mark.parametrize("how", ["kiq", "kicker", "kiq_many", "direct"])
async def test_an_item_may_be_given_by_the_name_of_the_list(how: str) -> None:
    sending: Any = insert
    if how == "direct":
        context = context_for(sending, [1])
        assert await sending(rows=1, context=context) == await sending(1, context)
    elif how == "kiq":
        await sending.kiq(rows=1)
    elif how == "kicker":
        await sending.kicker().with_labels(any=1).kiq(table="others", rows=1)
    else:
        await sending.kiq_many([sending.call(rows=1)])


@pytest.mark.parametrize("how", ["kiq", "kicker"])
async def test_no_other_name_of_an_item_is_known(how: str) -> None:
    sending: Any = insert if how == "kiq" else insert.kicker()
    with pytest.raises(TypeError, match="unexpected keyword argument 'row'") as caught:
        await sending.kiq(row=1)
    assert "insert(rows: " in str(caught.value)


@pytest.mark.parametrize("how", ["kiq", "kicker", "kiq_many", "schedule"])
async def test_a_default_of_the_list_is_no_item(how: str) -> None:
    @broker.task(batch=True)
    async def count(rows: list[int | None] | None = None, step: int = 1) -> None:
        """Never called."""

    async def send() -> None:
        sending: Any = count
        if how == "kiq":
            await sending.kiq()
        elif how == "kicker":
            await sending.kicker().kiq(step=2)
        elif how == "kiq_many":
            await sending.kiq_many([sending.call(step=2)])
        else:
            await sending.schedule_by_cron(LabelScheduleSource(broker), "* * * * *")

    with pytest.raises((TypeError, SendManyError), match="the item is missing"):
        await send()


@pytest.mark.parametrize("how", ["kiq", "kicker", "kiq_many"])
async def test_a_list_in_the_place_of_an_item_is_refused_at_once(how: str) -> None:
    async def send() -> None:
        sending: Any = insert
        if how == "kiq":
            await sending.kiq([1, "2"])
        elif how == "kicker":
            await sending.kicker().with_labels(any=1).kiq([1, "2"])
        else:
            await sending.kiq_many([[1, "2"]])

    text = "takes one item of 'rows', of type int, and was given a list of 2: the"
    with pytest.raises((TypeError, SendManyError), match=re.escape(text)):
        await send()


@dataclass
class Pair:
    left: int
    right: int


@pytest.mark.parametrize(
    ("element", "item"),
    [
        (list[int], [1, 2]),
        (tuple[int, int], [1, 2]),
        (Any, [1, 2]),
        (Pair, Pair(1, 2)),
        # The worker has a say: this is wrong in another way.
        (int, ["one"]),
        (int, []),
    ],
)
async def test_a_list_that_may_be_an_item_is_sent(element: Any, item: Any) -> None:
    async def work(items: Any) -> None:
        """Never called."""

    work.__annotations__["items"] = list[element]
    own = InMemoryBroker()
    sending: Any = own.task(batch=True)(work)
    await sending.kiq(item)
    await own.shutdown()


async def test_an_error_of_calling_a_function_names_it_as_its_author_did() -> None:
    own = InMemoryBroker()

    @own.task
    async def add(a: int, b: int) -> int:
        return a + b

    sending: Any = add.kiq
    for args, text in (
        ((1, 2, 3), "add() takes 2 positional arguments but 3 were given"),
        ((1,), "add() missing 1 required positional argument: 'b'"),
    ):
        result = await (await sending(*args)).wait_result(timeout=5)
        assert str(result.error).endswith(text)
        assert "taskiq_original" not in str(result.error)


# -- Calling here -------------------------------------------------------------------


@pytest.mark.parametrize("task", [pay, pay_by_default, pay_at_once, insert])
async def test_a_missing_dependency_is_named_with_how_to_pass_it(task: Any) -> None:
    name = task.original_func.__name__.partition("__taskiq")[0]
    text = (
        f"{name}() is called here, where nobody resolves its dependencies: pass "
        f"'context' yourself, as in {name}(..., "
        f"context=taskiq.testing.context_for({name}, ...)), or send it with {name}.kiq"
    )
    with pytest.raises(TypeError, match=re.escape(text)):
        await task(1)


async def test_an_error_of_the_function_stays_what_it_is() -> None:
    own = InMemoryBroker()

    @own.task
    async def fail(context: Context = TaskiqDepends()) -> None:  # noqa: B008
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        await fail()


async def test_a_context_for_a_test_is_that_of_the_messages() -> None:
    assert await pay(5, context_for(pay, 5)) == "5 by 0"
    context = context_for(insert, [1, 2], table="other", labels={"tenant": 3})
    function: Any = insert.original_func
    assert await function([1, 2], context) == ["1 by 0", "2 by 1"]
    assert context.size == 2
    assert [message.args for message in context.messages] == [[1], [2]]
    assert context.message.kwargs == {"table": "other"}
    assert context.message.labels == {"tenant": 3}
    assert await insert(5, context_for(insert, [5])) == "5 by 0"
    await context.ack()
    assert context.is_acked


async def test_a_context_of_a_batch_is_of_a_list() -> None:
    with pytest.raises(TypeError, match="takes the list of items"):
        context_for(insert, 1)


# -- Waiting inside -----------------------------------------------------------------


@pytest.mark.parametrize(("slots", "is_warned"), [(1, True), (2, False)])
def test_a_worker_whose_calls_all_wait_for_results_says_so(
    slots: int,
    is_warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker(max_async_tasks=slots)

        @worker.broker.task
        async def inner() -> int:
            return 5

        @worker.broker.task
        async def outer() -> None:
            await (await inner.kiq()).wait_result(timeout=1)

        await outer.kiq()
        listening = worker.listen()
        await asyncio.sleep(10)
        worker.finish.set()
        await listening

    run_virtual(main())
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    expected = (
        "The only execution slot of this process is held by calls that wait for "
        "results: what they wait for, such as task "
    )
    assert [text.startswith(expected) for text in told] == [True] * is_warned
