from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskiq.labels import LabelType, prepare_label
from taskiq.message import BrokerMessage, TaskiqMessage


def message(
    labels: dict[str, Any] | None = None,
    labels_types: dict[str, int] | None = None,
) -> TaskiqMessage:
    return TaskiqMessage(
        task_id="id",
        task_name="pkg.mod:func",
        labels=labels if labels is not None else {},
        labels_types=labels_types,
        args=[],
        kwargs={},
    )


def test_the_order_of_the_fields_is_the_order_on_the_wire() -> None:
    assert list(TaskiqMessage.model_fields) == [
        "task_id",
        "task_name",
        "labels",
        "labels_types",
        "args",
        "kwargs",
    ]


def test_a_message_may_omit_its_label_types_and_have_unknown_keys() -> None:
    wire = message().model_dump()
    del wire["labels_types"]
    assert TaskiqMessage.model_validate(wire | {"later": 1}) == message()


@pytest.mark.parametrize("field", ["task_id", "task_name"])
def test_ids_and_names_must_be_text(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TaskiqMessage.model_validate(message().model_dump() | {field: 1})


def test_labels_get_the_types_they_were_sent_with() -> None:
    parsed = message({"prio": "3", "raw": "3"}, {"prio": 2, "no such label": 99})
    parsed.parse_labels()
    assert parsed.labels == {"prio": 3, "raw": "3"}
    assert parsed.labels_types == {"prio": 2, "no such label": 99}


def test_labels_of_a_message_without_types_stay_as_they_are() -> None:
    parsed = message({"prio": "3"})
    parsed.parse_labels()
    assert parsed.labels == {"prio": "3"}


def test_a_label_that_does_not_fit_its_type_makes_the_message_unparsable() -> None:
    with pytest.raises(ValueError, match="three"):
        message({"prio": "three"}, {"prio": LabelType.INT}).parse_labels()


@given(
    st.one_of(
        st.integers(),
        st.text(),
        st.floats(allow_nan=False),
        st.booleans(),
        st.binary(),
        st.none(),
    ),
)
def test_a_message_can_be_parsed_twice(value: Any) -> None:
    text, code = prepare_label(value)
    parsed = message({"label": text}, {"label": code})
    parsed.parse_labels()
    once = dict(parsed.labels)
    parsed.parse_labels()
    assert parsed.labels == once


def test_a_broker_message_has_labels_of_its_own() -> None:
    labels = {"prio": "3"}
    sent = BrokerMessage(task_id="id", task_name="f", message=b"{}", labels=labels)
    sent.labels["queue_name"] = "mail"
    assert labels == {"prio": "3"}
