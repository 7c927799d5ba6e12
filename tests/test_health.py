"""When a worker is live, and when it is ready: rules over what it said last."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskiq.cli.health.files import HealthDirectory
from taskiq.cli.health.watch import answer
from taskiq.health import (
    MOST_SILENCE,
    Fleet,
    Flush,
    Heartbeat,
    ListenerState,
    Roster,
    TaskFlushes,
    heartbeat_of,
    state_of,
    why_not_live,
    why_not_ready,
)

NOW = 1_000_000.0
LISTENING, AWAY = ListenerState.LISTENING, ListenerState.AWAY


def beat(pid: int = 11, *, silent: float = 0.0, **fields: Any) -> Heartbeat:
    said = Heartbeat(
        worker=f"worker-{pid - 11}",
        host="host",
        pid=pid,
        broker="app:broker",
        started_at=NOW - 100,
        written_at=NOW,
        answered_at=NOW - silent,
        listener=LISTENING,
    )
    return said._replace(**fields)


def fleet(*beats: Heartbeat, workers: int | None = None, silent: float = 0.0) -> Fleet:
    pids = tuple(each.pid for each in beats)
    count = len(beats) if workers is None else workers
    roster = Roster("host", 1, "app:broker", NOW - 100, NOW - silent, count, pids)
    return Fleet(roster, beats)


def test_processes_that_listen_are_live_and_ready() -> None:
    both = fleet(beat(11), beat(12))
    assert why_not_live(both, NOW) == why_not_ready(both, NOW) == []


@pytest.mark.parametrize("silent", [0.0, MOST_SILENCE])
def test_an_event_loop_may_take_a_while_to_answer(silent: float) -> None:
    assert not why_not_live(fleet(beat(silent=silent)), NOW)


def test_one_blocked_event_loop_of_several_is_not_live_within_ten_seconds() -> None:
    one = fleet(beat(11), beat(12, silent=9))
    assert why_not_live(one, NOW) == ["worker-1 (12) is blocked for 9 s"]
    assert why_not_ready(one, NOW) == why_not_live(one, NOW)


def test_a_broker_that_is_away_is_not_ready_and_live_for_ever() -> None:
    away = fleet(beat(11), beat(12, listener=AWAY))
    assert not why_not_live(away, NOW)
    assert why_not_ready(away, NOW) == ["worker-1 (12): broker away"]


@pytest.mark.parametrize("state", [ListenerState.STARTING, ListenerState.STOPPING])
def test_who_starts_or_stops_is_live_and_not_ready(state: ListenerState) -> None:
    other = fleet(beat(listener=state))
    assert not why_not_live(other, NOW)
    assert why_not_ready(other, NOW) == [f"worker-0 (11): {state.value}"]


def test_who_loads_for_long_before_it_listens_is_not_restarted_for_that() -> None:
    loading = fleet(beat(silent=600, listener=ListenerState.STARTING))
    assert not why_not_live(loading, NOW)


def test_a_process_that_still_imports_is_live_and_not_ready() -> None:
    importing = fleet(beat(), workers=2)
    assert not why_not_live(importing, NOW)
    assert why_not_ready(importing, NOW) == ["1 of 2 processes have not started"]


def test_a_process_that_has_ended_is_not_asked_any_more() -> None:
    ended = beat(99, silent=60)
    running = fleet(beat())
    both = running._replace(heartbeats=(ended, *running.heartbeats))
    assert why_not_ready(both, NOW) == []


def test_a_main_process_that_hangs_is_not_live() -> None:
    assert why_not_live(fleet(beat(), silent=9), NOW) == [
        "main process 1 is silent for 9 s",
    ]


def test_where_nobody_has_written_nobody_is_live() -> None:
    assert why_not_live(Fleet(), NOW) == why_not_ready(Fleet(), NOW) != []


def test_a_clock_that_was_set_back_blocks_nobody() -> None:
    assert not why_not_ready(fleet(beat()), NOW - 3600)
    assert state_of(beat(), NOW - 3600) == "listening"


def test_a_heartbeat_is_read_as_it_was_written_by_a_newer_worker(
    tmp_path: object,
) -> None:
    flushes = TaskFlushes(
        "insert",
        100,
        0.5,
        2,
        12.5,
        0.5,
        {"timeout": 2},
        (Flush("timeout", 5, 0.5, NOW),),
    )
    said = beat(flushes=(flushes,), oldest_age=0.5, last_fetch_age=None)
    record = json.loads(json.dumps({**said.as_json(), "later": 1}))
    assert heartbeat_of(record) == said
    assert flushes.mean_fill == 0.125


def test_a_directory_gives_back_what_was_written_and_forgets_who_ended(
    tmp_path: object,
) -> None:
    directory = HealthDirectory(f"{tmp_path}/made/for/it")
    directory.clear()
    both = fleet(beat(11), beat(12))
    assert both.roster is not None
    directory.write_roster(both.roster)
    for each in both.heartbeats:
        directory.write(each)
    assert directory.read() == both

    directory.remove(12)
    assert [each.pid for each in directory.read().heartbeats] == [11]
    directory.clear()
    assert directory.read() == Fleet()


@pytest.mark.parametrize(
    ("path", "state", "status"),
    [
        ("/live", LISTENING, 200),
        ("/live", AWAY, 200),
        ("/ready", LISTENING, 200),
        ("/ready", AWAY, 503),
        ("/", LISTENING, 404),
    ],
)
def test_probes_over_http_are_answered_by_the_same_rules(
    path: str,
    state: ListenerState,
    status: int,
) -> None:
    assert answer(fleet(beat(listener=state)), path, NOW).status == status
