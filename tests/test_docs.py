"""What the README and the documentation show is what happens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from runpy import run_path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest
from redis import Redis
from redis.exceptions import RedisError

from taskiq.cli.dead import cmd as dead_cmd
from taskiq.cli.health import cmd as health_cmd
from taskiq.cli.inspect import cmd as inspect_cmd
from taskiq.cli.scheduler import args as scheduler_args
from taskiq.cli.worker import args as worker_args

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLES = DOCS / "examples" / "batching"
MONITORING = DOCS / "guide" / "batching"
RUN_BLOCKS = Path(__file__).parent / "support" / "run_blocks.py"
REDIS = os.environ.get("TASKIQ_TEST_REDIS_URL") or "redis://127.0.0.1:6379"
POSTGRES = (
    os.environ.get("TASKIQ_TEST_POSTGRES_URL")
    or "postgresql://root@127.0.0.1:5432/test"
)
#: Seconds for anything that should take a few.
HANG = 120.0

#: A block of Python, and what it is said to print. It may be indented, in a tab.
BLOCK = re.compile(
    r"^(?P<indent> *)```python(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\s*<!-- prints -->\s*```text\n(?P<prints>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
TITLE = re.compile(r'title="([^"]+)"')
INCLUDED = re.compile(r'--8<-- "([^"]+)"')


class Block(NamedTuple):
    """A block of a page."""

    page: Path
    number: int
    title: str | None
    code: str
    prints: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.number}"

    @property
    def is_client(self) -> bool:
        """Whether it needs a worker of the page's `tasks.py`."""
        return self.title == "client.py"


class Outcome(NamedTuple):
    """What became of a program."""

    status: int
    output: str


def blocks_of(page: Path) -> Iterable[Block]:
    text = page.read_text(encoding="utf-8")
    for number, found in enumerate(BLOCK.finditer(text), start=1):
        title = TITLE.search(found["info"])
        indent = found["indent"]
        code = re.sub(f"^{indent}", "", found["code"], flags=re.MULTILINE)
        yield Block(page, number, title and title[1], code, found["prints"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROGRAMS = [each for each in BLOCKS if not each.is_client]
CLIENTS = [each for each in BLOCKS if each.is_client]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What became of every block, by its place; each page has a directory."""
    root = tmp_path_factory.mktemp("blocks")
    places = {write(block, root): block.where for block in PROGRAMS}
    log = root / "log"
    subprocess.run(  # noqa: S603 - our own files
        [sys.executable, str(RUN_BLOCKS), str(log), *map(str, places)],
        check=True,
        timeout=4 * HANG,  # where nothing forks, each starts an interpreter
    )
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return {
        places[Path(record["file"])]: Outcome(record["status"], record["output"])
        for record in records
    }


def write(block: Block, root: Path) -> Path:
    directory = root / block.page.relative_to(ROOT).with_suffix("")
    file = directory / (block.title or f"block_{block.number}.py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.code, encoding="utf-8")
    return file


@pytest.mark.parametrize("block", PROGRAMS, ids=[each.where for each in PROGRAMS])
def test_every_python_block_runs_and_prints_what_its_page_says(
    block: Block,
    outcomes: dict[str, Outcome],
) -> None:
    outcome = outcomes[block.where]
    assert outcome.status == 0, outcome.output
    if block.prints is not None:
        assert outcome.output == block.prints


def test_every_block_of_python_is_found() -> None:
    for page in PAGES:
        fences = re.findall("^ *```python", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == sum(block.page == page for block in BLOCKS), page


@pytest.mark.skipif(os.name == "nt", reason="the worker is stopped with a signal")
@pytest.mark.parametrize("block", CLIENTS, ids=[each.where for each in CLIENTS])
def test_a_client_gets_its_results_from_a_worker_of_its_page(
    block: Block,
    tmp_path: Path,
) -> None:
    try:
        redis = Redis.from_url(REDIS, socket_timeout=5)
        redis.ping()
    except RedisError as error:
        pytest.skip(f"Redis does not answer at {REDIS}: {error}")
    queue = f"docs-{uuid4().hex}"
    for each in BLOCKS:
        if each.page == block.page and each.title is not None:
            code = each.code.replace("redis://localhost:6379", REDIS)
            code = code.replace('"getting-started"', f'"{queue}"')
            (tmp_path / each.title).write_text(code, encoding="utf-8")
    try:
        outcome, log = run_with_worker(tmp_path)
    finally:
        redis.delete(queue, *redis.scan_iter(f"*{queue}*", count=1000))
        redis.close()

    assert outcome.status == 0, outcome.output + log
    assert outcome.output.split() == ["3", "0", "2", "4", "6", "8"], log


@pytest.mark.skipif(
    tuple(map(int, version("anyio").split(".")[:2])) < (4, 11),
    reason="the settings that the page shows came with anyio 4.11",
)
def test_the_tests_that_the_testing_page_shows_pass(tmp_path: Path) -> None:
    page = DOCS / "guide" / "testing.md"
    for block in BLOCKS:
        if block.page == page and block.title is not None:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    settings = re.search(
        r'```ini title="pytest.ini"\n(.*?)^```', text, re.DOTALL | re.M
    )
    assert settings is not None
    (tmp_path / "pytest.ini").write_text(settings[1], encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        encoding="utf-8",
        # Options for this run of pytest are not for that one.
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        timeout=HANG,
    )

    assert "1 passed" in done.stdout, done.stdout


def run_with_worker(directory: Path) -> tuple[Outcome, str]:
    log = directory / "worker.log"
    with log.open("wb") as stream:
        worker = subprocess.Popen(
            [sys.executable, "-m", "taskiq", "worker", "tasks:broker", "-w", "1"],
            cwd=directory,
            stderr=subprocess.STDOUT,
            stdout=stream,
        )
        try:
            outcome = run_example(directory / "client.py")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(HANG)
    return outcome, log.read_text(encoding="utf-8")


#: taskiq_dependencies throws errors into generators in the old way, which Python 3.12
#: and later warn of. As an error it would keep the dependency from being closed.
NOT_OURS = "ignore:the (type, exc, tb) signature of athrow:DeprecationWarning"


def run_example(script: Path, *arguments: str) -> Outcome:
    done = subprocess.run(  # noqa: S603 - our own files
        [sys.executable, "-W", "error", "-W", NOT_OURS, str(script), *arguments],
        capture_output=True,
        check=False,
        cwd=script.parent,
        encoding="utf-8",
        timeout=HANG,  # hundreds of commits on a busy disk
    )
    return Outcome(done.returncode, done.stdout or done.stderr)


async def try_postgres() -> None:
    connection = await asyncpg.connect(POSTGRES, timeout=5)
    await connection.close()


def show(name: str, *arguments: str) -> str:
    """Run an example, which checks its results, and give what it prints."""
    outcome = run_example(EXAMPLES / name, *arguments)
    assert outcome.status == 0, outcome.output
    return outcome.output


def number_in(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def test_the_bulk_insert_example_shows_fewer_calls_with_the_same_results() -> None:
    shown = show("bulk_insert.py", "600")
    assert re.search(r"one by one +600 ", shown)
    assert re.search(r"in batches +2 ", shown)


def test_the_million_keys_example_makes_a_call_for_each_key() -> None:
    shown = show("many_keys.py", "2000")
    assert re.search(r"a key for each message +\S+ +2,000 ", shown)
    assert re.search(r"batches of 100 +\S+ +20 ", shown)


def test_the_postgres_example_stores_every_good_row_with_few_statements() -> None:
    try:
        asyncio.run(try_postgres())
    except (OSError, asyncpg.PostgresError, asyncio.TimeoutError) as error:
        pytest.skip(f"PostgreSQL does not answer: {error}")
    shown = show("postgres_insert.py", POSTGRES)
    assert "2,000 messages, 1,998 rows" in shown
    assert "refused: [700, 1500]" in shown
    assert number_in(r"included: (\d+)", shown) < 50


def test_the_rate_limit_example_asks_for_fifty_addresses_at_once() -> None:
    shown = show("rate_limited_api.py")
    assert "301 addresses, 7 requests" in shown
    assert "failed: 1: LookupError('unknown address: Nowhere')" in shown


def test_the_embeddings_example_keeps_to_its_tokens_and_to_its_vectors() -> None:
    shown = show("embeddings.py")
    assert number_in(r"calls: (\d+)", shown) < 50
    assert number_in(r"most tokens in a call: (\d+)", shown) <= 512
    assert "same vectors as one by one: True" in shown


def test_the_search_example_survives_an_outage_and_refuses_one_document() -> None:
    shown = show("search_index.py")
    assert "1,001 messages, 1,000 documents" in shown
    assert "and 1 in an outage" in shown
    assert number_in(r"requests: (\d+)", shown) < 20
    assert "failed: failed to parse field [year] of document -1" in shown


def test_every_example_and_every_included_file_is_run_by_a_test() -> None:
    tested = set(re.findall(r'show\("(\w+\.py)"', Path(__file__).read_text("utf-8")))
    tested.add("sentence_embeddings.py")  # by tests/models, where there is the model
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested
    for page in PAGES:
        for path in INCLUDED.findall(page.read_text(encoding="utf-8")):
            file = ROOT / path
            is_tested = file.parent == EXAMPLES and file.name in tested
            # Run by tests/plugins, with the plugins it needs.
            is_tested |= file == DOCS / "examples" / "fastapi_app" / "app.py"
            # Checked and run by tests/test_deploy.py.
            is_tested |= file.parent == DOCS / "examples" / "deploy"
            # Each with a worker, by tests/plugins/test_getting_started.py.
            is_tested |= file.parent == DOCS / "examples" / "brokers"
            assert is_tested or file.suffix == ".md", f"{page} includes {path}"


def test_the_page_of_the_command_line_names_every_flag_and_no_other() -> None:
    page = (DOCS / "guide" / "cli.md").read_text(encoding="utf-8")
    page = page.partition("## `taskiq completion`")[0]
    worker, _, scheduler = page.partition("## `taskiq scheduler`")
    for text, parser in (
        (worker, worker_args.make_parser()),
        (scheduler, scheduler_args.make_parser()),
    ):
        named = set(re.findall(r"(?<![-\w`])`(--?[a-z][-_a-z]*)`", text))
        assert named == flags_of(parser)


def test_the_page_of_the_command_line_names_every_flag_of_dead_and_no_other() -> None:
    page = (DOCS / "guide" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("\n## `taskiq dead`")[2].partition("\n## ")[0]
    named = set(
        re.findall(r"^\| `(--[-a-z]+)`(?:, `(-[a-z]+)`)?", section, re.MULTILINE)
    )
    flags = {flag for pair in named for flag in pair if flag}
    assert flags == all_flags_of(dead_cmd._parser())


def test_the_page_of_operations_names_every_flag_of_its_commands() -> None:
    page = (DOCS / "guide" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--[a-z][-a-z]*", page))
    for parser in (health_cmd._parser(), inspect_cmd._parser()):
        assert all_flags_of(parser) <= named | {"-d", "-fsd", "-tp"}


def all_flags_of(parser: ArgumentParser) -> set[str]:
    """Give the flags of a parser and of those below it."""
    below = [
        each
        for action in parser._actions
        if isinstance(action.choices, dict)
        for each in action.choices.values()
    ]
    return flags_of(parser).union(*map(all_flags_of, below))


def test_the_page_of_operations_shows_the_tasks_that_are_shown(tmp_path: Path) -> None:
    page = DOCS / "guide" / "operations.md"
    [block] = [each for each in BLOCKS if each.page == page]
    assert block.title is not None
    (tmp_path / block.title).write_text(block.code, encoding="utf-8")
    command = "taskiq inspect tasks app:broker"
    shown = re.search(rf"\$ {command}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    printed = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", *command.split()],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        encoding="utf-8",
        env={**os.environ, "TASKIQ_HEALTH_FILE": ""},
        timeout=HANG,
    ).stdout
    assert printed == shown[1]


def flags_of(parser: ArgumentParser) -> set[str]:
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return flags - {"-h", "--help"}


#: Run apart: prometheus_client decides at its import where it keeps its values.
PRINT_METRICS = """
import sys
from pathlib import Path
from taskiq import PrometheusMiddleware
PrometheusMiddleware(metrics_path=Path(sys.argv[1]))
from prometheus_client import REGISTRY
for metric in REGISTRY.collect():
    print(metric.type, metric.name)
"""
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The series of each metric that the middleware adds, by its name in the pages."""
    directory = tmp_path_factory.mktemp("metrics")
    printed = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", PRINT_METRICS, str(directory)],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=HANG,
    ).stdout
    metrics: dict[str, set[str]] = {}
    for line in printed.splitlines():
        kind, name = line.split()
        if name.startswith(("python_", "process_")):
            continue
        shown = f"{name}_total" if kind == "counter" else name
        metrics[shown] = {name + suffix for suffix in SUFFIXES[kind]}
    return metrics


def test_the_page_of_monitoring_names_every_metric_and_no_other(
    served: dict[str, set[str]],
) -> None:
    page = (MONITORING / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (?:counter|gauge|hist)", page, re.M)
    named = [name.strip("` ") for row in rows for name in row.split(",")]
    assert sorted(named) == sorted(served)


def test_the_picture_of_the_dashboard_is_drawn_from_numbers_of_each_query() -> None:
    """What `docs/check_dashboard.py` wrote, of a real worker and a real Prometheus."""
    drawing = run_path(str(DOCS / "draw_dashboard.py"))
    dashboard = json.loads(drawing["DASHBOARD"].read_text("utf-8"))
    asked = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    answers = json.loads(drawing["ANSWERS"].read_text("utf-8"))
    assert [each["query"] for each in answers] == asked, "run check_dashboard again"
    assert all(each["series"] for each in answers)
    assert drawing["TARGET"].read_text("utf-8") == drawing["draw"]()
    page = (MONITORING / "monitoring.md").read_text("utf-8")
    last = [each["series"][0]["values"][-1][1] for each in answers]
    told = re.findall(r"^ +\d +(\S+)  [A-Z]", page, re.M)
    assert [float(each) for each in told] == [float(f"{each:.3g}") for each in last]


def test_the_dashboard_asks_for_metrics_that_are_served_and_shows_each(
    served: dict[str, set[str]],
) -> None:
    dashboard = json.loads((MONITORING / "taskiq-batches.json").read_text("utf-8"))
    asked = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    words = set(re.findall(r"[a-z_]{8,}", " ".join(asked)))
    functions = {"histogram_quantile", "task_name", "__rate_interval", "datasource"}
    series = {name for names in served.values() for name in names}
    assert words - functions <= series
    for name, names in served.items():
        assert words & names, f"no panel shows {name}"
