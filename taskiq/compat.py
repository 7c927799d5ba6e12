"""Pydantic helpers that plugins and applications import from here."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pydantic

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")
_Model = TypeVar("_Model", bound=pydantic.BaseModel)


@lru_cache
def create_type_adapter(annot: type[T]) -> pydantic.TypeAdapter[T]:
    """Return the adapter that validates an annotation, which must be hashable."""
    return pydantic.TypeAdapter(annot)


def parse_obj_as(annot: type[T], obj: Any) -> T:
    """Return the object as the annotated type, converted in lax mode.

    Raises `pydantic.ValidationError`, a `ValueError`, where that is impossible.
    """
    adapter: pydantic.TypeAdapter[T] = create_type_adapter(cast("Hashable", annot))
    return adapter.validate_python(obj)


def model_dump(instance: pydantic.BaseModel) -> dict[str, Any]:
    """Return a model as a dict that every serializer can dump."""
    return instance.model_dump(mode="json")


def model_validate(model_class: type[_Model], message: dict[str, Any]) -> _Model:
    """Return the model that `model_dump` made the dict from.

    Raises `pydantic.ValidationError` for a dict of another shape.
    """
    return model_class.model_validate(message)
