"""Child script: what `import taskiq` costs. Run as `python -I import_cost.py`.

Nothing but `time` is imported before the measured line, so that the package pays for
every module it needs.
"""

import time

_started = time.perf_counter()
import taskiq  # noqa: E402 - the line that is measured

_wall = time.perf_counter() - _started

import json  # noqa: E402 - would hide its own cost from the measured line
import sys  # noqa: E402


def peak_rss() -> int | None:
    """Peak resident memory of this process in bytes, None where it is not known."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


assert taskiq.__version__
sys.stdout.write(json.dumps({"wall": _wall, "rss": peak_rss()}))
