import json
import pickle

import pytest

from taskiq import exceptions as exc
from taskiq.error import Error
from taskiq.serialization import exception_to_python, prepare_exception

TABLE: list[tuple[type[Error], type[Error], str]] = [
    (exc.TaskiqError, Error, "Exception occurred"),
    (
        exc.TaskiqResultTimeoutError,
        exc.TaskiqError,
        "Waiting for task results has timed out, timeout={timeout}",
    ),
    (exc.BrokerError, exc.TaskiqError, "Base exception for all broker errors"),
    (exc.ListenError, exc.TaskiqError, "Exception occurred"),
    (exc.SharedBrokerListenError, exc.ListenError, "Shared broker cannot listen"),
    (exc.SendTaskError, exc.BrokerError, "Cannot send task to the queue"),
    (
        exc.SharedBrokerSendTaskError,
        exc.SendTaskError,
        "You cannot use kiq directly on shared task "
        "without setting the default_broker.",
    ),
    (
        exc.UnknownTaskError,
        exc.SendTaskError,
        "Cannot send unknown task to the queue, task name - {task_name}",
    ),
    (
        exc.ResultBackendError,
        exc.TaskiqError,
        "Base exception for all result backend errors",
    ),
    (exc.ResultGetError, exc.ResultBackendError, "Cannot get result for the task"),
    (exc.ResultSetError, exc.ResultBackendError, "Cannot set result for the task"),
    (
        exc.ResultIsReadyError,
        exc.ResultBackendError,
        "Cannot find out if the task is ready",
    ),
    (
        exc.SecurityError,
        exc.TaskiqError,
        "Security exception occurred: {description}",
    ),
    (exc.NoResultError, exc.TaskiqError, "User doesn't want to set result"),
    (exc.TaskRejectedError, exc.TaskiqError, "Task was rejected"),
    (
        exc.ScheduledTaskCancelledError,
        exc.TaskiqError,
        "Cannot send scheduled task to the queue.",
    ),
    (
        exc.TaskBrokerMismatchError,
        exc.TaskRejectedError,
        "Task already has a different broker ({broker})",
    ),
]

WITH_FIELDS: list[Error] = [
    exc.TaskiqResultTimeoutError(timeout=1.5),
    exc.UnknownTaskError(task_name="m:f"),
    exc.SecurityError(description="no"),
    exc.TaskBrokerMismatchError(broker="b"),
    exc.TaskiqBatchConfigError(
        task_name="m:f",
        argument="batch_size",
        value=0,
        allowed="it must be an int of at least 1",
    ),
    exc.TaskiqBatchResultError(task_name="m:f", expected=3, actual="a list of 2"),
    exc.TaskiqLabelError(task_name="m:f", label="timout", advice="timeout?"),
]
WITHOUT_FIELDS = [cls() for cls, _, template in TABLE if "{" not in template]


@pytest.mark.parametrize(("cls", "base", "template"), TABLE)
def test_the_exception_tree_is_the_one_of_0_13_0(
    cls: type[Error],
    base: type[Error],
    template: str,
) -> None:
    assert cls.__bases__ == (base,)
    assert cls.__template__ == template


def test_a_result_timeout_need_not_say_how_long() -> None:
    assert str(exc.TaskiqResultTimeoutError()).endswith("timeout=None")


def test_a_batch_config_error_says_what_is_wrong_and_what_is_allowed() -> None:
    error = exc.TaskiqBatchConfigError(
        task_name="m:f",
        argument="batch_size",
        value=True,
        allowed="it must be an int of at least 1",
    )

    assert str(error) == (
        "Cannot register batch task m:f: "
        "batch_size=True is not allowed: it must be an int of at least 1"
    )


def test_a_batch_result_error_says_what_was_expected_and_what_came() -> None:
    error = exc.TaskiqBatchResultError(
        task_name="m:f",
        expected=3,
        actual="a list of 2",
    )

    assert str(error) == (
        "Batch task m:f must return a list of 3 results, "
        "one per item in order; it returned a list of 2"
    )


@pytest.mark.parametrize("error", WITH_FIELDS + WITHOUT_FIELDS, ids=str)
def test_every_error_survives_json_as_its_class_with_its_fields(error: Error) -> None:
    prepared = prepare_exception(error, json)
    assert not isinstance(prepared, BaseException)

    restored = exception_to_python(json.loads(prepared.model_dump_json()))

    assert type(restored) is type(error)
    assert repr(restored) == repr(error)
    assert str(restored) == str(error)


@pytest.mark.parametrize("error", WITH_FIELDS + WITHOUT_FIELDS, ids=str)
def test_every_error_can_be_pickled(error: Error) -> None:
    loaded = pickle.loads(pickle.dumps(error))  # noqa: S301 - just dumped

    assert type(loaded) is type(error)
    assert repr(loaded) == repr(error)
    assert str(loaded) == str(error)
