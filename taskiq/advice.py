"""Settings of a broker that do not go with its tasks, told before anything runs.

What a broker is set to is read off its attributes, which are those of its plugin; no
plugin is imported and no server is asked. What to say of it is decided by
:func:`advise`, a function of values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from taskiq.capabilities import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskiq.abc.broker import AsyncBroker
    from taskiq.batch import BatchConfig

__all__ = ["BrokerSettings", "advise", "batch_configs", "settings_of"]

#: Unacknowledged messages of a JetStream consumer that does not say how many.
_JETSTREAM_DEFAULT: Final = 1000
#: Whose classes have the names of the plugin's.
_ADAPTER: Final = "taskiq.adapters.redis"
#: Seconds below which messages get lost between a request of nats-py that ends and the
#: next one, and come again after `ack_wait` only.
_SHORTEST_PULL: Final = 0.5
#: Seconds to advise for it: there and back on any network, and soon over at a stop.
_GOOD_PULL: Final = 5


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What a broker was set to, `None` for what is not known or does not exist.

    :ivar limit: unacknowledged messages that it hands out at most.
    :ivar limit_name: what its plugin calls this limit.
    :ivar is_shared: whether the limit is for all processes together.
    :ivar pull_batch: messages that one request asks for.
    :ivar pull_timeout: seconds such a request waits for all of them.
    :ivar lease: seconds until what is unacknowledged is delivered again, where no
        worker renews it.
    :ivar lease_name: what its plugin calls this time, with its unit.
    :ivar read: seconds that one read waits for a message, `math.inf` for ever.
    :ivar read_name: what its plugin calls this time, with its unit, if it can be set.
    :ivar read_timeout: seconds after which its client gives up a read.
    """

    limit: int | None = None
    limit_name: str = "its limit"
    is_shared: bool = False
    pull_batch: int | None = None
    pull_timeout: float | None = None
    lease: float | None = None
    lease_name: str = "its redelivery time"
    read: float | None = None
    read_name: str | None = None
    read_timeout: float | None = None


def settings_of(broker: AsyncBroker) -> BrokerSettings:
    """Read what a broker was set to, as far as its plugin is known."""
    names = {kind.__name__ for kind in type(broker).__mro__}
    if "PullBasedJetStreamBroker" in names:
        return _of_jetstream(
            broker,
            pull_batch=_positive(getattr(broker, "pull_consume_batch", None)),
            pull_timeout=getattr(broker, "pull_consume_timeout", None),
        )
    if "PushBasedJetStreamBroker" in names:
        return _of_jetstream(broker)
    if (qos := _positive(getattr(broker, "_qos", None))) is not None:
        return BrokerSettings(limit=qos, limit_name="qos")
    if any(kind.__module__ == _ADAPTER for kind in type(broker).__mro__):
        return BrokerSettings()  # it renews leases, and ends reads in time
    if any(name.startswith(("RedisStream", "ListQueue")) for name in names):
        return _of_redis(broker)
    return BrokerSettings()


def _of_redis(broker: AsyncBroker) -> BrokerSettings:
    settings = BrokerSettings(read=math.inf, read_timeout=_redis_timeout(broker))
    if (block := getattr(broker, "block", None)) is not None:
        name = "xread_block (in milliseconds)"
        settings = replace(settings, read=block / 1000 or math.inf, read_name=name)
    idle = _positive(getattr(broker, "idle_timeout", None))
    if idle is not None and resolve(broker).extend is None:
        name = "idle_timeout (in milliseconds)"
        settings = replace(settings, lease=idle / 1000, lease_name=name)
    return settings


def _redis_timeout(broker: AsyncBroker) -> float | None:
    """Ask a connection that is not made: it knows the default of its client, too."""
    pool = getattr(broker, "connection_pool", None)
    if pool is None and (sentinel := getattr(broker, "sentinel", None)) is not None:
        pool = sentinel.master_for("any").connection_pool
    make: Any = getattr(pool, "make_connection", None)
    timeout = None if make is None else getattr(make(), "socket_timeout", None)
    return timeout if isinstance(timeout, (int, float)) else None


def _of_jetstream(broker: AsyncBroker, **pull: Any) -> BrokerSettings:
    config = getattr(broker, "consumer_config", None)
    limit = getattr(config, "max_ack_pending", None)
    return BrokerSettings(
        # Less than one is no limit there.
        limit=_JETSTREAM_DEFAULT if limit is None else _positive(limit),
        limit_name="max_ack_pending",
        is_shared=True,
        **pull,
    )


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def batch_configs(broker: AsyncBroker) -> dict[str, BatchConfig]:
    """Give the settings of the batch tasks of a broker, by name."""
    tasks = broker.get_all_tasks().items()
    return {name: task.batch for name, task in tasks if task.batch is not None}


def advise(settings: BrokerSettings, tasks: Mapping[str, BatchConfig]) -> list[str]:
    """Say what does not go together, and what to set instead.

    :param settings: what the broker was set to.
    :param tasks: the batch tasks by name; other tasks have nothing to be set.
    :returns: a sentence or more for each, for people.
    """
    return [
        *_of_requests(settings),
        *_of_limit(settings, tasks),
        *_of_lease(settings, tasks),
        *_of_reads(settings),
    ]


def _of_limit(settings: BrokerSettings, tasks: Mapping[str, BatchConfig]) -> list[str]:
    limit, name = settings.limit, settings.limit_name
    if limit is None:
        return []
    enough = sum(config.max_buffered for config in tasks.values())
    each = " for each process" if settings.is_shared else ""
    too_large = {name: config.size for name, config in tasks.items()}
    too_large = {task: size for task, size in too_large.items() if size > limit}
    told = [
        f"Task {task}: batch_size={size}, but the broker hands out at most "
        f"{name}={limit} unacknowledged messages: no batch fills. Set {name}={enough}"
        f"{each}, what batch tasks may hold, or at least {size}."
        for task, size in too_large.items()
    ]
    needed = sum(config.size for config in tasks.values())
    if not too_large and needed > limit:
        told.append(
            f"Tasks {', '.join(tasks)}: their batches together take {needed} messages, "
            f"but the broker hands out at most {name}={limit} unacknowledged ones: "
            f"not all of them can fill at once. Set {name}={enough}{each}, what batch "
            f"tasks may hold, or at least {needed}.",
        )
    return told


def _of_requests(settings: BrokerSettings) -> list[str]:
    batch, timeout = settings.pull_batch, settings.pull_timeout
    if batch is None or batch == 1:
        return []
    told: list[str] = []
    if timeout is None:
        told.append(
            f"pull_consume_batch={batch} without pull_consume_timeout: once the "
            f"stream is empty nothing runs until {batch} messages have come. Set "
            f"pull_consume_timeout={_GOOD_PULL} "
            "(seconds); what comes is then run at once.",
        )
    elif timeout < _SHORTEST_PULL:
        told.append(
            f"pull_consume_timeout={timeout:g} s is so short that messages arrive when "
            "nobody waits for them, and come again after ack_wait only. Set "
            f"pull_consume_timeout={_GOOD_PULL}; what is there is run at once all the "
            "same.",
        )
    if settings.limit is not None and batch > settings.limit:
        told.append(
            f"pull_consume_batch={batch}, but the broker hands out at most "
            f"{settings.limit_name}={settings.limit} unacknowledged messages: each "
            "request waits out its timeout. Set pull_consume_batch to at most "
            f"{settings.limit}.",
        )
    return told


def _of_lease(settings: BrokerSettings, tasks: Mapping[str, BatchConfig]) -> list[str]:
    lease = settings.lease
    if lease is None:
        return []
    return [
        f"Task {task}: a message may wait batch_timeout={config.timeout:g} s for its "
        f"batch, but the broker delivers it again after {lease:g} s: it would run "
        f"twice. Raise {settings.lease_name} well above batch_timeout and the time of "
        "a call."
        for task, config in tasks.items()
        if config.timeout >= lease
    ]


def _of_reads(settings: BrokerSettings) -> list[str]:
    read, timeout, name = settings.read, settings.read_timeout, settings.read_name
    if read is None or timeout is None or read < timeout:
        return []
    what = "waits for a message" if read == math.inf else f"waits {read:g} s for one"
    mend = f", or {name} below {timeout * 1000:g}" if name else ""
    return [
        f"A read {what}, but the client gives it up after socket_timeout={timeout:g} "
        "s: whenever nothing comes for that long, all connections of the broker are "
        "replaced, and sending through it can fail meanwhile. Set "
        f"socket_timeout=None{mend}.",
    ]
