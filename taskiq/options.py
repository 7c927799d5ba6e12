"""The names that mean something in a decorator, and what was meant by one like them.

Every other keyword of a decorator is a label of one's own. So a mistyped option would
not be missed by anybody: the task would run without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskiq.batch import BATCH_ARGUMENTS
from taskiq.exceptions import TaskiqLabelError
from taskiq.policies import POLICY_ARGUMENTS
from taskiq.rates import RATE_ARGUMENTS
from taskiq.unique import UNIQUE_ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Labels that taskiq or one of its brokers reads.
_LABELS: Final = (
    "ack_type",
    "delay",
    "max_retries",
    "no_result_on_retry",
    "priority",
    "queue_name",
    "retry_on_error",
    "schedule",
    "timeout",
)
_NAMES: Final = (
    "batch",
    *POLICY_ARGUMENTS,
    *UNIQUE_ARGUMENTS,
    *RATE_ARGUMENTS,
    *_LABELS,
)
_OPTIONS: Final = (*BATCH_ARGUMENTS, *_NAMES)

#: So many first letters are right in what is taken for a typo, if a letter is another:
#: `match` is no `batch`. One is enough if it is left out, added or swapped.
_SAME_LETTERS: Final = 2


def check_labels(task_name: str, keywords: Mapping[str, Any]) -> None:
    """Refuse what is an option, or looks like one, and would do nothing.

    :param keywords: those of the decorator.
    :raises TaskiqLabelError: naming the keyword and what was probably meant.
    """
    for name in keywords:
        if name in _NAMES:
            continue
        is_batch_argument = name.startswith("batch_")
        if is_batch_argument and keywords.get("batch") is True:
            continue  # read, and checked, with the others
        nearest = nearest_option(name, _OPTIONS)
        if is_batch_argument:
            option = "" if nearest in {name, None} else f"{nearest}= and "
            advice = f"did you forget {option}batch=True?"
        elif nearest:
            advice = f"did you mean {nearest}=?"
        else:
            continue
        raise TaskiqLabelError(task_name=task_name, label=name, advice=advice)


def nearest_option(name: str, options: Iterable[str]) -> str | None:
    """Find the option that a name is, or is one edit away from."""
    for option in options:
        is_typo = is_one_edit_away(name, option) and _begins_alike(name, option)
        if name == option or is_typo:
            return option
    return None


def _begins_alike(name: str, option: str) -> bool:
    is_replaced = len(name) == len(option) and sorted(name) != sorted(option)
    letters = _SAME_LETTERS if is_replaced else 1
    return name[:letters] == option[:letters]


def is_one_edit_away(one: str, other: str) -> bool:
    """Whether a letter added, left out, replaced or swapped makes one of the other."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)
    if len(one) != len(other):
        short, long = sorted((one, other), key=len)
        return short[at:] == long[at + 1 :]
    is_swapped = one[at : at + 2] == other[at : at + 2][::-1]
    return one[at + 1 :] == other[at + 1 :] or (
        is_swapped and one[at + 2 :] == other[at + 2 :]
    )
