"""What becomes of a message that failed: decisions over values, no I/O.

A task says it with `max_deliveries` and `on_failure`, a broker for all of its tasks
with `with_dead_letters`. What is decided here is carried out in
`taskiq.receiver.endings`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from taskiq.exceptions import TaskiqFailurePolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskiq.message import TaskiqMessage

__all__ = ["Action", "Ending", "FailurePolicy", "OnFailure", "Reason", "decide"]

OnFailure: TypeAlias = Literal["ack", "requeue", "dead_letter"]

#: The keywords of a decorator that are read here.
POLICY_ARGUMENTS: Final = ("max_deliveries", "on_failure")

#: How often a message was delivered before it was sent again in place of being given
#: back; the broker counts that one anew.
EARLIER_LABEL: Final = "X-Taskiq-deliveries"

#: Most seconds that a message may wait, 49 days. RabbitMQ takes no more: it closes the
#: channel, and with it whatever else the process sends.
MOST_DELAY: Final = 4_294_967

#: The attribute of a message that was sent again.
_SENT_AGAIN: Final = "__taskiq_sent_again"


class Reason(str, enum.Enum):
    """Why a message failed."""

    #: Its function failed, or a dependency or a hook before it did.
    ERROR = "error"
    #: The worker has no task of that name.
    UNKNOWN_TASK = "unknown_task"
    #: The formatter cannot read it.
    UNPARSABLE = "unparsable"
    #: It can be read, but a label has a value that is none.
    BAD_LABEL = "bad_label"
    #: It was delivered more often than `max_deliveries`.
    MAX_DELIVERIES = "max_deliveries"
    #: The task asked for it, with `Context.dead_letter`.
    REQUESTED = "requested"


class Action(str, enum.Enum):
    """What becomes of a message that failed."""

    #: It is done with: its error is its result.
    ACK = "acknowledged"
    #: A retry or a requeue has sent it again: it has not failed yet.
    SENT_AGAIN = "sent_again"
    #: The broker delivers it again: it has not failed yet.
    GIVE_BACK = "given_back"
    #: It is put aside, and acknowledged after that.
    DEAD_LETTER = "dead_lettered"


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What a task, or a broker for its tasks, says of messages that fail.

    :ivar max_deliveries: a message that is delivered more often is not run; `None` for
        no limit.
    :ivar on_failure: what becomes of one that failed; `None` is not said: the result
        has the error, and the message is acknowledged.
    """

    max_deliveries: int | None = None
    on_failure: OnFailure | None = None

    def or_else(self, default: FailurePolicy | None) -> FailurePolicy:
        """Fill in what is not said from the policy of the broker."""
        if default is None:
            return self
        return FailurePolicy(
            self.max_deliveries or default.max_deliveries,
            self.on_failure or default.on_failure,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a message that failed ends.

    :ivar action: what becomes of it.
    :ivar reason: why it failed.
    :ivar error: what it failed with.
    :ivar deliveries: how often it was delivered; `None` if that is not known.
    :ivar delay: seconds until it comes again, `None` for at once.
    """

    action: Action
    reason: Reason
    error: BaseException
    deliveries: int | None = None
    delay: float | None = None


def combined(
    own: FailurePolicy | None,
    default: FailurePolicy | None,
) -> FailurePolicy | None:
    """Give the policy that a message is under: the task's, then the broker's."""
    return default if own is None else own.or_else(default)


def for_refused(
    own: FailurePolicy | None,
    default: FailurePolicy | None,
) -> FailurePolicy | None:
    """Give the policy of a message that nobody can run.

    A broker with dead letters keeps it, whatever its tasks do when they fail.

    :param own: that of its task, if there is one.
    """
    if default is not None:
        default = FailurePolicy(default.max_deliveries, "dead_letter")
    return combined(own, default)


#: What running a message once more would not mend.
_FOR_GOOD: Final = frozenset(
    {Reason.UNKNOWN_TASK, Reason.UNPARSABLE, Reason.BAD_LABEL, Reason.MAX_DELIVERIES},
)


def decide(
    policy: FailurePolicy | None,
    reason: Reason,
    deliveries: int | None,
) -> Action:
    """Say what becomes of a message that failed and is not retried.

    :param policy: what it is under; `None` where nobody said anything.
    :param deliveries: how often it was delivered, this time included; `None`, if that
        is not known, counts as once.
    """
    if reason is Reason.REQUESTED:
        return Action.DEAD_LETTER
    if policy is None or policy.on_failure == "ack":
        return Action.ACK
    if reason is Reason.MAX_DELIVERIES or policy.on_failure == "dead_letter":
        return Action.DEAD_LETTER
    if policy.on_failure is None:
        return Action.ACK
    return (
        Action.DEAD_LETTER
        if reason in _FOR_GOOD or is_last(policy, deliveries)
        else Action.GIVE_BACK
    )


def is_last(policy: FailurePolicy, deliveries: int | None) -> bool:
    """Whether a message must not be delivered once more."""
    most = policy.max_deliveries
    return most is not None and (deliveries or 1) >= most


def is_over(most: int | None, deliveries: int | None) -> bool:
    """Whether a message was delivered too often to be run.

    :param most: `max_deliveries` of its policy.
    """
    return most is not None and deliveries is not None and deliveries > most


def count(told: int | None, labels: Mapping[str, Any]) -> int | None:
    """Count deliveries: what the broker says, and those before it was sent again.

    :param told: `None` where the broker does not know.
    :param labels: of the message; a count that is none is not counted.
    """
    try:
        earlier = max(int(labels.get(EARLIER_LABEL) or 0), 0)
    except (OverflowError, TypeError, ValueError):
        earlier = 0
    if told is None:
        return earlier + 1 if earlier else None
    return told + earlier


def mark_sent_again(message: TaskiqMessage) -> None:
    """Note that a message was sent again, by a retry or a requeue."""
    # The message forbids attributes that it does not declare.
    object.__setattr__(message, _SENT_AGAIN, True)


def is_sent_again(message: TaskiqMessage) -> bool:
    """Whether somebody has noted that this message was sent again."""
    return getattr(message, _SENT_AGAIN, False)


# -- Reading --------------------------------------------------------------------------


def split_policy(
    who: str,
    keywords: Mapping[str, Any],
) -> tuple[dict[str, Any], FailurePolicy | None]:
    """Tell the policy of a task from its other keywords.

    :param who: names what the keywords are of, for errors.
    :returns: the other keywords, and the policy, `None` where nothing was said.
    :raises TaskiqFailurePolicyError: naming the argument, its value and what is
        allowed.
    """
    rest = {name: each for name, each in keywords.items() if name not in _ARGUMENTS}
    most, how = (keywords.get(name) for name in POLICY_ARGUMENTS)
    return rest, read_policy(who, most, how)


_ARGUMENTS: Final = frozenset(POLICY_ARGUMENTS)


def read_policy(who: str, most: Any, how: Any) -> FailurePolicy | None:
    """Check a policy.

    :param most: `max_deliveries`.
    :param how: `on_failure`.
    :raises TaskiqFailurePolicyError: as `split_policy` does.
    """

    def error(argument: str, value: Any, allowed: str) -> TaskiqFailurePolicyError:
        return TaskiqFailurePolicyError(
            who=who, argument=argument, value=value, allowed=allowed
        )

    # A bool is an int to Python, but not a number of deliveries to anybody.
    is_count = isinstance(most, int) and not isinstance(most, bool) and most >= 1
    if most is not None and not is_count:
        raise error("max_deliveries", most, "it must be an int of at least 1")
    if how is not None and how not in get_args(OnFailure):
        allowed = ", ".join(map(repr, get_args(OnFailure)))
        raise error("on_failure", how, f"it must be one of {allowed}")
    if how == "requeue" and most is None:
        allowed = "it needs max_deliveries=, or what always fails would run for ever"
        raise error("on_failure", how, allowed)
    return None if most is None and how is None else FailurePolicy(most, how)


def read_delay(delay: Any) -> float | None:
    """Check how many seconds a message is given back for.

    :raises ValueError: if that is no number from 0 to `MOST_DELAY`.
    """
    if delay is None:
        return None
    is_number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
    if not is_number or not 0 <= delay <= MOST_DELAY:
        allowed = f"a number of seconds, 0 or more and at most {MOST_DELAY}"
        raise ValueError(f"delay must be {allowed}, got {delay!r}")
    return float(delay)
