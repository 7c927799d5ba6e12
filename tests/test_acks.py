from collections.abc import Awaitable, Callable

import pytest
from pydantic import ValidationError

from taskiq.acks import (
    AckableMessage,
    AckController,
    AcknowledgeType,
    parse_acknowledge_type,
)


class Acknowledgements:
    """Counts them; sync or async, as brokers have both."""

    def __init__(self) -> None:
        self.count = 0

    def sync(self) -> None:
        self.count += 1

    async def asynchronous(self) -> None:
        self.count += 1


@pytest.mark.parametrize("member", list(AcknowledgeType))
def test_an_acknowledge_type_is_read_from_its_value_in_any_case(
    member: AcknowledgeType,
) -> None:
    assert parse_acknowledge_type(member) is member
    assert parse_acknowledge_type(member.value) is member
    assert parse_acknowledge_type(member.value.upper()) is member


@pytest.mark.parametrize("member", list(AcknowledgeType))
def test_an_acknowledge_type_that_travelled_as_its_name_is_understood(
    member: AcknowledgeType,
) -> None:
    assert parse_acknowledge_type(f"AcknowledgeType.{member.name}") is member


def test_an_unknown_acknowledge_type_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"^Unknown acknowledge type value.*whenever.*when_saved, manual",
    ) as caught:
        parse_acknowledge_type("whenever")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("value", [None, 1, b"manual"])
def test_an_acknowledge_type_of_another_kind_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Unsupported acknowledge type"):
        parse_acknowledge_type(value)


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
async def test_a_message_is_acknowledged_once(kind: str) -> None:
    done = Acknowledgements()
    controller = AckController(getattr(done, kind))
    assert controller.is_ackable
    assert not controller.is_acked

    await controller.ack()
    await controller.ack()
    assert controller.is_acked
    assert done.count == 1


async def test_a_failed_acknowledgement_leaves_the_message_unacknowledged() -> None:
    failures = [OSError("connection lost")]

    def ack() -> None:
        if failures:
            raise failures.pop()

    controller = AckController(ack)
    with pytest.raises(OSError, match="connection lost"):
        await controller.ack()
    assert not controller.is_acked

    await controller.ack()
    assert controller.is_acked


async def test_a_message_without_acknowledgement_cannot_be_acknowledged() -> None:
    controller = AckController(None)
    assert not controller.is_ackable
    with pytest.raises(RuntimeError, match="Current message is not ackable"):
        await controller.ack()
    assert not controller.is_acked


@pytest.mark.parametrize("data", [b"x", "x", bytearray(b"x")])
def test_an_ackable_message_holds_bytes(data: object) -> None:
    def ack() -> Awaitable[None] | None:
        return None

    message = AckableMessage.model_validate({"data": data, "ack": ack})
    assert message.data == b"x"
    assert message.ack is ack


@pytest.mark.parametrize("missing", ["data", "ack"])
def test_an_ackable_message_needs_its_data_and_a_callable(missing: str) -> None:
    fields: dict[str, bytes | Callable[[], None]] = {"data": b"", "ack": lambda: None}
    del fields[missing]
    with pytest.raises(ValidationError, match=missing):
        AckableMessage.model_validate(fields)
    with pytest.raises(ValidationError, match="callable"):
        AckableMessage.model_validate({"data": b"", "ack": 3})
