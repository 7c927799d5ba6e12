"""Libraries that are loaded only by the serializers that need them."""

from importlib import import_module
from types import ModuleType


def import_optional(library: str, extra: str) -> ModuleType:
    """Load an optional library.

    :param library: the name it is imported by.
    :param extra: the extra of taskiq that installs it.
    :returns: the loaded module.
    :raises ImportError: if it is not installed, saying how to change that.
    """
    try:
        return import_module(library)
    except ImportError as exc:
        raise ImportError(
            f"{library} is not installed, use: pip install taskiq[{extra}]",
        ) from exc
