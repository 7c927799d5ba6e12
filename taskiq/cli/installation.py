"""Whether the files of this package are all its own.

The released `taskiq` has the same import name. Installed over this one it makes wrong
results without a word: there `batch=True` is a label like any other.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskiq.cli.finding import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The version of this code; the local part tells it from released ones.
VERSION: Final = "0.13.0+batch.1"

#: What only this package has, in files that the released one has, too.
MARKS: Final = (
    ("taskiq.abc.broker", "AsyncBroker", "kick_many"),
    ("taskiq.abc.middleware", "TaskiqMiddleware", "on_batch_start"),
    ("taskiq.abc.result_backend", "AsyncResultBackend", "set_results"),
    ("taskiq.brokers.inmemory_broker", "InMemoryBroker", "wait_running"),
    ("taskiq.context", "BatchContext", "set_result"),
    ("taskiq.decor", "AsyncTaskiqDecoratedTask", "send_check"),
    ("taskiq.kicker", "AsyncKicker", "kiq_many"),
    ("taskiq.receiver.receiver", "Receiver", "batch_statistics"),
)


def check_installation() -> None:
    """Refuse to start with files of another package among ours.

    :raises StartError: there are some; it says how to mend that.
    """
    found = [*_other_versions(), *_unmarked()]
    if found:
        raise StartError(
            "Another distribution of taskiq was installed over this one "
            f"({VERSION}): {', '.join(found)}. Batches would be wrong without a word. "
            "Install this one anew: `pip uninstall -y taskiq` until there is none, "
            f"then `pip install 'taskiq=={VERSION}'` from where you have it; to keep "
            "it, pin it: see 'Keep it installed' in the guide.",
        )


def _other_versions() -> Iterator[str]:
    """Name distributions of another version that claim the directory of our files."""
    package = Path(__file__).resolve().parent.parent
    for each in distributions(name="taskiq"):
        claimed = Path(str(each.locate_file("taskiq"))).resolve()
        if claimed == package and "+batch" not in each.version:
            yield f"version {each.version} is installed in {package.parent}"


def _unmarked() -> Iterator[str]:
    """Name modules that are not ours."""
    for module, owner, mark in MARKS:
        try:
            found = import_module(module)
        except ImportError as exc:
            yield f"{module} cannot be imported ({exc})"
            continue
        if not hasattr(getattr(found, owner, None), mark):
            yield f"{module} is not of this package"
