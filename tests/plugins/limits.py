"""What the tasks of `capacity_app` are allowed to hold."""

from __future__ import annotations

#: Most messages of the task `flood` that wait or run in a worker.
MOST_BUFFERED = 1000
#: The same of `block`.
FEW_BUFFERED = 50
