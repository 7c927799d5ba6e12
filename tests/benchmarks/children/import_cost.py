"""Child script: what an import costs. Run as `python -I import_cost.py [every-name]`.

It is `import taskiq`, or `from taskiq import *`. Nothing but `time` is imported before
the measured line, so that the package pays for every module it needs.
"""

import sys
import time

_started = time.perf_counter()
if sys.argv[1:] == ["every-name"]:
    from taskiq import *  # noqa: F403 - the line that is measured
else:
    import taskiq  # noqa: F401 - the line that is measured

_wall = time.perf_counter() - _started

import json  # noqa: E402 - would hide its own cost from the measured line


def peak_rss() -> int | None:
    """Peak resident memory of this process in bytes, None where it is not known."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


sys.stdout.write(json.dumps({"wall": _wall, "rss": peak_rss()}))
