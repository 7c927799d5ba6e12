"""Lifecycle events of a broker."""

import enum


@enum.unique
class TaskiqEvents(enum.Enum):
    """Moments of a broker's life that handlers can be attached to."""

    WORKER_STARTUP = "WORKER_STARTUP"
    WORKER_SHUTDOWN = "WORKER_SHUTDOWN"
    CLIENT_STARTUP = "CLIENT_STARTUP"
    CLIENT_SHUTDOWN = "CLIENT_SHUTDOWN"
