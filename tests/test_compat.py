import uuid
from dataclasses import dataclass
from datetime import datetime

import pydantic
import pytest

from taskiq.compat import create_type_adapter, model_dump, model_validate, parse_obj_as
from taskiq.serializers.json_serializer import JSONSerializer


@dataclass
class Point:
    x: int


class Event(pydantic.BaseModel):
    id: uuid.UUID
    at: datetime


def test_objects_are_converted_in_lax_mode() -> None:
    assert parse_obj_as(int, "11") == 11
    assert parse_obj_as(Point, {"x": "1"}) == Point(x=1)


def test_an_impossible_conversion_is_a_value_error() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        parse_obj_as(int, "x")

    assert isinstance(caught.value, ValueError)


def test_the_adapter_of_an_annotation_is_made_once() -> None:
    assert create_type_adapter(Point) is create_type_adapter(Point)


def test_a_dumped_model_can_be_serialized_and_validated_again() -> None:
    event = Event(id=uuid.UUID(int=1), at=datetime(2020, 1, 1))
    serializer = JSONSerializer()

    data = serializer.loadb(serializer.dumpb(model_dump(event)))

    assert model_validate(Event, data) == event
