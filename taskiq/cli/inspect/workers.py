"""`taskiq inspect workers`: what the processes of workers are at."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from taskiq.cli.health.files import HealthDirectory, fleet_of
from taskiq.cli.inspect.flushes import flush_lines, merged
from taskiq.cli.inspect.table import seconds, table, warning
from taskiq.health import Fleet, blocked_for, is_blocked, state_of, why_not_live

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from taskiq.health import Heartbeat, TaskFlushes

#: Seconds a worker has to answer.
_PATIENCE: Final = 3.0

#: Columns that a narrow terminal does without, the first one first.
_SPARE: Final = ("UP", "FETCHED", "LAG", "DUE", "OPEN")

#: Most workers that are asked at once.
_AT_ONCE: Final = 32


class Answers(NamedTuple):
    """What workers said, and who did not say anything."""

    fleets: list[Fleet]
    errors: list[str]

    def heartbeats(self) -> list[Heartbeat]:
        """Give what the processes of all workers said."""
        beats = [beat for fleet in self.fleets for beat in fleet.running()]
        return sorted(beats, key=lambda beat: (beat.host, beat.worker, beat.pid))

    def flushes(self) -> list[TaskFlushes]:
        """Give how batches left in all processes."""
        return [each for beat in self.heartbeats() for each in beat.flushes]


def ask(sources: Iterable[str]) -> Answers:
    """Ask workers what they are at.

    :param sources: directories of heartbeats, and addresses as `http://host:8080`: of
        a name that stands for several machines each is asked.
    """
    answers = Answers([], [])
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        places = [place for source in sources for place in _places(source, answers)]
        for place, said in zip(places, pool.map(_ask_one, places), strict=True):
            if isinstance(said, Fleet):
                answers.fleets.append(said)
            else:
                answers.errors.append(f"{place.title}: {said}")
    return answers


class _Place(NamedTuple):
    """One worker to ask: a directory, or a host by one of its addresses."""

    title: str
    directory: str | None = None
    url: str = ""
    host: str = ""


def _places(source: str, answers: Answers) -> Iterator[_Place]:
    if not source.startswith(("http://", "https://")):
        yield _Place(source, directory=source)
        return
    parts = urlsplit(source)
    path = f"{parts.path.rstrip('/')}/workers"
    if parts.scheme == "https":  # a certificate is for the name, not for an address
        yield _Place(source, url=f"{parts.scheme}://{parts.netloc}{path}")
        return
    try:
        found = socket.getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_STREAM
        )
    except (OSError, ValueError) as exc:
        answers.errors.append(f"{source}: {exc}")
        return
    addresses = dict.fromkeys(str(each[4][0]) for each in found)
    if len({each[0] for each in found}) > 1:
        # The same machines by both protocols: one of them is enough.
        addresses = {each: None for each in addresses if ":" not in each}
    for address in addresses:
        host = f"[{address}]" if ":" in address else address
        at = f"{parts.scheme}://{host}:{parts.port or 80}"
        title = source if len(addresses) == 1 else f"{source} at {address}"
        yield _Place(title, url=f"{at}{path}", host=parts.netloc)


def _ask_one(place: _Place) -> Fleet | str:
    """Ask one worker; what goes wrong is returned in words."""
    try:
        if place.directory is not None:
            fleet = HealthDirectory(place.directory).read()
        else:
            record = json.loads(_fetch(place))
            fleet = fleet_of(record["main"], record["workers"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as exc:
        return f"{exc}"
    return fleet if fleet.roster is not None else "no worker has written there"


def _fetch(place: _Place) -> bytes:
    headers = {"Host": place.host} if place.host else {}
    request = Request(place.url, headers=headers)  # noqa: S310 - HTTP, or HTTPS
    with urlopen(request, timeout=_PATIENCE) as reply:  # noqa: S310 - the same
        body: bytes = reply.read()
    return body


def as_json(answers: Answers, now: float) -> dict[str, Any]:
    """Give what workers said as what `json` writes."""
    return {
        "workers": [
            {
                **beat.as_json(),
                "state": state_of(beat, now),
                "is_blocked": is_blocked(beat, now),
                "silent_for": blocked_for(beat, now),
            }
            for beat in answers.heartbeats()
        ],
        "not_live": [each for fleet in answers.fleets for each in _ails(fleet, now)],
        "errors": answers.errors,
    }


def _ails(fleet: Fleet, now: float) -> list[str]:
    roster = fleet.roster
    where = "" if roster is None else f"{roster.host}: "
    return [f"{where}{reason}" for reason in why_not_live(fleet, now)]


def lines(answers: Answers, now: float, width: int | None) -> list[str]:
    """Show what workers said to people."""
    beats = answers.heartbeats()
    told: list[str] = []
    if beats:
        told += [*_processes(beats, now, width), ""]
        told += flush_lines(merged(answers.flushes()), width)
    elif not answers.errors:
        told.append("No process has started yet.")
    else:
        told.append("No worker has answered.")
    problems = [each for fleet in answers.fleets for each in _ails(fleet, now)]
    for text in (*problems, *answers.errors):
        told += warning(text, width)
    return told


def _processes(beats: list[Heartbeat], now: float, width: int | None) -> list[str]:
    titles: tuple[str, ...] = (
        "WORKER",
        "HOST",
        "PID",
        "STATE",
        "UP",
        "LAG",
        "FETCHED",
        "LATEST",
        "RUNNING",
        "BUFFERED",
        "OPEN",
        "DUE",
        "OLDEST",
    )
    hosts = {beat.host for beat in beats}
    rows = [_row(beat, now) for beat in beats]
    if len(hosts) == 1:
        titles = (titles[0], *titles[2:])
        rows = [(row[0], *row[2:]) for row in rows]
    return table(titles, rows, width, spare=_SPARE)


def _row(beat: Heartbeat, now: float) -> tuple[str, ...]:
    age = blocked_for(beat, now)  # of what it said
    fetched = None if beat.last_fetch_age is None else beat.last_fetch_age + age
    return (
        beat.worker,
        beat.host,
        str(beat.pid),
        state_of(beat, now),
        seconds(max(now - beat.started_at, 0.0)),
        seconds(beat.loop_lag),
        str(beat.fetched),
        seconds(fetched),
        str(beat.running),
        str(beat.buffered),
        str(beat.batches_open),
        str(beat.batches_due),
        seconds(beat.oldest_age),
    )
