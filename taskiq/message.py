"""The message in its two forms: as the library sees it and as a broker sees it."""

from typing import Any

from pydantic import BaseModel

from taskiq.labels import LabelType, parse_label


class TaskiqMessage(BaseModel):
    """One call of a task; the order of the fields is their order on the wire."""

    task_id: str
    task_name: str
    labels: dict[str, Any]
    #: Codes of `LabelType`; a label without one is taken as it came.
    labels_types: dict[str, int] | None = None
    args: list[Any]
    kwargs: dict[str, Any]

    def parse_labels(self) -> None:
        """Replace the text of the labels by the values it was made from, in place.

        A message can be parsed again without harm.

        :raises ValueError: if a label does not fit its type or the type is unknown.
        """
        if not self.labels_types:
            return
        for name, code in self.labels_types.items():
            if name not in self.labels:
                continue
            value = self.labels[name]
            # Parsed before: decoding the bytes once more would corrupt them.
            if code == LabelType.BYTES and isinstance(value, bytes):
                continue
            self.labels[name] = parse_label(value, code)


class BrokerMessage(BaseModel):
    """What a broker sends: the serialised message and what is needed to route it."""

    task_id: str
    task_name: str
    #: The complete serialised `TaskiqMessage`.
    message: bytes
    labels: dict[str, Any]
