"""The oracle's own reading of a key's threshold: the worker's, and honest about close choices."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyfold.export import dynamic as worker
from keyfold.export.events import Dynamic
from keyfold.worker.verify.offline_threshold import SPREAD, Judged, OfflineThreshold, choose

TOLERANCE = 1e-5


def some_errors(seed: int) -> NDArray[np.float64]:
    draw = np.random.default_rng(seed)
    errors = draw.gamma(2, 0.3, int(draw.integers(2, 200)))
    odd = draw.random(len(errors)) < draw.choice([0, 0.02, 0.1])
    errors[odd] += draw.uniform(1, 9, int(odd.sum()))
    return errors.astype(np.float32).astype(np.float64)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_is_the_worker_s_and_stays_within_the_tolerance(seed: int) -> None:
    errors = some_errors(seed)
    chosen, sure = choose(errors, TOLERANCE)
    if not sure:
        return
    assert worker.choose(errors[None])[0] == pytest.approx(chosen, rel=1e-9)
    draw = np.random.default_rng(seed)
    for _ in range(5):
        others = errors + draw.uniform(-TOLERANCE, TOLERANCE, len(errors))
        assert abs(worker.choose(others[None])[0] - chosen) <= SPREAD * TOLERANCE


def test_most_choices_are_sure() -> None:
    sure = [choose(some_errors(seed), TOLERANCE)[1] for seed in range(400)]
    assert sum(sure) > 360


@pytest.mark.parametrize("errors", [[0.0] * 9, [0.3] * 9, [0.3, 0.3, 0.300001]])
def test_of_errors_that_are_alike_nothing_is_sure(errors: list[float]) -> None:
    assert not choose(np.array(errors), TOLERANCE)[1]


def test_an_error_at_a_candidate_is_a_close_choice() -> None:
    errors = np.array([1.0] * 20 + [2.0] * 20 + [9.0])
    assert choose(errors, TOLERANCE)[1]
    low, high = 3.0, 9.0
    while high - low > 1e-9:  # until the odd one is 5 deviations above the mean, a candidate
        errors[-1] = (low + high) / 2
        far = (errors[-1] - errors.mean()) / errors.std() > 5
        low, high = (low, errors[-1]) if far else (errors[-1], high)
    assert not choose(errors, TOLERANCE)[1]
    errors[-1] += 0.05
    assert choose(errors, TOLERANCE)[1]


def test_an_error_just_below_the_lowest_candidate_is_a_close_choice() -> None:
    """Were it just above, another candidate than the highest one would be chosen."""
    close = np.array([1.0] * 7999 + [2.0] * 2000)
    mean, deviation = close.mean(), close.std()
    assert 0 < mean + 2 * deviation - 2.0 < 1e-4
    chosen, sure = choose(close, TOLERANCE)
    assert chosen == pytest.approx(mean + 10 * deviation)
    assert not sure
    assert choose(np.array([1.0] * 7 + [2.0] * 3), TOLERANCE)[1]


def test_the_fixed_threshold_stands_until_the_key_is_warm() -> None:
    own = OfflineThreshold(Dynamic(window=8, smoothing=0.5, warm_up=3), 7.0, TOLERANCE)
    memory = own.cold()
    found = []
    for score in (1.0, nan, 2.0, 4.0, 1.0):
        judged, memory = own.one(score, memory)
        found.append(judged)
    assert found[0] == Judged(7.0, 1.0)
    assert isnan(found[1].threshold)
    assert found[2] == Judged(7.0, 2.0)
    assert memory[2].tolist() == [4]
    assert memory[0][0, :4].tolist() == [1.0, 1.5, 2.75, 1.875]
    wanted = worker.choose(np.array([[1.0, 1.5, 2.75]]))[0]
    for judged, average in zip(found[3:], (2.75, 1.875), strict=True):
        assert judged.threshold == pytest.approx(wanted)
        assert judged.smoothed == average
