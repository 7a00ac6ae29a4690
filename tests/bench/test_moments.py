"""From which moment the bench reckons: never from one that hides a part of what it measures."""

from __future__ import annotations

import time

import memory
import pytest
from latency_producer import due_ms

BEGUN_S = 1_800_000_000.0


def test_an_event_that_waited_for_the_producer_is_as_old_as_its_due_time_says() -> None:
    # It sent three events and then nothing for a second.
    times = due_ms(BEGUN_S, 1000.0, 3, BEGUN_S + 1.0005)
    assert [time_ms - 1_800_000_000_000 for time_ms in times] == list(range(3, 1001))


def test_an_event_is_not_sent_before_it_is_due() -> None:
    assert due_ms(BEGUN_S, 10.0, 0, BEGUN_S) == [1_800_000_000_000]
    assert due_ms(BEGUN_S, 10.0, 1, BEGUN_S + 0.0625) == []
    assert due_ms(BEGUN_S, 10.0, 1, BEGUN_S + 0.125) == [1_800_000_000_100]


def test_a_first_prediction_is_not_told_too_early_by_the_time_of_an_answer() -> None:
    asked: list[float] = []

    def has_partitions() -> bool:
        # The worker may get them, and predict, while the third answer is on its way.
        asked.append(time.perf_counter())
        return len(asked) == 3

    before = time.perf_counter()
    assert before <= memory.last_without(has_partitions) <= asked[1]


def test_a_worker_that_gets_no_partitions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT_S", 0.0)
    with pytest.raises(SystemExit, match="the worker got no partitions"):
        memory.last_without(lambda: False)
