"""Unique tasks: what makes two messages the same work, and who holds the right to it.

Whoever sends a message of a unique task claims its key first, in a `UniqueStore`. While
a key is held, whoever sends the same is given a handle to the message that holds it.
The key is released with the outcome of that message: see
`taskiq.receiver.unique_keys`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from pydantic_core import to_jsonable_python

from taskiq.bulk import run_bounded
from taskiq.callables import is_coroutine_function
from taskiq.exceptions import TaskiqUniqueConfigError, UniqueKeyError
from taskiq.stores import offered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from taskiq.stores import Owner

__all__ = ["Claim", "InMemoryUniqueKeys", "Unique", "UniqueStore", "store_of"]

#: The keywords of a decorator that are read here.
UNIQUE_ARGUMENTS: Final = ("unique", "unique_ttl")

#: What a message carries that holds a key.
UNIQUE_LABEL: Final = "X-Taskiq-unique"

#: Seconds that a key is held at most, unless the task says otherwise: an hour.
HOLD_SECONDS: Final = 3600.0

_CLAIMS_AT_ONCE: Final = 100
_BY_POSITION: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Claim(NamedTuple):
    """What is asked of a store.

    :ivar key: of the task and what is the same about its arguments.
    :ivar token: of the message that is to hold it, and of no other.
    :ivar ttl: seconds after which the key is free, whatever became of the message.
    """

    key: str
    token: str
    ttl: float


class UniqueStore(ABC):
    """Where keys are held, for all processes that send and run messages."""

    @abstractmethod
    async def claim(self, claim: Claim) -> str:
        """Take a key if nobody holds it; to be one step for whoever looks on.

        :returns: the token of who holds it now: the own one if it was taken, or held
            already. A claim may come twice, from a client that lost the answer.
        """

    async def claim_many(self, claims: Sequence[Claim]) -> Sequence[str | Exception]:
        """Take many keys, all different ones.

        :returns: for each claim, in order, what `claim` gives or raises.
        """
        return await run_bounded(self.claim, claims, _CLAIMS_AT_ONCE)

    @abstractmethod
    async def release(self, key: str, token: str) -> None:
        """Let go of a key if it is held under this token; else do nothing."""

    @abstractmethod
    async def renew(self, claim: Claim) -> None:
        """Hold a key for `ttl` from now on if it is held under this token.

        Else do nothing: to take it would be wrong, it may have been released.
        """


class InMemoryUniqueKeys(UniqueStore):
    """Holds keys in this process, for each of its threads and event loops.

    :param clock: gives the time in seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By key: the token, and when the key is free.
        self._held: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    async def claim(self, claim: Claim) -> str:
        """Take a key if nobody holds it."""
        now = self._clock()
        with self._lock:
            token, ends = self._held.get(claim.key, ("", -math.inf))
            if ends > now:
                return token
            self._held[claim.key] = (claim.token, now + claim.ttl)
            return claim.token

    async def claim_many(self, claims: Sequence[Claim]) -> Sequence[str | Exception]:
        """Take many keys."""
        return [await self.claim(claim) for claim in claims]

    async def release(self, key: str, token: str) -> None:
        """Let go of a key if it is held under this token."""
        with self._lock:
            if self._held.get(key, ("", 0.0))[0] == token:
                del self._held[key]

    async def renew(self, claim: Claim) -> None:
        """Hold a key on if it is held under this token."""
        with self._lock:
            if self._held.get(claim.key, ("", 0.0))[0] == claim.token:
                self._held[claim.key] = (claim.token, self._clock() + claim.ttl)


def store_of(broker: Owner) -> UniqueStore | None:
    """Give the store of a broker: its own, or that of its result backend."""
    for store in offered(broker, "unique_store"):
        if isinstance(store, UniqueStore):
            return store
    return None


# -- Tokens ---------------------------------------------------------------------------


def token_of(task_id: str, nonce: str) -> str:
    """Make the token of a message.

    :param nonce: tells messages under one id from each other; nothing for an id that
        no other message has.
    """
    return f"{nonce}:{task_id}"


def split_token(token: str) -> tuple[str, str]:
    """Give the id and the nonce that a token was made of."""
    nonce, _, task_id = token.partition(":")
    return task_id, nonce


def label_of(key: str, nonce: str) -> str:
    """Make the label of a message that holds a key."""
    return f"{nonce}:{key}"


def held_by(task_id: str, labels: Mapping[str, Any]) -> tuple[str, str] | None:
    """Give the key that a message holds, and its token; `None` if it holds none."""
    label = labels.get(UNIQUE_LABEL)
    if label is None:
        return None
    nonce, _, key = str(label).partition(":")
    return key, token_of(task_id, nonce)


# -- What is the same -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Unique:
    """What a task says of messages that are the same work.

    :ivar ttl: seconds that a key is held at most.
    :ivar function: gives what two calls with the same work have in common, of the
        arguments as they are sent; `None` for all of the arguments.
    :ivar names: the parameters that may be given by position: it makes no difference
        whether they are.
    """

    ttl: float = HOLD_SECONDS
    function: Callable[..., Any] | None = None
    names: tuple[str, ...] = ()

    def key(self, task_name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Make the key of a message.

        :raises UniqueKeyError: when there is none to be made of these arguments.
        """
        try:
            text = _as_text(self._same(args, kwargs))
        except Exception as exc:
            raise UniqueKeyError(task_name=task_name, reason=repr(exc)) from exc
        return f"{task_name}:{hashlib.sha256(text.encode()).hexdigest()}"

    def _same(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.function is not None:
            value = self.function(*args, **kwargs)
            if value is None:
                raise TypeError("the key function returned None")
            return value
        named = dict(zip(self.names, args, strict=False))
        if named.keys() & kwargs.keys():
            return [list(args), kwargs]  # the worker will say what is wrong with it
        return [list(args[len(named) :]), {**named, **kwargs}]


def _as_text(value: Any) -> str:
    """Write a value as JSON, the same in every process.

    :raises Exception: when it cannot be written.
    """
    return json.dumps(
        _ordered(value), sort_keys=True, separators=(",", ":"), default=_as_json
    )


def _ordered(value: Any) -> Any:
    """Make of what a value consists of something that has an order.

    A set gives its members in any. Keys of dicts have one as the text that is sent of
    them: numbers and text, for instance, do not compare.
    """
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
        return {_name(key): _ordered(each) for key, each in pairs.items()}
    if isinstance(value, (list, tuple)):
        members = cast("Sequence[Any]", value)
        return [_ordered(each) for each in members]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_as_text, cast("frozenset[Any]", value)))
    return value


def _name(key: Any) -> str:
    """Give the key of a dict as it is sent."""
    if isinstance(key, str):
        return key
    [name] = to_jsonable_python({key: None})
    return str(name)


def _as_json(value: Any) -> Any:
    return to_jsonable_python(value, bytes_mode="base64")


# -- Reading --------------------------------------------------------------------------


def split_unique(
    task_name: str,
    keywords: Mapping[str, Any],
    function: Callable[..., Any],
    former: Unique | None,
) -> tuple[dict[str, Any], Unique | None]:
    """Tell from the other keywords of a task whether it is unique.

    :param former: what it said before, where it is registered again.
    :returns: the other keywords, and what it says.
    :raises TaskiqUniqueConfigError: naming the argument, its value and what is allowed.
    """
    rest = {name: each for name, each in keywords.items() if name not in _ARGUMENTS}
    unique, ttl = (keywords.get(name) for name in UNIQUE_ARGUMENTS)

    def error(argument: str, value: Any, allowed: str) -> TaskiqUniqueConfigError:
        return TaskiqUniqueConfigError(
            task_name=task_name, argument=argument, value=value, allowed=allowed
        )

    if unique is not None and not isinstance(unique, bool) and not _can_be_key(unique):
        allowed = "it must be True, False or a function that is not async"
        raise error("unique", unique, allowed)
    if ttl is not None and not _is_duration(ttl):
        raise error("unique_ttl", ttl, "it must be a finite number of seconds over 0")
    if unique is False or (unique is None and former is None):
        if ttl is not None:
            raise error("unique_ttl", ttl, "it needs unique=")
        return rest, None
    read = former
    if read is None or unique is not None:
        own = None if unique is True else unique
        held = HOLD_SECONDS if former is None else former.ttl
        read = Unique(held, own, _names_by_position(function))
    return rest, read if ttl is None else dataclasses.replace(read, ttl=float(ttl))


_ARGUMENTS: Final = frozenset(UNIQUE_ARGUMENTS)


def _can_be_key(value: Any) -> bool:
    return callable(value) and not is_coroutine_function(value)


def _is_duration(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _names_by_position(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function that is not written in Python
        return ()
    return tuple(each.name for each in parameters if each.kind in _BY_POSITION)
