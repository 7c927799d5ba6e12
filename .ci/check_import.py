"""Check that no name of `taskiq` loads an optional library.

`check_import.py [CHECKOUT]`: with a checkout, taskiq must not have come from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

# taskiq_dependencies loads FastAPI where it is installed, and that loads what it likes.
sys.modules["fastapi"] = None  # type: ignore[assignment]  # cannot be imported

import taskiq  # noqa: E402 - see above

OPTIONAL = (
    "aiohttp",
    "cbor2",
    "gitignore_parser",
    "msgpack",
    "opentelemetry",
    "orjson",
    "prometheus_client",
    "psutil",
    "uvloop",
    "watchdog",
    "zmq",
)


def main() -> None:
    """Exit with what was loaded and should not have been."""
    for name in taskiq.__all__:
        getattr(taskiq, name)
    loaded = [name for name in OPTIONAL if name in sys.modules]
    if loaded:
        sys.exit(f"import taskiq loads {', '.join(loaded)}")
    source = Path(str(taskiq.__file__)).resolve()
    if len(sys.argv) > 1 and source.is_relative_to(Path(sys.argv[1]).resolve()):
        sys.exit(f"taskiq was imported from the checkout: {source}")
    sys.stdout.write(f"taskiq {taskiq.__version__} imported without extras\n")


if __name__ == "__main__":
    main()
