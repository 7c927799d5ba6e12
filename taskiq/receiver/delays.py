"""Whether a broker keeps a message for a time that is sent with the label `delay`.

The label is a convention: those who do not know it deliver the message at once, and
one refuses it. Nothing of a plugin is imported to tell them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskiq.capabilities import resolve

if TYPE_CHECKING:
    from taskiq.abc.broker import AsyncBroker

_OF_REDIS: Final = "the broker of Redis streams of taskiq.adapters.redis does"
_OF_NATS: Final = "the brokers of JetStream do"
#: What keeps messages in place of those who do not, by where their `kick` is defined.
_BETTER: Final = {
    "taskiq_redis": _OF_REDIS,
    "taskiq.adapters.redis": _OF_REDIS,
    "taskiq_nats": _OF_NATS,
    "taskiq.adapters.nats": _OF_NATS,
}


def advice_on_delay(broker: AsyncBroker) -> str | None:
    """Say what to do so that messages that are sent with a delay wait for it.

    :returns: `None` if they do, or if that is not known: a class that sends in a way of
        its own may read the label.
    """
    kind = next(each for each in type(broker).__mro__ if "kick" in vars(each))
    module = kind.__module__
    plugin = module.partition(".")[0]
    if plugin == "taskiq_aio_pika":
        settings: Any = vars(broker)
        waits = settings.get("_delay_queue") or settings.get(
            "_delayed_message_exchange_plugin"
        )
        return None if waits else "give it a delay_queue"
    better = _BETTER.get(module) or _BETTER.get(plugin)
    if better is not None and resolve(broker).delayed_nack:
        return "it does so only before a message is acknowledged"
    return better
