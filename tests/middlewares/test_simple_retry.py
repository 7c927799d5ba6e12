from __future__ import annotations

import logging
import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq import (
    Context,
    InMemoryBroker,
    NoResultError,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqResult,
)
from taskiq.middlewares import SimpleRetryMiddleware
from taskiq.middlewares._retry import attempt_of, exception_types
from tests.middlewares.rounds import RetryBroker

RETRY_LOGGER = "taskiq.retry_middleware"


def failed(**labels: Any) -> tuple[TaskiqMessage, TaskiqResult[Any]]:
    message = TaskiqMessage(
        task_id="id",
        task_name="task",
        labels=labels,
        args=[1],
        kwargs={},
    )
    error = ValueError("failed")
    result: TaskiqResult[Any] = TaskiqResult(
        is_err=True,
        return_value=None,
        execution_time=0,
        error=error,
    )
    return message, result


def always_failing(broker: RetryBroker, **labels: Any) -> Any:
    async def fail(value: int = 0) -> None:
        raise ValueError("failed")

    return broker.register_task(fail, "task", **labels)


async def test_a_failed_task_is_sent_again_under_its_id_with_its_arguments() -> None:
    broker = RetryBroker(SimpleRetryMiddleware())
    task = always_failing(broker, retry_on_error=True, color="red")

    await task.kicker().with_task_id("id").kiq(7)
    await broker.run_all()

    assert [message.task_id for message in broker.sent] == ["id"] * 3
    assert [message.args for message in broker.sent] == [[7]] * 3
    assert broker.sent_labels("color") == ["red"] * 3
    assert broker.sent_labels("_retries") == [None, "1", "2"]
    assert [m.labels_types or {} for m in broker.sent][-1]["_retries"] == 2


@given(limit=st.integers(-2, 6))
def test_max_retries_is_the_number_of_runs(limit: int) -> None:
    labels: dict[str, Any] = {"max_retries": limit}
    runs = 1
    while (attempt := attempt_of(labels, default_limit=99)).may_retry:
        labels["_retries"] = attempt.number
        runs += 1

    assert runs == max(limit, 1)


@pytest.mark.parametrize("as_label", [str, int])
async def test_numbers_and_booleans_of_labels_may_be_text(as_label: Any) -> None:
    broker = RetryBroker(SimpleRetryMiddleware())
    task = always_failing(broker)

    labels = {"retry_on_error": "True", "max_retries": as_label(4)}
    await task.kicker().with_labels(**labels, _retries=as_label(1)).kiq()

    assert await broker.run_all() == 3


@pytest.mark.parametrize(
    ("default", "label", "is_retried"),
    [
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (False, "tRuE", True),
        (False, 1, True),
        (False, "1", False),
        (True, False, False),
        (True, "false", False),
        (True, "", False),
    ],
)
def test_the_label_of_a_message_decides_before_the_default(
    default: bool,
    label: Any,
    is_retried: bool,
) -> None:
    message, _ = failed(**({} if label is None else {"retry_on_error": label}))

    middleware = SimpleRetryMiddleware(default_retry_label=default)

    assert middleware.is_retry_on_error(message) is is_retried


async def test_only_the_last_run_leaves_a_result() -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))
    runs: list[int] = []

    @broker.task
    async def third_time_lucky() -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("not yet")
        return "done"

    await third_time_lucky.kicker().with_task_id("id").kiq()
    await broker.run_all()

    assert broker.backend.saved == ["id"]
    assert broker.backend.results["id"].return_value == "done"
    assert broker.acked == ["id"] * 3


async def test_each_run_leaves_a_result_if_that_is_wanted() -> None:
    broker = RetryBroker(
        SimpleRetryMiddleware(default_retry_label=True, no_result_on_retry=False),
    )
    task = always_failing(broker)

    await task.kicker().with_task_id("id").kiq()
    await broker.run_all()

    assert broker.backend.saved == ["id"] * 3


async def test_at_the_limit_the_error_is_the_result_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_count=1))
    task = always_failing(broker, retry_on_error=True)

    await task.kicker().with_task_id("id").kiq()
    await broker.run_all()

    assert isinstance(broker.backend.results["id"].error, ValueError)
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert "with ID id: ValueError" in record.getMessage()
    assert record.getMessage().endswith(" (run 1 of 1, not sent again)")


async def test_a_failure_that_is_retried_is_one_warning_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_count=2))
    task = always_failing(broker, retry_on_error=True)

    await task.kiq()
    await broker.run_all()

    warning, error = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert warning.levelno == logging.WARNING
    assert not warning.exc_info
    assert warning.getMessage().endswith(" (run 1 of 2, sent again)")
    assert error.getMessage().endswith(" (run 2 of 2, not sent again)")


async def test_a_task_that_wants_no_result_is_not_retried() -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))

    @broker.task
    async def no_result() -> None:
        raise NoResultError

    await no_result.kiq()

    assert await broker.run_all() == 1


async def test_a_requeued_message_is_not_retried_too() -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))

    async def once_more(context: Annotated[Context, TaskiqDepends()]) -> None:
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()

    task: Any = broker.register_task(once_more)
    await task.kiq()

    assert await broker.run_all() == 2


@pytest.mark.parametrize(
    ("types", "runs"),
    [
        ((KeyError,), 1),
        ([KeyError, ValueError], 3),
        ((), 3),
        (ValueError, 3),
        (Exception, 3),
        (KeyError, 1),
    ],
)
async def test_only_exceptions_of_the_given_types_are_retried(
    types: Any,
    runs: int,
) -> None:
    of_middleware = RetryBroker(
        SimpleRetryMiddleware(default_retry_label=True, types_of_exceptions=types),
    )
    of_task = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))

    await always_failing(of_middleware).kiq()
    await always_failing(of_task, types_of_exceptions=types).kiq()

    assert await of_middleware.run_all() == runs
    assert await of_task.run_all() == runs


async def test_types_from_a_generator_hold_for_every_error() -> None:
    of_middleware = RetryBroker(
        SimpleRetryMiddleware(
            default_retry_label=True,
            types_of_exceptions=(each for each in [KeyError]),
        ),
    )
    of_task = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))

    task_1 = always_failing(of_middleware)
    task_2 = always_failing(of_task, types_of_exceptions=(each for each in [KeyError]))
    for _ in range(3):
        await task_1.kiq()
        await task_2.kiq()

    assert await of_middleware.run_all() == 3
    assert await of_task.run_all() == 3


async def test_the_types_of_the_task_go_before_those_of_the_middleware() -> None:
    broker = RetryBroker(
        SimpleRetryMiddleware(
            default_retry_label=True,
            types_of_exceptions=[KeyError],
        ),
    )
    task = always_failing(broker, types_of_exceptions=[ValueError])

    await task.kiq()

    assert await broker.run_all() == 3
    assert broker.sent_labels("types_of_exceptions") == [None] * 3


@pytest.mark.parametrize("types", [["ValueError"], [1], [ValueError()]])
def test_types_that_are_no_exception_classes_are_refused(types: Any) -> None:
    with pytest.raises(TypeError, match="SimpleRetryMiddleware must be exception"):
        SimpleRetryMiddleware(types_of_exceptions=types)


def test_nested_tuples_of_types_work_as_for_isinstance() -> None:
    types: Any = [(ValueError, KeyError), OSError]

    assert isinstance(KeyError(), exception_types(types, "task"))


async def test_a_retry_that_cannot_be_sent_leaves_the_error_as_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))
    task = always_failing(broker)
    await task.kicker().with_task_id("id").kiq()
    broker.unreachable.add("id")

    await broker.run_all()

    assert isinstance(broker.backend.results["id"].error, ValueError)
    assert broker.acked == ["id"]
    (record,) = [
        r
        for r in caplog.records
        if r.name == RETRY_LOGGER and r.levelno == logging.ERROR
    ]
    assert record.getMessage().startswith(
        "Cannot send retry 1 of task task with ID id (SendTaskError"
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


async def test_a_retry_that_cannot_be_sent_raises_nothing() -> None:
    broker = RetryBroker(middleware := SimpleRetryMiddleware())
    broker.unreachable.add("id")
    message, result = failed(retry_on_error=True)
    error = result.error
    assert error is not None

    await middleware.on_error(message, result, error)

    assert result.error is error


async def test_a_label_that_is_no_number_is_named_and_the_error_is_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))
    task = always_failing(broker, max_retries="many")
    await task.kicker().with_task_id("id").kiq()

    assert await broker.run_all() == 1
    assert isinstance(broker.backend.results["id"].error, ValueError)
    assert broker.acked == ["id"]
    assert "Label max_retries must be a number" in caplog.text


@pytest.mark.parametrize("asked_for", [10**9, str(10**30), 2**63])
def test_a_label_allows_a_thousand_runs_at_most(asked_for: Any) -> None:
    attempt = attempt_of({"max_retries": asked_for, "_retries": 999}, 3)
    assert (attempt.limit, attempt.may_retry) == (1000, False)


def test_who_runs_a_task_may_allow_more_runs_than_a_label() -> None:
    labels = {"max_retries": 5000}
    assert attempt_of(labels, default_limit=2000).limit == 2000
    assert attempt_of(labels, default_limit=3, own_limit=4000).limit == 4000
    assert attempt_of({"max_retries": 7}, 2000, own_limit=4000).limit == 7


async def test_a_message_cannot_make_itself_run_without_end() -> None:
    broker = RetryBroker(SimpleRetryMiddleware())
    labels = {"retry_on_error": True, "max_retries": 10**9}
    task = always_failing(broker)
    await task.kicker().with_labels(**labels).kiq()
    await broker.run_all()
    assert len(broker.sent) == 1000


async def test_a_task_may_be_retried_as_often_as_it_says_where_it_is_registered() -> (
    None
):
    broker = RetryBroker(SimpleRetryMiddleware())
    task = always_failing(broker, retry_on_error=True, max_retries=1100)
    await task.kiq()
    await broker.run_all()
    assert len(broker.sent) == 1100


@pytest.mark.parametrize("label", ["_retries", "max_retries"])
@pytest.mark.parametrize("value", [math.inf, math.nan, "inf", "many", [1]])
def test_a_count_that_is_no_whole_number_is_refused_by_name(
    label: str,
    value: Any,
) -> None:
    with pytest.raises(ValueError, match=f"Label {label} must be a number"):
        attempt_of({label: value}, 3)


@pytest.mark.parametrize("value", [-1, "-0.5", 10**30, "1e10", math.nan, "inf"])
async def test_a_delay_that_a_server_would_refuse_is_not_sent(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ closes the channel for it, and with it all other sending."""
    broker = RetryBroker(SimpleRetryMiddleware())
    labels = {"retry_on_error": True, "delay": value}
    await always_failing(broker).kicker().with_labels(**labels).kiq()
    await broker.run_all()
    assert len(broker.sent) == 1
    assert "Label delay must be a number of seconds from 0 to 4294967" in caplog.text


@pytest.mark.parametrize("value", [0, "1.5", 4_294_967, "soon", [1]])
def test_any_other_delay_is_left_to_the_broker(value: Any) -> None:
    assert attempt_of({"delay": value}, 3).may_retry


async def test_a_message_that_counts_less_than_no_retries_is_not_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = RetryBroker(SimpleRetryMiddleware())
    labels = {"retry_on_error": True, "_retries": -(10**9)}
    await always_failing(broker).kicker().with_labels(**labels).kiq()
    await broker.run_all()
    assert len(broker.sent) == 1
    assert "Label _retries must not be negative" in caplog.text


async def test_a_middleware_has_no_broker_before_it_is_given_one() -> None:
    middleware = SimpleRetryMiddleware()
    assert middleware.broker is None

    broker = RetryBroker(middleware)
    assert middleware.broker is broker


async def test_any_object_that_can_send_will_do_for_a_broker() -> None:
    real = RetryBroker()

    class Sender:
        middlewares: list[Any] = []  # noqa: RUF012 - a stand-in
        formatter = real.formatter
        id_generator = real.id_generator
        kick = real.kick
        result_backend = real.result_backend

        def find_task(self, name: str) -> None:
            return None

    middleware = SimpleRetryMiddleware()
    middleware.set_broker(Sender())  # type: ignore[arg-type]
    message, result = failed(retry_on_error=True)

    await middleware.on_error(message, result, ValueError())

    assert [sent.task_id for sent in real.sent] == ["id"]
    assert isinstance(result.error, NoResultError)
    assert message.labels["_retries"] == 1


async def test_a_batch_sends_again_exactly_its_failed_messages() -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))
    calls: list[list[int]] = []

    @broker.task(batch=True, batch_size=4, batch_timeout=0)
    async def odd_ones_fail(items: list[int]) -> list[int | Exception]:
        calls.append(sorted(items))
        return [ValueError(item) if item % 2 else item for item in items]

    for item in range(4):
        await odd_ones_fail.kicker().with_task_id(f"id{item}").kiq(item)
    await odd_ones_fail.kicker().with_task_id("last").with_labels(_retries=2).kiq(5)
    await broker.run_all()

    again = [(m.task_id, m.args, m.labels["_retries"]) for m in broker.sent[5:]]
    assert again == [
        ("id1", [1], "1"),
        ("id3", [3], "1"),
        ("id1", [1], "2"),
        ("id3", [3], "2"),
    ]
    assert calls == [[0, 1, 2, 3], [5], [1, 3], [1, 3]]
    results = broker.backend.results
    assert [results[f"id{item}"].return_value for item in (0, 2)] == [0, 2]
    assert [str(results[i].error) for i in ("id1", "id3", "last")] == ["1", "3", "5"]
    assert sorted(broker.backend.saved) == ["id0", "id1", "id2", "id3", "last"]


async def test_a_retry_that_cannot_be_sent_harms_no_other_of_its_batch() -> None:
    broker = RetryBroker(SimpleRetryMiddleware(default_retry_label=True))

    @broker.task(batch=True, batch_size=3, batch_timeout=0)
    async def fail(items: list[int]) -> None:
        raise ValueError("all of them")

    for item in range(3):
        await fail.kicker().with_task_id(f"id{item}").kiq(item)
    broker.unreachable.add("id1")
    await broker.run_all()

    assert [message.task_id for message in broker.sent[3:]] == ["id0", "id2"] * 2
    assert broker.backend.saved[0] == "id1"
    assert sorted(broker.backend.saved) == ["id0", "id1", "id2"]


async def test_a_task_that_runs_in_place_is_retried_before_kiq_returns() -> None:
    broker = InMemoryBroker(await_inplace=True)
    broker.with_middlewares(SimpleRetryMiddleware(default_retry_label=True))
    runs: list[int] = []

    @broker.task
    async def second_time_lucky() -> int:
        runs.append(1)
        return 1 // (len(runs) - 1)

    handle = await second_time_lucky.kiq()

    assert (await handle.get_result()).return_value == 1
    await broker.shutdown()
