"""Ranges are counted as telemanom counts them: hand-computed cases and a brute-force twin."""

from __future__ import annotations

import pytest
from accuracy.ranges import Count, Range, count, flagged_ranges
from hypothesis import given
from hypothesis import strategies as st


def test_a_range_found_twice_counts_once_and_a_touch_is_enough() -> None:
    assert count([(10, 20), (50, 60)], [(5, 10), (18, 19), (30, 40)]) == Count(1, 1, 1)


def test_one_alert_over_two_anomalies_finds_both() -> None:
    assert count([(10, 20), (30, 40)], [(15, 35)]) == Count(found=2, missed=0, false=0)


def test_precision_counts_true_ranges_found_against_false_alarms() -> None:
    figures = Count(found=3, missed=1, false=2).figures()
    assert figures["precision"] == pytest.approx(3 / 5)
    assert figures["recall"] == pytest.approx(3 / 4)
    # (1 + 0.25) * 0.6 * 0.75 / (0.25 * 0.6 + 0.75)
    assert figures["f0.5"] == pytest.approx(0.625)


def test_nothing_found_is_worth_nothing() -> None:
    assert Count(0, 5, 0).figures() == {"precision": 0.0, "recall": 0.0, "f0.5": 0.0}
    assert (Count(1, 2, 3) + Count(1, 0, 1)) == Count(2, 2, 4)


def test_flags_near_each_other_are_one_alert() -> None:
    flags = [place in (3, 4, 8, 20) for place in range(30)]
    assert flagged_ranges(flags, 1) == [(3, 4), (8, 8), (20, 20)]
    assert flagged_ranges(flags, 4) == [(3, 8), (20, 20)]
    assert flagged_ranges(flags, 3) == [(3, 4), (8, 8), (20, 20)]


def brute(truth: list[bool], flags: list[bool]) -> Count:
    """Count step by step, with sets."""

    def sets(marks: list[bool]) -> list[set[int]]:
        found: list[set[int]] = []
        for step, mark in enumerate(marks):
            if mark and step and marks[step - 1]:
                found[-1].add(step)
            elif mark:
                found.append({step})
        return found

    right, made = sets(truth), sets(flags)
    hit = [one for one in right if any(one & other for other in made)]
    false = [one for one in made if not any(one & other for other in right)]
    return Count(len(hit), len(right) - len(hit), len(false))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_counting_agrees_with_a_twin_that_looks_at_every_step(
    steps: list[tuple[bool, bool]],
) -> None:
    truth, flags = [a for a, _ in steps], [b for _, b in steps]
    ranges: list[list[Range]] = [flagged_ranges(marks, 1) for marks in (truth, flags)]
    assert count(*ranges) == brute(truth, flags)
