"""What the tasks take, return and raise."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel


class Point(BaseModel):
    """A model; it has a default, so that casting shows."""

    x: int
    label: str = "unnamed"


@dataclass
class Box:
    """A dataclass with models inside."""

    width: int
    corners: list[Point]


class RefusedError(Exception):
    """An error of the application that both sides know."""


class CodedError(Exception):
    """An error that cannot be made from its own `args`."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        # Which taskiq 0.13.0 knows nothing of.
        self.code = code
        self.body = b"\xff"


def describe(value: object) -> str:
    """Tell a value and its type apart from all others, in any version of anything."""
    return f"{type(value).__name__}({value})"


def describe_error(error: BaseException | None) -> str | None:
    if error is None:
        return None
    return f"{type(error).__module__}.{type(error).__qualname__}{error.args!r}"


def describe_chain(error: BaseException | None) -> str | None:
    """Tell what an error was raised from, or else while handling what."""
    if error is None:
        return None
    if error.__cause__ is not None:
        return f"from {describe_error(error.__cause__)}"
    if error.__context__ is not None and not error.__suppress_context__:
        return f"while handling {describe_error(error.__context__)}"
    return None
