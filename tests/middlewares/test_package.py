"""What the package of middlewares promises as a whole."""

from __future__ import annotations

import subprocess
import sys

import taskiq.middlewares


def test_the_names_are_those_of_the_specification() -> None:
    assert taskiq.middlewares.__all__ == (
        "PrometheusMiddleware",
        "SimpleRetryMiddleware",
        "SmartRetryMiddleware",
        "TaskiqAdminMiddleware",
    )


def test_importing_the_middlewares_loads_no_optional_library() -> None:
    optional = ["aiohttp", "opentelemetry", "prometheus_client", "psutil", "zmq"]
    code = (
        # taskiq_dependencies loads FastAPI where it is installed, and that the rest.
        "import sys; sys.modules['fastapi'] = None;"
        "import taskiq.middlewares, taskiq.brokers.zmq_broker;"
        f"print([name for name in {optional} if name in sys.modules])"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
    )

    assert done.stdout.strip() == "[]"
