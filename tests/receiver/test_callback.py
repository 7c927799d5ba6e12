"""What happens to one message, from its bytes to its acknowledgement."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from taskiq import (
    AckableMessage,
    AsyncTaskiqDecoratedTask,
    BrokerMessage,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.acks import AcknowledgeType
from taskiq.exceptions import NoResultError
from taskiq.receiver import Receiver
from tests.support.brokers import message_bytes
from tests.support.recorders import RecordingBackend, RecordingMiddleware
from tests.support.virtual_time import run_virtual
from tests.support.worker import CurrentContext, Worker, complaints

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ["pre_execute", "task", "post_execute", "save", "post_save"]


def with_ack(after: str) -> list[str]:
    """List the steps of a message that is acked after one of them."""
    place = STEPS.index(after) + 1
    return [*STEPS[:place], "ack", *STEPS[place:]]


ORDERS = {
    AcknowledgeType.WHEN_RECEIVED: with_ack(after="pre_execute"),
    AcknowledgeType.WHEN_EXECUTED: with_ack(after="task"),
    AcknowledgeType.WHEN_SAVED: with_ack(after="post_save"),
    AcknowledgeType.MANUAL: STEPS,
}

every_ack_type = pytest.mark.parametrize("ack_type", AcknowledgeType)


def working_task(worker: Worker) -> AsyncTaskiqDecoratedTask[..., Any]:
    """Register a task that writes itself down and returns its argument."""

    async def work(value: int = 0, *, context: CurrentContext) -> int:
        worker.journal.append(("task", context.message.task_id))
        return value

    return worker.broker.register_task(work, task_name="work")


def failing_task(
    worker: Worker,
    error: BaseException | None = None,
) -> AsyncTaskiqDecoratedTask[..., Any]:
    """Register a task that writes itself down and fails."""

    async def fail(*, context: CurrentContext) -> None:
        worker.journal.append(("task", context.message.task_id))
        raise error or ValueError("it failed")

    return worker.broker.register_task(fail, task_name="fail")


# -- The order of events ----------------------------------------------------------


@every_ack_type
async def test_each_ack_type_acks_at_its_own_moment(ack_type: AcknowledgeType) -> None:
    worker = Worker(ack_type=ack_type)

    await worker.deliver(working_task(worker))

    assert worker.steps() == ORDERS[ack_type]


async def test_messages_are_acked_when_saved_by_default() -> None:
    worker = Worker()

    await worker.deliver(working_task(worker))

    assert worker.steps() == ORDERS[AcknowledgeType.WHEN_SAVED]


@every_ack_type
@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
async def test_the_ack_label_wins_over_the_receiver_in_any_letter_case(
    ack_type: AcknowledgeType,
    spell: Callable[[str], str],
) -> None:
    of_receiver = (
        AcknowledgeType.MANUAL
        if ack_type is AcknowledgeType.WHEN_SAVED
        else AcknowledgeType.WHEN_SAVED
    )
    worker = Worker(ack_type=of_receiver)

    await worker.deliver(
        working_task(worker),
        labels={"ack_type": spell(ack_type.value)},
    )

    assert worker.steps() == ORDERS[ack_type]


async def test_an_ack_label_without_a_value_leaves_the_choice_to_the_receiver() -> None:
    worker = Worker(ack_type=AcknowledgeType.WHEN_EXECUTED)
    working_task(worker)
    message = {
        "task_id": "id",
        "task_name": "work",
        "labels": {"ack_type": None},
        "args": [],
        "kwargs": {},
    }

    await worker.receiver.callback(worker.ackable(json.dumps(message).encode()))

    assert worker.steps() == ORDERS[AcknowledgeType.WHEN_EXECUTED]


async def test_a_middleware_may_set_the_ack_label_before_it_is_read() -> None:
    class AckEarly(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            message.labels["ack_type"] = AcknowledgeType.WHEN_RECEIVED
            return message

    worker = Worker(AckEarly(), is_recording=False)

    await worker.deliver(working_task(worker))

    assert worker.steps() == ["ack", "task", "save"]


@every_ack_type
async def test_a_message_without_an_ack_is_never_acked(
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)
    task = working_task(worker)

    await worker.receiver.callback(message=message_bytes(task, 3))

    assert worker.steps() == ORDERS[AcknowledgeType.MANUAL]
    assert worker.backend.results["id"].return_value == 3
    assert complaints(caplog) == []


async def test_a_sync_ack_is_called_as_well() -> None:
    worker = Worker()
    data = message_bytes(working_task(worker))
    acks: list[str] = []

    await worker.receiver.callback(
        AckableMessage(data=data, ack=lambda: acks.append("id")),
    )

    assert acks == ["id"]


@every_ack_type
async def test_a_manual_ack_and_the_automatic_one_ask_the_broker_once(
    ack_type: AcknowledgeType,
) -> None:
    worker = Worker(ack_type=ack_type)
    seen: list[bool] = []

    @worker.broker.task
    async def acking(context: CurrentContext) -> None:
        seen.append(context.is_ackable)
        await context.ack()
        await context.ack()
        seen.append(context.is_acked)

    await worker.deliver(acking)

    assert worker.steps().count("ack") == 1
    assert seen == [True, True]


@pytest.mark.parametrize("is_async", [False, True])
async def test_hooks_run_outwards_after_the_task(is_async: bool) -> None:
    events: list[str] = []

    class Named(TaskiqMiddleware):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def note(self, hook: str, returned: Any = None) -> Any:
            async def later() -> Any:
                events.append(hook + self.name)
                return returned

            if is_async:
                return later()
            events.append(hook + self.name)
            return returned

        def pre_execute(self, message: TaskiqMessage) -> Any:
            return self.note("pre", message)

        def on_error(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
            exception: BaseException,
        ) -> Any:
            assert isinstance(exception, ValueError)
            assert result.error is exception
            return self.note("err")

        def post_execute(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
        ) -> Any:
            return self.note("post")

        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> Any:
            return self.note("save")

    worker = Worker(Named("1"), Named("2"), is_recording=False)

    await worker.deliver(failing_task(worker))

    assert events[:2] == ["pre1", "pre2"]
    assert events[2:] == ["err2", "err1", "post2", "post1", "save2", "save1"]


async def test_a_broker_may_have_a_class_of_its_own_for_what_is_acked() -> None:
    class Traced(AckableMessage):
        """As a broker may want to hand over more than there is a field for."""

    worker = Worker()
    given = worker.ackable(message_bytes(working_task(worker), 1, task_id="id"))

    await worker.receiver.callback(Traced(data=given.data, ack=given.ack))

    assert worker.steps() == ORDERS[AcknowledgeType.WHEN_SAVED]


async def test_every_hook_is_given_the_result_that_is_saved() -> None:
    class Keeping(TaskiqMiddleware):
        def on_error(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
            exception: BaseException,
        ) -> None:
            given.append(result)

        def post_execute(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
        ) -> None:
            given.append(result)

        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            given.append(result)

    given: list[TaskiqResult[Any]] = []
    worker = Worker(Keeping(), is_recording=False)

    saved = await worker.deliver(failing_task(worker))

    assert [id(result) for result in given] == [id(saved)] * 3


async def test_a_hook_patched_onto_the_instance_is_not_called() -> None:
    middleware = TaskiqMiddleware()
    called: list[str] = []
    for hook in ("pre_execute", "on_error", "post_execute", "post_save"):
        setattr(middleware, hook, lambda *_, hook=hook: called.append(hook))
    worker = Worker(middleware, is_recording=False)

    result = await worker.deliver(failing_task(worker))

    assert result is not None
    assert result.is_err
    assert called == []


async def test_a_middleware_added_later_takes_part() -> None:
    worker = Worker()
    task = working_task(worker)
    await worker.deliver(task)
    late = RecordingMiddleware("late ")
    worker.broker.add_middlewares(late)

    await worker.deliver(task, task_id="second")

    assert late.events == [
        ("late pre_execute", "second"),
        ("late post_execute", "second"),
        ("late post_save", "second"),
    ]


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


class TenantMiddleware(TaskiqMiddleware):
    """Tells tasks by a context variable whose message they run."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, contextvars.Token[str]] = {}

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.tokens[message.task_id] = tenant.set(message.labels["tenant"])
        return message

    async def post_save(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        tenant.reset(self.tokens.pop(message.task_id))


async def test_hooks_and_the_task_of_a_message_share_their_context_variables(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(TenantMiddleware(), is_recording=False)

    @worker.broker.task
    async def whose() -> str:
        return tenant.get()

    result = await worker.deliver(whose, labels={"tenant": "acme"})

    assert result is not None
    assert result.return_value == "acme"
    assert complaints(caplog) == []


async def test_an_on_error_hook_may_replace_the_error_but_not_the_verdict() -> None:
    class Translate(TaskiqMiddleware):
        def on_error(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
            exception: BaseException,
        ) -> None:
            result.error = LookupError(str(exception))

    worker = Worker(Translate(), is_recording=False)

    result = await worker.deliver(failing_task(worker))

    assert result is not None
    assert isinstance(result.error, LookupError)
    assert result.is_err


# -- Messages nobody can run ------------------------------------------------------


@every_ack_type
@pytest.mark.parametrize(
    "data",
    [
        b"\xff\x00 no message",
        b"[1, 2]",
        b"{}",
        b'{"task_id": 1, "task_name": [], "labels": {}, "args": [], "kwargs": {}}',
        b'{"task_id": "id", "task_name": "work", "labels": {"n": "x"}, '
        b'"labels_types": {"n": 2}, "args": [], "kwargs": {}}',
    ],
    ids=["no text", "no object", "no fields", "wrong fields", "wrong label"],
)
async def test_an_unparsable_message_is_acked_and_said_to_be_dropped(
    ack_type: AcknowledgeType,
    data: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)
    working_task(worker)

    await worker.receiver.callback(worker.ackable(data))

    assert worker.steps() == ["ack"]
    [warning] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert repr(data) in warning.getMessage()
    assert f"(length {len(data)})" in warning.getMessage()
    assert warning.exc_info is None
    assert len(complaints(caplog)) == 1


async def test_of_an_unparsable_message_no_more_than_its_beginning_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    await worker.receiver.callback(worker.ackable(b"x" * 700_000))

    [warning] = complaints(caplog)
    assert len(warning) < 400
    assert f"b'{'x' * 190}" in warning
    assert "... (length 700000): JSONDecodeError" in warning


async def test_a_message_nobody_can_run_joins_no_batch_and_is_acked() -> None:
    worker = Worker()

    await worker.receiver.callback(worker.ackable(b"no message"))

    assert worker.receiver.runtime.batcher.is_empty
    assert worker.steps() == ["ack"]


@every_ack_type
async def test_a_message_of_an_unknown_task_is_acked_and_said_to_be_dropped(
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)
    data = message_bytes(working_task(worker))
    worker.broker.local_task_registry.clear()

    await worker.receiver.callback(worker.ackable(data))

    assert worker.steps() == ["ack"]
    [warning] = complaints(caplog)
    assert "'work'" in warning
    assert "id" in warning


@pytest.mark.parametrize("known", [False, True])
async def test_a_dropped_message_without_an_ack_is_no_error(known: bool) -> None:
    worker = Worker()
    data = b"no message" if known else message_bytes(working_task(worker))
    worker.broker.local_task_registry.clear()

    await worker.receiver.callback(data)

    assert worker.journal == []


async def test_a_failing_ack_of_a_dropped_message_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()

    async def ack() -> None:
        raise ConnectionError("no broker")

    await worker.receiver.callback(AckableMessage(data=b"no message", ack=ack))

    assert len(complaints(caplog)) == 2
    assert complaints(caplog)[1].startswith(
        "Cannot acknowledge a message that nobody can run: ConnectionError: no broker."
    )


@pytest.mark.parametrize("kind", [bytearray, memoryview, bytes.decode])
async def test_a_delivery_that_is_no_bytes_goes_to_the_formatter_as_it_is(
    kind: Callable[[bytes], Any],
) -> None:
    worker = Worker()
    data = kind(message_bytes(working_task(worker), 3))
    given: list[Any] = []
    loads = worker.broker.formatter.loads

    def loads_anything(message: Any) -> TaskiqMessage:
        given.append(message)
        return loads(message.encode() if isinstance(message, str) else bytes(message))

    worker.broker.formatter.loads = loads_anything  # type: ignore[method-assign] # a formatter of text

    await worker.receiver.callback(data)

    assert given == [data]
    assert worker.backend.results["id"].return_value == 3


# -- pre_execute ------------------------------------------------------------------


async def test_the_message_of_the_last_pre_execute_is_the_one_that_runs() -> None:
    seen: list[Any] = []

    class AddOne(TaskiqMiddleware):
        async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            return message.model_copy(update={"args": [message.args[0] + 1]})

        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            seen.append(message.args)

    worker = Worker(AddOne(), AddOne(), is_recording=False)

    result = await worker.deliver(working_task(worker), 1)

    assert result is not None
    assert result.return_value == 3
    assert seen == [[3], [3]]


class BrokenPreExecute(TaskiqMiddleware):
    """Raises, or returns nothing."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if self.error is not None:
            raise self.error
        return None  # type: ignore[return-value] # the mistake under test


@every_ack_type
@pytest.mark.parametrize("error", [None, KeyError("no such tenant")])
async def test_a_broken_pre_execute_becomes_the_error_of_its_message(
    error: Exception | None,
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(BrokenPreExecute(error), is_recording=False, ack_type=ack_type)
    worker.broker.add_middlewares(RecordingMiddleware(events=worker.journal))

    result = await worker.deliver(working_task(worker))

    assert result is not None
    assert result.is_err
    assert result.execution_time == 0
    if error is not None:
        assert result.error is error
    else:
        assert isinstance(result.error, TypeError)
        assert "BrokenPreExecute" in str(result.error)
    policy = [step for step in ORDERS[ack_type] if step not in {"pre_execute", "task"}]
    steps = worker.steps()
    assert steps.count("on_error") == 1
    assert [step for step in steps if step != "on_error"] == policy
    [line] = complaints(caplog)
    assert "task work with ID id" in line


# -- A bad ack_type label ---------------------------------------------------------


async def test_a_bad_ack_label_is_an_error_where_there_are_no_hooks_too() -> None:
    worker = Worker(TaskiqMiddleware(), is_recording=False)

    result = await worker.deliver(working_task(worker), labels={"ack_type": "often"})

    assert result is not None
    assert "Invalid ack_type label" in str(result.error)
    assert worker.steps() == ["save", "ack"]


@pytest.mark.parametrize("label", ["sometimes", 7, ["manual"]])
async def test_a_bad_ack_label_becomes_the_error_of_its_message(
    label: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    working_task(worker)
    message = {
        "task_id": "id",
        "task_name": "work",
        "labels": {"ack_type": label},
        "args": [],
        "kwargs": {},
    }

    await worker.receiver.callback(worker.ackable(json.dumps(message).encode()))

    result = worker.backend.results["id"]
    assert isinstance(result.error, ValueError)
    assert "Invalid ack_type label" in str(result.error)
    assert isinstance(result.error.__cause__, ValueError)
    assert worker.steps() == [
        "pre_execute",
        "on_error",
        "post_execute",
        "save",
        "post_save",
        "ack",
    ]
    [line] = complaints(caplog)
    assert "task work with ID id" in line


@pytest.mark.parametrize("batch", [{}, {"batch": True, "batch_size": 1}])
@pytest.mark.parametrize(
    ("label", "error", "steps"),
    [
        ("manual", None, ["save"]),
        ("when_received", None, ["ack", "save"]),
        ("when_executed", None, ["ack", "save"]),
        ("when_saved", None, ["save", "ack"]),
        ("sometimes", ValueError, ["save", "ack"]),
    ],
)
async def test_ack_labels_count_without_any_middleware(
    batch: dict[str, Any],
    label: str,
    error: type[Exception] | None,
    steps: list[str],
) -> None:
    worker = Worker()
    worker.broker.middlewares.clear()

    async def echo(item: Any) -> Any:
        return item

    work = worker.broker.register_task(echo, task_name="work", **batch)
    message = message_bytes(work, 1, labels={"ack_type": label})
    await worker.receiver.callback(worker.ackable(message))

    result = worker.backend.results["id"]
    assert type(result.error) is (error or type(None))
    assert worker.steps() == steps
    # Made without validation, and yet what validation makes of it.
    assert repr(result) == repr(TaskiqResult.model_validate(dict(result)))


# -- No result, on purpose --------------------------------------------------------


@every_ack_type
async def test_no_result_on_purpose_is_neither_saved_nor_left_unacked(
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)

    result = await worker.deliver(failing_task(worker, NoResultError()))

    assert result is None
    expected = [s for s in ORDERS[ack_type] if s not in {"save", "post_save"}]
    expected.insert(expected.index("task") + 1, "on_error")
    assert worker.steps() == expected
    [line] = complaints(caplog)
    assert "no result" in line
    assert "task fail with ID id" in line


async def test_a_middleware_may_withhold_the_result() -> None:
    class Retry(TaskiqMiddleware):
        def on_error(
            self,
            message: TaskiqMessage,
            result: TaskiqResult[Any],
            exception: BaseException,
        ) -> None:
            result.error = NoResultError()

    worker = Worker(Retry(), is_recording=False)
    worker.broker.add_middlewares(RecordingMiddleware(events=worker.journal))

    result = await worker.deliver(failing_task(worker))

    assert result is None
    assert worker.steps() == ["pre_execute", "task", "on_error", "post_execute", "ack"]


async def test_a_requeued_message_is_sent_again_and_leaves_no_result() -> None:
    worker = Worker()

    @worker.broker.task
    async def again(context: CurrentContext) -> None:
        await context.requeue()

    result = await worker.deliver(again)

    assert result is None
    sent = worker.broker.queue.get_nowait()
    assert sent is not None
    requeued = worker.broker.formatter.loads(sent.message)
    assert requeued.task_id == "id"
    assert requeued.labels["X-Taskiq-requeue"] == "1"


# -- What fails around the task ---------------------------------------------------


@every_ack_type
async def test_a_result_that_cannot_be_saved_is_acked_unless_it_had_to_be_saved(
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)
    worker.backend.failing.add("id")

    await worker.deliver(working_task(worker))

    not_reached = {"save", "post_save"}
    if ack_type is AcknowledgeType.WHEN_SAVED:
        not_reached.add("ack")
    assert worker.steps() == [s for s in ORDERS[ack_type] if s not in not_reached]
    [complaint] = complaints(caplog)
    assert "task work with ID id: ConnectionError: cannot save id." in complaint


async def test_the_error_of_saving_is_raised_on_request() -> None:
    worker = Worker()
    worker.backend.failing.add("id")
    data = worker.ackable(message_bytes(working_task(worker)))

    with pytest.raises(ConnectionError, match="cannot save id"):
        await worker.receiver.callback(data, raise_err=True)

    assert worker.steps() == ["pre_execute", "task", "post_execute"]


class DumpingBackend(RecordingBackend):
    """Saves results as text, as most backends do."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        result.model_dump_json()
        await super().set_result(task_id, result)


async def test_for_a_value_that_cannot_be_stored_an_error_that_names_it_is_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    backend = DumpingBackend()
    worker.broker.with_result_backend(backend)

    @worker.broker.task
    async def odd() -> object:
        return {"rows": [1, object()]}

    await worker.deliver(odd)

    assert worker.steps() == ["pre_execute", "post_execute", "post_save", "ack"]
    [line] = complaints(caplog)
    assert "ID id" in line
    assert 'return_value["rows"][1]' in line


class Raising(TaskiqMiddleware):
    """Raises in one hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def _reached(self, hook: str) -> None:
        if hook == self.hook:
            raise KeyError(f"broken {hook}")

    def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
        exception: BaseException,
    ) -> None:
        self._reached("on_error")

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        self._reached("post_execute")

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._reached("post_save")


class Renaming(TaskiqMiddleware):
    """Gives a message another id: in a copy, or in the message itself."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        renamed = message if self.in_place else message.model_copy()
        renamed.task_id = "renamed"
        return renamed


@pytest.mark.parametrize("in_place", [False, True])
async def test_a_record_that_is_written_late_names_a_message_as_its_hooks_did(
    in_place: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(Renaming(in_place=in_place))

    @worker.broker.task
    async def task() -> None:
        """Do nothing."""

    with caplog.at_level(logging.INFO):
        await worker.deliver(task)
    [record] = [each for each in caplog.records if each.msg.startswith("Executing")]
    assert record.getMessage() == f"Executing task {task.task_name} with ID renamed"


@pytest.mark.parametrize("hook", ["on_error", "post_execute", "post_save"])
async def test_a_raising_hook_is_named_in_the_log_and_the_rest_goes_on(
    hook: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    # Hooks run in reverse: this one is first, the recording one comes after it.
    worker.broker.add_middlewares(Raising(hook))

    result = await worker.deliver(failing_task(worker))

    assert result is not None
    assert isinstance(result.error, ValueError)
    assert worker.steps() == [
        "pre_execute",
        "task",
        "on_error",
        "post_execute",
        "save",
        "post_save",
        "ack",
    ]
    [line] = [line for line in complaints(caplog) if "hook" in line]
    assert hook in line
    assert "Raising" in line
    assert "task fail with ID id" in line


async def test_the_error_of_a_post_save_hook_is_raised_on_request() -> None:
    worker = Worker()
    worker.broker.add_middlewares(Raising("post_save"))
    data = worker.ackable(message_bytes(working_task(worker)))

    with pytest.raises(KeyError, match="broken post_save"):
        await worker.receiver.callback(data, raise_err=True)

    assert worker.steps() == ["pre_execute", "task", "post_execute", "save"]


@pytest.mark.parametrize("hook", ["on_error", "post_execute"])
async def test_only_errors_of_saving_are_raised_on_request(hook: str) -> None:
    worker = Worker()
    worker.broker.add_middlewares(Raising(hook))
    data = worker.ackable(message_bytes(failing_task(worker)))

    await worker.receiver.callback(data, raise_err=True)

    assert worker.steps()[-1] == "ack"


@pytest.mark.parametrize(
    "ack_type",
    [t for t in AcknowledgeType if t is not AcknowledgeType.MANUAL],
)
async def test_an_ack_that_raises_is_logged_and_touches_nothing_else(
    ack_type: AcknowledgeType,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(ack_type=ack_type)
    data = message_bytes(working_task(worker))

    async def ack() -> None:
        worker.journal.append(("ack", "id"))
        raise ConnectionError("no broker")

    await worker.receiver.callback(AckableMessage(data=data, ack=ack))

    assert worker.steps() == ORDERS[ack_type]
    [line] = complaints(caplog)
    assert "task work with ID id" in line


# -- Through a subclass -----------------------------------------------------------


async def test_an_overridden_run_task_is_called_with_keywords() -> None:
    class Loud(Receiver):
        async def run_task(self, **given: Any) -> TaskiqResult[Any]:  # type: ignore[override] # keywords only
            calls.append(given)
            return await super().run_task(**given)

    calls: list[dict[str, Any]] = []
    worker = Worker()
    task = working_task(worker)

    await Loud(worker.broker, max_async_tasks=1).callback(message_bytes(task, 5))

    [call] = calls
    assert call["target"] is task.original_func
    assert call["message"].args == [5]
    assert call["ack_controller"] is not None
    assert worker.backend.results["id"].return_value == 5


# -- Neighbours -------------------------------------------------------------------


def unparsable(worker: Worker) -> bytes:
    return b"no message"


def of_unknown_task(worker: Worker) -> bytes:
    return message_bytes(failing_task(worker), task_id="bad").replace(b"fail", b"gone")


def of_failing_task(worker: Worker) -> bytes:
    return message_bytes(failing_task(worker), task_id="bad")


def with_too_many_arguments(worker: Worker) -> bytes:
    return message_bytes(failing_task(worker), 1, 2, 3, task_id="bad")


def with_bad_ack_label(worker: Worker) -> bytes:
    labels = {"ack_type": "sometimes"}
    return message_bytes(failing_task(worker), labels=labels, task_id="bad")


def with_bad_timeout(worker: Worker) -> bytes:
    labels = {"timeout": "soon"}
    return message_bytes(failing_task(worker), labels=labels, task_id="bad")


def that_cannot_be_saved(worker: Worker) -> bytes:
    worker.backend.failing.add("bad")
    return message_bytes(failing_task(worker, NotImplementedError()), task_id="bad")


def of_an_id_that_the_backend_refuses(worker: Worker) -> bytes:
    worker.backend.refused.add("bad")
    return message_bytes(working_task(worker), task_id="bad")


def of_an_id_that_no_backend_takes(worker: Worker) -> bytes:
    """It would be refused the next time, too, and run for ever."""
    worker.backend.refused.add("bad\0")
    return message_bytes(working_task(worker), task_id="bad\0")


def of_such_an_id_while_the_backend_is_away(worker: Worker) -> bytes:
    worker.backend.failing.add("bad\0")
    return message_bytes(working_task(worker), task_id="bad\0")


def that_cannot_be_acked(worker: Worker) -> bytes:
    worker.broker.failing_acks.add("bad")
    return message_bytes(failing_task(worker), task_id="bad")


NOTHING: Any = TaskiqDepends()


class UnknownToTheResolver:
    """A task with this dependency has no graph: nothing says what to inject."""

    def __init__(self, nothing=NOTHING) -> None:  # type: ignore[no-untyped-def] # untyped
        self.nothing = nothing


def of_a_task_that_cannot_be_prepared(worker: Worker) -> bytes:
    _ = worker.receiver  # it was built before that task was registered

    async def odd(
        dependency: Annotated[UnknownToTheResolver, TaskiqDepends()],
    ) -> None:
        raise NotImplementedError

    task = worker.broker.register_task(odd, task_name="odd")
    return message_bytes(task, task_id="bad")


def with_overrides_that_cannot_be_built(worker: Worker) -> bytes:
    def wanted() -> int:
        raise NotImplementedError

    async def overridden(value: int = TaskiqDepends(wanted)) -> None:
        raise NotImplementedError

    worker.broker.dependency_overrides = {wanted: UnknownToTheResolver}
    task = worker.broker.register_task(overridden, task_name="overridden")
    return message_bytes(task, task_id="bad")


#: A way to a bad message, how often it is saved and acknowledged, and the lines about
#: it at WARNING or above; of a server that is away for it, also that it is back.
BAD_MESSAGES = [
    (unparsable, 0, 1, 1),
    (of_unknown_task, 0, 1, 1),
    (of_failing_task, 1, 1, 1),
    (with_too_many_arguments, 1, 1, 1),
    (with_bad_ack_label, 1, 1, 1),
    (with_bad_timeout, 1, 1, 1),
    (that_cannot_be_saved, 0, 0, 3),
    (of_an_id_that_the_backend_refuses, 0, 0, 2),
    (of_an_id_that_no_backend_takes, 0, 1, 2),
    (of_such_an_id_while_the_backend_is_away, 0, 0, 2),
    (that_cannot_be_acked, 1, 0, 3),
    (of_a_task_that_cannot_be_prepared, 1, 1, 1),
    (with_overrides_that_cannot_be_built, 1, 1, 1),
]


@pytest.mark.parametrize(
    ("bad_message", "saved", "acked", "lines"),
    BAD_MESSAGES,
    ids=[make.__name__ for make, *_ in BAD_MESSAGES],
)
def test_a_bad_message_has_one_outcome_and_leaves_its_neighbours_alone(
    bad_message: Callable[[Worker], bytes],
    saved: int,
    acked: int,
    lines: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        worker = Worker(max_async_tasks=1)
        good = working_task(worker)
        bad = bad_message(worker)
        broker = worker.broker
        for task_id, data in (
            ("before", message_bytes(good, 1, task_id="before")),
            ("bad", bad),
            ("after", message_bytes(good, 2, task_id="after")),
        ):
            await broker.kick(
                BrokerMessage(
                    task_id=task_id,
                    task_name="any",
                    message=data,
                    labels={},
                ),
            )
        broker.end()

        await worker.receiver.listen(asyncio.Event())

        for task_id, value in (("before", 1), ("after", 2)):
            assert worker.backend.results[task_id].return_value == value
            assert worker.backend.saved.count(task_id) == 1
            assert broker.acked.count(task_id) == 1
        assert worker.backend.saved.count("bad") == saved
        assert broker.acked.count("bad") == acked
        if saved:
            assert worker.backend.results["bad"].is_err
        assert len(complaints(caplog)) == lines
        name = "no message" if bad_message is unparsable else "ID bad"
        assert all(name in line or "is back" in line for line in complaints(caplog))

    run_virtual(main())
