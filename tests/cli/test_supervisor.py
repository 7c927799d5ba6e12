"""What to do with which worker process now, in virtual time and without processes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.cli.worker.supervisor import (
    CANNOT_START,
    RELOAD_PATIENCE,
    SHORTEST_LIFE,
    TOO_MANY_FAILURES,
    End,
    Force,
    Start,
    Supervisor,
)

KILL_AFTER = 6.0
SOFT, HARD, KILL = Force


class Crew:
    """A supervisor whose orders to start are carried out; pids are counted up.

    :ivar told: how each process that runs was last told to end, `None` if it was not.
    """

    def __init__(
        self,
        workers: int = 2,
        max_fails: int = -1,
        hardkill_count: int = 3,
    ) -> None:
        self.now = 0.0
        self.supervisor = Supervisor(workers, max_fails, hardkill_count, KILL_AFTER)
        self.told: dict[int, Force | None] = {}
        self.worker_of: dict[int, int] = {}
        self._pids = itertools.count()
        self.go_on()

    def go_on(self, seconds: float = 0.0) -> list[int]:
        """Let time pass and carry out what is decided then.

        :returns: the workers a process was started for.
        """
        self.now += seconds
        started: list[int] = []
        for order in self.supervisor.decide(self.now):
            if isinstance(order, End):
                self.told[order.pid] = order.force
                continue
            pid = next(self._pids)
            self.supervisor.started(order.worker, pid, self.now)
            self.told[pid] = None
            self.worker_of[pid] = order.worker
            started.append(order.worker)
        return started

    def exit(self, pid: int, exitcode: int = 0, after: float = 0.0) -> float | None:
        self.now += after
        del self.told[pid]
        return self.supervisor.exited(pid, exitcode, self.now)

    def shut_down(self) -> Force:
        force = self.supervisor.shut_down()
        self.go_on()
        return force

    def reload_all(self) -> None:
        for worker in sorted(set(self.worker_of.values())):
            assert self.supervisor.reload(worker)


# -- Starting and replacing -------------------------------------------------------


def test_every_worker_gets_a_process_at_first_and_then_is_left_alone() -> None:
    crew = Crew(workers=3)
    assert crew.worker_of == {0: 0, 1: 1, 2: 2}
    assert crew.supervisor.next_decision_at() is None
    assert crew.go_on(1000) == []
    assert not crew.supervisor.is_over


def test_a_process_that_fails_is_replaced_after_a_delay_that_grows() -> None:
    crew = Crew(workers=1)
    delays: list[float] = []
    for pid in range(4):
        delay = crew.exit(pid, exitcode=1)
        assert delay is not None
        assert crew.supervisor.next_decision_at() == crew.now + delay
        assert crew.go_on(delay * 0.9) == []
        assert crew.go_on(delay * 0.2) == [0]
        delays.append(delay)
    limits = [(0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8)]
    assert all(low <= d <= high for d, (low, high) in zip(delays, limits, strict=True))


def test_failures_of_one_worker_do_not_delay_another() -> None:
    crew = Crew(workers=2)
    for _ in range(5):
        crew.exit(max(crew.told), exitcode=1)
        crew.go_on(60)
    assert crew.worker_of[0] == 0
    delay = crew.exit(0, exitcode=1)
    assert delay is not None
    assert delay <= 0.1


def test_after_a_minute_of_health_the_failures_are_forgotten() -> None:
    crew = Crew(workers=1)
    for pid in range(5):
        crew.exit(pid, exitcode=1)
        crew.go_on(60)
    delay = crew.exit(5, exitcode=1, after=61)
    assert delay is not None
    assert delay <= 0.1


def test_a_process_that_ended_well_is_replaced_at_once() -> None:
    crew = Crew(workers=1)
    assert crew.exit(0, exitcode=0, after=SHORTEST_LIFE) == 0
    assert crew.go_on() == [0]


def test_processes_that_end_well_at_once_are_not_started_in_a_spin() -> None:
    crew = Crew(workers=1)
    assert crew.exit(0, exitcode=0, after=0.25) == SHORTEST_LIFE - 0.25
    assert crew.go_on() == []
    assert crew.go_on(SHORTEST_LIFE) == [0]


def test_a_process_that_cannot_be_started_is_tried_again_later() -> None:
    crew = Crew(workers=1)
    crew.exit(0, after=10)
    assert crew.supervisor.decide(crew.now) == [Start(0)]
    delay = crew.supervisor.failed_to_start(0, crew.now)
    assert delay is not None
    assert crew.go_on() == []
    assert crew.go_on(delay) == [0]


# -- Too many failures ------------------------------------------------------------


def test_max_fails_is_the_number_of_failures_that_are_tolerated() -> None:
    crew = Crew(workers=2, max_fails=2)
    for _ in range(2):
        assert crew.exit(max(crew.told), exitcode=1) is not None
        crew.go_on(1)
    assert crew.supervisor.status is None

    assert crew.exit(max(crew.told), exitcode=1) is None

    assert crew.supervisor.status == TOO_MANY_FAILURES
    assert crew.go_on() == []
    assert crew.told == {0: SOFT}
    assert not crew.supervisor.is_over
    crew.exit(0)
    assert crew.supervisor.is_over


def test_failures_to_start_count_too() -> None:
    crew = Crew(workers=1, max_fails=1)
    assert crew.exit(0, exitcode=1) is not None
    assert crew.supervisor.failed_to_start(0, crew.now) is None
    assert crew.supervisor.status == TOO_MANY_FAILURES


def test_processes_that_end_well_or_are_reloaded_are_no_failures() -> None:
    crew = Crew(workers=1, max_fails=1)
    for _ in range(5):
        crew.exit(max(crew.told), exitcode=0, after=10)
        crew.go_on()
        crew.supervisor.reload(0)
        crew.go_on()
        crew.exit(max(crew.told), exitcode=1)
        crew.go_on()
    assert crew.supervisor.status is None


@pytest.mark.parametrize("max_fails", [-1, 0])
def test_below_one_there_is_no_limit(max_fails: int) -> None:
    crew = Crew(workers=1, max_fails=max_fails)
    for pid in range(50):
        assert crew.exit(pid, exitcode=1) is not None
        crew.go_on(60)
    assert crew.supervisor.status is None


# -- Shutting down ----------------------------------------------------------------


def test_the_hardkill_count_is_the_number_of_soft_signals_before_a_hard_one() -> None:
    crew = Crew(hardkill_count=3)
    assert [crew.shut_down() for _ in range(5)] == [SOFT, SOFT, SOFT, HARD, KILL]
    assert crew.told == {0: KILL, 1: KILL}


def test_with_a_hardkill_count_of_zero_the_first_signal_is_hard() -> None:
    crew = Crew(hardkill_count=0)
    assert crew.shut_down() is HARD
    assert crew.told == {0: HARD, 1: HARD}


def test_a_process_that_does_not_end_after_a_hard_kill_is_killed() -> None:
    crew = Crew(hardkill_count=0)
    crew.shut_down()
    crew.exit(0)
    assert crew.supervisor.next_decision_at() == crew.now + KILL_AFTER
    crew.go_on(KILL_AFTER * 0.9)
    assert crew.told == {1: HARD}
    crew.go_on(KILL_AFTER * 0.2)
    assert crew.told == {1: KILL}
    assert crew.supervisor.next_decision_at() is None


def test_no_process_is_started_once_all_are_to_end() -> None:
    crew = Crew(workers=3)
    crew.exit(0, exitcode=1)
    crew.supervisor.reload(1)
    crew.shut_down()
    assert crew.exit(1) is None
    assert crew.exit(2, exitcode=1) is None
    assert crew.supervisor.is_over
    assert crew.go_on(1000) == []


def test_every_signal_is_passed_on_as_a_process_may_have_missed_the_first() -> None:
    supervisor = Supervisor(1, max_fails=-1, hardkill_count=3, kill_after=KILL_AFTER)
    supervisor.decide(0)
    supervisor.started(0, 7, 0)
    for _ in range(3):
        supervisor.shut_down()
        assert supervisor.decide(0) == [End(7, SOFT)]
        assert supervisor.decide(0) == []


def test_without_workers_the_manager_waits_for_a_signal() -> None:
    crew = Crew(workers=0)
    assert not crew.supervisor.is_over
    crew.shut_down()
    assert crew.supervisor.is_over


# -- Reloading --------------------------------------------------------------------


def test_processes_are_reloaded_one_after_the_other() -> None:
    crew = Crew(workers=3)
    crew.reload_all()
    for old in range(3):
        assert crew.go_on() == ([] if old == 0 else [old - 1])
        assert [pid for pid, force in crew.told.items() if force] == [old]
        assert crew.exit(old, exitcode=0) == 0
    assert crew.go_on() == [2]
    assert crew.told == {3: None, 4: None, 5: None}


def test_a_process_that_drains_for_long_gets_a_successor_and_is_left_to_end() -> None:
    crew = Crew(workers=2)
    crew.reload_all()
    crew.go_on()
    assert crew.supervisor.next_decision_at() == RELOAD_PATIENCE
    assert crew.go_on(RELOAD_PATIENCE) == [0]
    assert crew.told == {0: SOFT, 1: SOFT, 2: None}
    assert crew.exit(0, exitcode=1) is None
    crew.exit(1)
    assert crew.go_on() == [1]


def test_the_end_of_a_process_left_to_drain_does_not_hasten_its_successor() -> None:
    crew = Crew(workers=1)
    crew.reload_all()
    crew.go_on()
    crew.now += RELOAD_PATIENCE
    assert crew.supervisor.decide(crew.now) == [Start(0)]
    delay = crew.supervisor.failed_to_start(0, crew.now)
    assert delay is not None
    assert crew.exit(0) is None
    assert crew.go_on() == []
    assert crew.go_on(delay) == [0]


def test_a_process_left_to_drain_is_told_to_end_with_the_others() -> None:
    crew = Crew(workers=1, hardkill_count=0)
    crew.reload_all()
    crew.go_on()
    crew.go_on(RELOAD_PATIENCE)
    crew.shut_down()
    assert crew.told == {0: HARD, 1: HARD}
    crew.exit(1)
    assert not crew.supervisor.is_over
    crew.exit(0)
    assert crew.supervisor.is_over


def test_many_changes_at_once_are_one_reload() -> None:
    crew = Crew(workers=2)
    for _ in range(5):
        crew.reload_all()
        crew.go_on()
    crew.exit(0)
    crew.go_on()
    crew.exit(1)
    assert crew.go_on() == [1]
    assert crew.told == {2: None, 3: None}


def test_a_reload_starts_a_worker_at_once_that_waits_after_a_failure() -> None:
    crew = Crew(workers=1)
    crew.exit(0, exitcode=1)
    crew.reload_all()
    assert crew.go_on() == [0]
    assert crew.go_on(1000) == []


def test_there_is_no_reload_of_a_worker_that_does_not_exist() -> None:
    crew = Crew(workers=2)
    assert not crew.supervisor.reload(2)
    assert not crew.supervisor.reload(-1)
    assert crew.go_on() == []


# -- Whatever happens -------------------------------------------------------------

EVENT = st.one_of(
    st.tuples(st.just("exit"), st.integers(0, 5), st.sampled_from([0, 1, -9])),
    st.tuples(st.just("reload"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("signal"), st.just(0), st.just(0)),
)


@given(
    events=st.lists(EVENT, max_size=40),
    max_fails=st.integers(-1, 3),
    hardkill_count=st.integers(0, 2),
)
def test_whatever_happens_every_worker_is_staffed_or_all_end(
    events: list[tuple[str, int, int]],
    max_fails: int,
    hardkill_count: int,
) -> None:
    crew = Crew(3, max_fails, hardkill_count)
    for kind, number, exitcode in events:
        running = list(crew.told)
        if kind == "exit" and running:
            crew.exit(running[number % len(running)], exitcode)
        elif kind == "reload":
            crew.supervisor.reload(number)
        elif kind == "signal":
            crew.supervisor.shut_down()
        crew.go_on(number if kind == "wait" else 0)
        untold = [crew.worker_of[pid] for pid, force in crew.told.items() if not force]
        assert len(untold) == len(set(untold)), "two processes do one worker's work"

    crew.go_on(60)
    crew.go_on()
    if crew.supervisor.is_ending:
        assert all(crew.told.values()), "somebody was not told"
        for pid in list(crew.told):
            crew.exit(pid)
        assert crew.supervisor.is_over
    else:
        # What still drains ends in its own time; nobody waits for it any more.
        for _ in range(3):
            crew.go_on(RELOAD_PATIENCE)
        untold = [crew.worker_of[pid] for pid, force in crew.told.items() if not force]
        assert sorted(untold) == [0, 1, 2]


# -- Processes that cannot start ---------------------------------------------------


def crew_that_gives_up(workers: int, after: int | None = 3) -> Crew:
    crew = Crew(workers)
    crew.supervisor = Supervisor(workers, -1, 3, KILL_AFTER, after)
    crew.told.clear()
    crew.go_on()
    return crew


def fail_to_start(crew: Crew, worker: int) -> float | None:
    """Let the latest process of a worker die, and its successor start."""
    pid = max(pid for pid in crew.told if crew.worker_of[pid] == worker)
    delay = crew.exit(pid, 1)
    crew.go_on(delay or 0)
    return delay


def test_the_third_process_in_a_row_that_cannot_start_ends_all() -> None:
    crew = crew_that_gives_up(2)
    assert fail_to_start(crew, 0)
    assert fail_to_start(crew, 0)
    assert fail_to_start(crew, 1)
    assert fail_to_start(crew, 0) is None
    assert list(crew.told.values()) == [SOFT]
    assert crew.supervisor.status == CANNOT_START


def test_a_process_that_has_started_begins_the_row_anew() -> None:
    crew = crew_that_gives_up(1)
    for _ in range(2):
        assert fail_to_start(crew, 0)
        assert fail_to_start(crew, 0)
        crew.supervisor.imported(max(crew.told))
        assert fail_to_start(crew, 0)
    assert not crew.supervisor.is_ending


def test_a_process_that_ran_for_a_minute_need_not_say_that_it_has_started() -> None:
    crew = crew_that_gives_up(1)
    for _ in range(4):
        crew.now += 60
        assert fail_to_start(crew, 0)


def test_without_a_limit_it_is_tried_for_ever() -> None:
    crew = crew_that_gives_up(1, after=None)
    assert all(fail_to_start(crew, 0) for _ in range(10))


def test_what_no_other_process_could_do_either_ends_all_at_once() -> None:
    crew = crew_that_gives_up(2)
    assert crew.supervisor.exited(min(crew.told), 2, crew.now, fatal_status=2) is None
    assert crew.supervisor.is_ending
    assert crew.supervisor.status == 2


def test_it_ends_no_process_that_runs_an_application_of_before() -> None:
    crew = crew_that_gives_up(2)
    first, second = sorted(crew.told)
    crew.supervisor.imported(first)
    assert crew.supervisor.exited(second, 2, crew.now, fatal_status=2)
    assert not crew.supervisor.is_ending
