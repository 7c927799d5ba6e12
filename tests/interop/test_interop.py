"""Clients and workers of this package and of taskiq 0.13.0 understand each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from .cases import (
    BATCHES,
    CHUNK,
    ERRORS,
    HAND_OVERS,
    LABELS,
    PLAIN,
    RETRIES,
    VERSION,
    Case,
)
from .exchanges import OUR_WORKERS, Exchange, Pairing
from .values import describe


def test_the_two_sides_are_the_two_packages(exchange: Exchange) -> None:
    check(exchange, [VERSION])


def test_values_cross_and_come_back(exchange: Exchange) -> None:
    check(exchange, PLAIN)


def test_labels_keep_their_types(exchange: Exchange) -> None:
    check(exchange, LABELS)


def test_errors_are_read_back_as_what_was_raised(exchange: Exchange) -> None:
    check(exchange, ERRORS)


def test_failed_tasks_are_retried(exchange: Exchange) -> None:
    check(exchange, RETRIES)


def test_a_batch_task_answers_each_sender_on_its_own(exchange: Exchange) -> None:
    """The worker of 0.13.0 has a plain task under that name: the messages are one."""
    check(exchange, BATCHES)


def test_a_chunk_has_an_outcome_for_each_item_or_is_refused(
    exchange: Exchange,
) -> None:
    """The worker of 0.13.0 answers with an error, and calls nothing."""
    check(exchange, [CHUNK])


@pytest.mark.parametrize("exchange", OUR_WORKERS, indirect=True, ids=str)
def test_our_worker_acknowledges_every_message(exchange: Exchange) -> None:
    assert exchange.unacknowledged == 0


def test_a_message_sent_again_by_one_package_is_finished_by_the_other(
    fleet: Exchange,
) -> None:
    check(fleet, HAND_OVERS)


def check(exchange: Exchange, cases: Iterable[Case]) -> None:
    """Compare the answers with the table; a failure shows the log of the worker."""
    print(exchange.log)  # noqa: T201 - pytest captures it
    assert {case.name: exchange.answers[case.name] for case in cases} == {
        case.name: expected_answer(case, exchange.pairing) for case in cases
    }


def expected_answer(case: Case, pairing: Pairing) -> dict[str, Any]:
    """What the client prints for a case, if it and the worker keep to the table."""
    value, error, labels = case.value, case.error, case.labels_stored
    if pairing.workers == ("released",) and case.value_by_released is not None:
        value = case.value_by_released
    if pairing.workers == ("released",) and case.error_by_released is not None:
        value, error = None, case.error_by_released
    if pairing.client == "released" and case.error_at_released is not None:
        error = case.error_at_released
    if labels is None:
        labels = case.labels
    return {
        "failed": error is not None,
        "value": describe(value),
        "error": error,
        "chain": case.chain,
        "labels": {name: describe(value) for name, value in labels.items()},
        "progress": case.progress,
    }
