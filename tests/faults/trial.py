"""One run: messages are sent and worked off while a fault strikes, then counted."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from redis.asyncio import Redis
from redis.exceptions import RedisError

from taskiq.exceptions import SendTaskError
from taskiq.kicker import AsyncKicker

from .lines import URLS, Line, Settings, make_broker, remove
from .proxy import Proxy
from .servers import OWN_SERVERS, OwnServer
from .workers import Workers

Fault: TypeAlias = Literal["none", "sigkill", "sigterm", "cut", "restart"]

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
TASK_NAME: Final = "record"
#: Does nothing. taskiq-redis looks for messages to deliver again only when it has read
#: a new one: those of a killed worker would wait for ever on a stream that is quiet.
NUDGE_NAME: Final = "nudge"
NUDGE_INTERVAL: Final = 0.5

#: Seconds that a busy machine may need for anything.
_LEAST_PATIENCE: Final = 20.0
_INTERVAL: Final = 0.1
_SENT_AT_ONCE: Final = 100
_READ_AT_ONCE: Final = 500


def answer(item: int) -> int:
    """Say what is to come back for an item: nobody else's value looks like it."""
    return 3 * item + 1


@dataclass(frozen=True)
class Trial:
    """What is to be run.

    :ivar messages: how many are sent.
    :ivar strikes: how many times the fault strikes, while there is work left.
    :ivar interval: seconds from one strike to the next, on average.
    :ivar workers: how many processes there are.
    :ivar grace: the workers' `--wait-tasks-timeout`, in seconds; `None` for no limit.
    :ivar ack_type: the workers' `--ack-type`.
    :ivar is_sent_before: whether the workers start after the last message was sent.

    The others are those of `Settings`.
    """

    line: Line
    fault: Fault
    messages: int
    strikes: int = 10
    interval: float = 1.5
    workers: int = 2
    redelivery: float = 4.0
    batch_size: int = 100
    batch_timeout: float = 0.2
    max_buffered: int = 400
    call_seconds: float = 0.1
    grace: float | None = None
    ack_type: str = "when_saved"
    is_sent_before: bool = False

    @property
    def patience(self) -> float:
        """Seconds without anything new after which what is missing is lost."""
        return max(_LEAST_PATIENCE, 4 * self.redelivery)

    def __str__(self) -> str:
        return f"{self.line} x {self.fault}"


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    :ivar results: messages with the result that belongs to them.
    :ivar wrong: messages with another one.
    :ivar repeated: which messages were run more than once.
    :ivar runs: how often messages were run, all together.
    :ivar strikes: how many times the fault struck.
    :ivar seconds: from the start of the workers to the last result.
    :ivar calls: how many calls there were, by process and size.
    :ivar is_hung: whether the workers did not end when they were told to.
    :ivar log: what the workers printed.
    """

    trial: Trial
    results: int
    wrong: int
    repeated: frozenset[int]
    runs: int
    strikes: int
    seconds: float
    calls: Counter[tuple[int, int]]
    is_hung: bool
    log: str

    @property
    def lost(self) -> int:
        return self.trial.messages - self.results - self.wrong

    @property
    def is_good(self) -> bool:
        """Whether every message has its own result and the workers have ended."""
        return self.results == self.trial.messages and not self.is_hung


Progress: TypeAlias = Callable[[str], None]


async def run(
    trial: Trial,
    progress: Progress = lambda _: None,
    keep: Path | None = None,
) -> Outcome:
    """Run a trial from the first message to the last result, and clean up.

    :param progress: told in short how far it is, several times a second.
    :param keep: a directory that gets the log of the workers.
    """
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(_stage(trial))
        try:
            return await stage.run(progress)
        finally:
            if keep is not None and stage.log.exists():
                shutil.copy(stage.log, keep / f"{trial.line}-{trial.fault}.log")


@asynccontextmanager
async def _stage(trial: Trial) -> AsyncIterator[_Stage]:
    async with AsyncExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="taskiq-faults-")),
        )
        server = None
        url = URLS[trial.line]
        if trial.fault == "restart":
            server = OWN_SERVERS[trial.line](directory / "server")
            await server.start()
            stack.push_async_callback(server.stop)
            url = server.url
        settings = Settings(
            line=trial.line,
            name=f"taskiq-faults-{uuid.uuid4().hex}",
            url=url,
            results_url=url if trial.line.startswith("redis") else URLS["redis"],
            counts_url=URLS["redis"],
            redelivery=trial.redelivery,
            batch_size=trial.batch_size,
            batch_timeout=trial.batch_timeout,
            max_buffered=trial.max_buffered,
            call_seconds=trial.call_seconds,
        )
        stack.push_async_callback(remove, settings)
        proxy = Proxy(url)
        await proxy.start()
        stack.push_async_callback(proxy.stop)
        told = replace(settings, url=proxy.url) if trial.fault == "cut" else settings
        if trial.line.startswith("redis"):
            told = replace(told, results_url=told.url)
        options = [
            f"--workers={trial.workers}",
            f"--ack-type={trial.ack_type}",
            "--max-async-tasks=20",
        ]
        if trial.grace is not None:
            options.append(f"--wait-tasks-timeout={trial.grace}")
        log = directory / "workers.log"
        workers = Workers(told, log, *options)
        stack.push_async_callback(workers.kill)
        yield _Stage(trial, settings, workers, log, proxy, server)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Do something beside the body of the context, and end it with the body."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


class _Stage:
    def __init__(
        self,
        trial: Trial,
        settings: Settings,
        workers: Workers,
        log: Path,
        proxy: Proxy,
        server: OwnServer | None,
    ) -> None:
        self.trial = trial
        self.settings = settings
        self.log = log
        self._workers = workers
        self._proxy = proxy
        self._server = server
        self._strikes = 0
        self._ran = 0
        self._is_over = asyncio.Event()
        self._broker = make_broker(settings)
        self._counts: Redis = Redis.from_url(settings.counts_url)

    async def run(self, progress: Progress) -> Outcome:
        await self._broker.startup()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._counts.aclose)
            stack.push_async_callback(self._broker.result_backend.shutdown)
            stack.push_async_callback(self._broker.shutdown)
            if self.trial.is_sent_before:
                await self._send_all()
            began = time.monotonic()
            await self._workers.start()
            async with _beside(self._strike()) as striking:
                if self.trial.is_sent_before:
                    await self._wait_for_runs(began, progress)
                else:
                    async with _beside(self._send_all()) as sending:
                        await self._wait_for_runs(began, progress)
                        await sending
                # Not in the middle of a strike, when something may be away.
                self._is_over.set()
                await striking
            async with _beside(self._nudge()):
                results, wrong = await self._wait_for_results(began, progress)
            seconds = time.monotonic() - began
            is_hung = await self._hangs()
            return await self._count(results, wrong, seconds, is_hung=is_hung)

    async def _hangs(self) -> bool:
        """Tell the workers to end, and see whether they do not."""
        try:
            await self._workers.stop()
        except asyncio.TimeoutError:
            return True
        return False

    def _task_id(self, item: int) -> str:
        return f"{self.settings.name}-{item}"

    # -- Sending ------------------------------------------------------------------

    async def _send_all(self) -> None:
        items = iter(range(self.trial.messages))
        await asyncio.gather(*(self._send(items) for _ in range(_SENT_AT_ONCE)))

    async def _send(self, items: Any) -> None:
        for item in items:
            kicker: AsyncKicker[Any, Any] = AsyncKicker(TASK_NAME, self._broker, {})
            await kicker.with_task_id(self._task_id(item)).kiq(item)

    async def _nudge(self) -> None:
        while self.trial.line == "redis":
            with suppress(SendTaskError):  # the server is away
                await AsyncKicker[Any, Any](NUDGE_NAME, self._broker, {}).kiq()
            await asyncio.sleep(NUDGE_INTERVAL)

    # -- Striking -----------------------------------------------------------------

    async def _strike(self) -> None:
        strike = {
            "none": None,
            "sigkill": self._kill,
            "sigterm": self._terminate,
            "cut": self._cut,
            "restart": self._restart,
        }[self.trial.fault]
        if strike is None:
            return
        while not self._ran:
            if await self._is_over_in(_INTERVAL):
                return
        while self._strikes < self.trial.strikes:
            pause = random.uniform(0.2, 1.8) * self.trial.interval  # noqa: S311
            if await self._is_over_in(pause):
                return
            if await strike():
                self._strikes += 1

    async def _is_over_in(self, seconds: float) -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_over.wait(), seconds)
        return self._is_over.is_set()

    async def _kill(self) -> bool:
        return self._workers.kill_one()

    async def _terminate(self) -> bool:
        await self._workers.stop()
        await self._workers.start()
        return True

    async def _cut(self) -> bool:
        return self._proxy.cut() > 0

    async def _restart(self) -> bool:
        assert self._server is not None
        await self._server.restart(away=random.uniform(0, 1))  # noqa: S311
        return True

    # -- Waiting and counting -----------------------------------------------------

    async def _wait_for_runs(self, began: float, progress: Progress) -> None:
        async def look() -> int:
            self._ran = await self._counts.hlen(runs)
            return self._ran

        runs = self.settings.runs
        async with _beside(self._nudge()):
            await self._wait("run", look, began, progress)

    async def _wait_for_results(
        self,
        began: float,
        progress: Progress,
    ) -> tuple[int, int]:
        """Wait until every message has its result.

        :returns: how many have the right one, and how many another one.
        """
        missing = set(range(self.trial.messages))
        wrong: set[int] = set()

        async def look() -> int:
            with suppress(RedisError):  # it is away
                await take()
            return self.trial.messages - len(missing)

        async def take() -> None:
            found = await self._read_results(sorted(missing))
            missing.difference_update(found)
            wrong.update(item for item, is_right in found.items() if not is_right)

        await self._wait("done", look, began, progress)
        return self.trial.messages - len(missing) - len(wrong), len(wrong)

    async def _wait(
        self,
        what: str,
        look: Callable[[], Awaitable[int]],
        began: float,
        progress: Progress,
    ) -> None:
        """Wait until a count is complete, or has stood still for too long."""
        most, last_change = -1, time.monotonic()
        while most < self.trial.messages:
            count = await look()
            now = time.monotonic()
            if count > most:
                most, last_change = count, now
            if now - last_change > self.trial.patience:
                return
            progress(
                f"{self.trial}: {count} of {self.trial.messages} {what}, "
                f"{self._strikes} strikes, {now - began:.0f} s",
            )
            if count < self.trial.messages:
                await asyncio.sleep(_INTERVAL)

    async def _read_results(self, items: list[int]) -> dict[int, bool]:
        """Look which items have a result, and whether it is theirs."""
        found: dict[int, bool] = {}
        for start in range(0, len(items), _READ_AT_ONCE):
            some = items[start : start + _READ_AT_ONCE]
            read = await asyncio.gather(*map(self._read_result, some))
            found.update(
                (item, is_right)
                for item, is_right in zip(some, read, strict=True)
                if is_right is not None
            )
        return found

    async def _read_result(self, item: int) -> bool | None:
        backend, task_id = self._broker.result_backend, self._task_id(item)
        if not await backend.is_result_ready(task_id):
            return None
        result = await backend.get_result(task_id)
        return not result.is_err and result.return_value == answer(item)

    async def _count(
        self,
        results: int,
        wrong: int,
        seconds: float,
        *,
        is_hung: bool,
    ) -> Outcome:
        read: Callable[[str], Any] = partial(self._counts.hgetall)
        runs = {
            int(item): int(count)
            for item, count in (await read(self.settings.runs)).items()
        }
        calls: Counter[tuple[int, int]] = Counter()
        for key, count in (await read(self.settings.calls)).items():
            pid, size = map(int, key.split())
            calls[pid, size] += int(count)
        return Outcome(
            trial=self.trial,
            results=results,
            wrong=wrong,
            repeated=frozenset(item for item, count in runs.items() if count > 1),
            runs=sum(runs.values()),
            strikes=self._strikes,
            seconds=seconds,
            calls=calls,
            is_hung=is_hung,
            log=self._workers.output,
        )
