"""Scores: how far an event is from what was forecast for it at the key's previous event.

Every grouping of the same events into calls gives the same bits; a model in plain Python, one event
at a time, says what they are. Needs no service.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyfold.export.anomaly import FORECAST, Back
from keyfold.export.dynamic import choose
from keyfold.export.outputs import Anomaly, Dynamic, Forecast, OutputSpec
from keyfold.export.states import cold

NAN = float("nan")
TWO = OutputSpec.of_forecast(
    Forecast(("a", "b"), (1, 2), (0.1, 0.5, 0.9)), Anomaly((0.5, 2.0), 3.0, 0.001)
)


def back_of(outputs: OutputSpec) -> Back:
    back = Back.of(outputs)
    assert isinstance(back, Back)
    return back


def score(y: list[list[float]], observed: list[list[float]]) -> NDArray[np.float32]:
    """Score one key's events in one call; y are point forecasts at horizon 1."""
    fields = tuple("abc"[: len(y[0])])
    back = back_of(
        OutputSpec.of_forecast(
            Forecast(fields), Anomaly((0.5, 2.0, 1.0)[: len(fields)], 3.0, 0.001)
        )
    )
    arrays = np.array([y], np.float32), np.array([observed], np.float32), np.array([len(y)])
    found: NDArray[np.float32] = back.run(*arrays, cold(back.states, 1))[0][0]
    return found


def test_only_a_forecast_with_an_anomaly_has_a_back() -> None:
    assert Back.of(OutputSpec("regression", ("y",))) is None
    assert Back.of(OutputSpec.of_forecast(Forecast(("a",)))) is None
    assert [(s.input, s.dims) for s in back_of(TWO).states] == [(FORECAST, (2,))]


def test_score_is_the_largest_scaled_error_and_names_its_field() -> None:
    found = score([[1, 10], [2, 20], [3, 30]], [[9, 9], [2, 11], [2, 28]])
    np.testing.assert_array_equal(found, [[NAN, NAN], [2, 0], [4, 1]])


def test_field_that_is_not_observed_does_not_count() -> None:
    found = score([[1, 10]] * 4, [[1, 10], [NAN, 14], [2, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(found, [[NAN, NAN], [2, 1], [2, 0], [NAN, NAN]])


def test_event_without_values_still_makes_the_next_forecast() -> None:
    found = score([[1.0], [5.0], [0.0]], [[1], [NAN], [6]])
    np.testing.assert_array_equal(found[:, 0], [NAN, NAN, 2])


def test_score_of_extremes_stays_finite() -> None:
    found = score([[-3e38], [0]], [[0], [3e38]])
    assert found[1, 0] == np.finfo(np.float32).max


def test_score_uses_the_quantile_nearest_to_the_median_at_the_first_horizon() -> None:
    back = back_of(TWO)
    y = np.arange(12, dtype=np.float32).reshape(1, 1, 12)
    _, states = back.run(y, np.zeros((1, 1, 2), np.float32), np.array([1]), cold(back.states, 1))
    assert states[FORECAST].tolist() == [[1, 7]]


OWN = OutputSpec.of_forecast(
    Forecast(("a",)), Anomaly((1.0,), 3.0, 0.001, Dynamic(window=64, smoothing=0.5, warm_up=32))
)


def judged(errors: list[float]) -> NDArray[np.float32]:
    """Return threshold and number to compare for one key's errors, from its second event on."""
    back = back_of(OWN)
    observed = np.array([[0.0], *([e] for e in errors)], np.float32)[None]
    y, lengths = np.zeros_like(observed), np.array([len(errors) + 1])
    found: NDArray[np.float32] = back.run(y, observed, lengths, cold(back.states, 1))[0][0, 1:, 2:]
    return found


def test_new_key_is_judged_by_the_fixed_threshold() -> None:
    found = judged([0.5, 4.0] * 15)
    np.testing.assert_array_equal(found, [[3.0, 0.5], [3.0, 4.0]] * 15)


def test_warm_key_is_judged_by_its_own_threshold_which_finds_what_the_fixed_one_does_not() -> None:
    quiet = [0.01 + 0.001 * (n % 5) for n in range(63)]
    found = judged([*quiet, 1.0, *quiet])
    assert (found[31:63, 0] < 0.02).all()
    flags = found[:, 1] > found[:, 0]
    assert flags[63]
    assert not flags[:63].any()
    assert not flags[80:].any(), "it calms down again"


def test_errors_that_are_all_alike_leave_the_fixed_threshold() -> None:
    assert (judged([0.5] * 40)[:, 0] == 3.0).all()


def test_own_threshold_of_extreme_errors_stays_finite() -> None:
    assert np.isfinite(judged([0.0, 3e38] * 32)).all()


def plain_choice(errors: list[float]) -> float:
    """Choose as section 3.2 of arXiv 1802.04431 writes it, one candidate after the other."""
    mean, deviation = float(np.mean(errors)), float(np.std(errors))
    best, chosen = -math.inf, mean + 10 * deviation
    for z in np.arange(2.0, 10.5, 0.5):
        limit = mean + float(z) * deviation
        rest = [e for e in errors if e < limit]
        above = [e >= limit for e in errors]
        if not any(above):
            continue
        runs = sum(now and not before for before, now in pairwise([False, *above]))
        fall = (mean - float(np.mean(rest))) / mean + (deviation - float(np.std(rest))) / deviation
        objective = fall / (sum(above) + runs**2)
        if objective > best:
            best, chosen = objective, limit
    return chosen


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=4, max_size=40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(50, 2000)), max_size=4),
)
def test_choice_is_that_of_the_paper(base: list[int], peaks: list[tuple[int, int]]) -> None:
    errors = [float(number) for number in base]
    for place, height in peaks:
        errors[place % len(errors)] = float(height)
    if len(set(errors)) == 1:
        assert np.isnan(choose(np.array([errors]))[0])
        return
    padded = np.array([[NAN] * 5 + errors, [NAN] + errors + [1.0] * 4])
    assert choose(padded)[0] == pytest.approx(plain_choice(errors), rel=1e-9)


def test_own_threshold_is_the_same_bits_in_every_grouping() -> None:
    draw = np.random.default_rng(3)
    back = back_of(OWN)
    data = []
    for count in (150, 90, 33):
        y = draw.normal(0, 1, (count, 1)).astype(np.float32)
        seen = y + draw.standard_t(2, (count, 1)).astype(np.float32)
        data.append((y, np.where(draw.random((count, 1)) < 0.1, np.float32(NAN), seen)))
    counts = [len(y) for y, _ in data]
    alone = [[(key, 1)] for key, count in enumerate(counts) for _ in range(count)]
    mixed: list[list[tuple[int, int]]] = []
    left = list(counts)
    while any(left):
        keys = draw.permutation([key for key, count in enumerate(left) if count])
        call = [(int(key), int(draw.integers(1, min(left[key], 40) + 1))) for key in keys]
        for key, count in call:
            left[key] -= count
        mixed.append(call)
    assert in_calls(back, alone, data, 0.0) == in_calls(back, mixed, data, 3e38)


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def keys_in_calls(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Return how many events each key has and, call by call, which keys' next events are in it."""
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    left, calls = list(counts), []
    while any(left):
        chosen = draw(st.permutations([key for key, count in enumerate(left) if count]))
        call = [
            (key, draw(st.integers(1, left[key])))
            for key in chosen[: draw(st.integers(1, len(chosen)))]
        ]
        for key, count in call:
            left[key] -= count
        calls.append(call)
    return counts, calls


def in_calls(
    back: Back,
    calls: list[list[tuple[int, int]]],
    data: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    garbage: float,
) -> list[bytes]:
    """Run the keys' events as the calls say; return each key's scores and states as bytes."""
    states: list[dict[str, NDArray[Any]]] = [cold(back.states, 1) for _ in data]
    done, found = [0] * len(data), [b""] * len(data)
    for call in calls:
        longest = max(count for _, count in call) + 1
        y, observed = (
            np.full((len(call), longest, arrays.shape[1]), garbage, np.float32)
            for arrays in data[0]
        )
        for row, (key, count) in enumerate(call):
            for whole, part in zip((y, observed), data[key], strict=True):
                whole[row, :count] = part[done[key] : done[key] + count]
        gathered = {n: np.concatenate([states[k][n] for k, _ in call]) for n in states[0]}
        scores, after = back.run(y, observed, np.array([c for _, c in call]), gathered)
        for row, (key, count) in enumerate(call):
            assert np.isnan(scores[row, count:]).all()
            found[key] += scores[row, :count].tobytes()
            states[key] = {name: value[row : row + 1] for name, value in after.items()}
            done[key] += count
    for spec in back.states:
        assert all(state[spec.input].dtype == spec.dtype for state in states)
    return [
        scores + b"".join(state[spec.input].tobytes() for spec in back.states)
        for scores, state in zip(found, states, strict=True)
    ]


@settings(deadline=None)
@given(st.data(), keys_in_calls(), st.sampled_from([0.0, NAN, 3e38]))
def test_every_grouping_of_the_same_events_gives_the_same_bits(
    draw: st.DataObject, case: tuple[list[int], list[list[tuple[int, int]]]], garbage: float
) -> None:
    counts, calls = case
    back = back_of(TWO)
    data = []
    for count in counts:
        outputs = draw.draw(st.lists(NUMBERS, min_size=count, max_size=count))
        values = st.tuples(*[st.just(NAN) | NUMBERS] * 2)
        seen = draw.draw(st.lists(values, min_size=count, max_size=count))
        wide = np.array(outputs, np.float32)[:, None] * np.linspace(-0.5, 1, 12, dtype=np.float32)
        data.append((wide, np.array(seen, np.float32)))
    alone = [[(key, 1)] for key, count in enumerate(counts) for _ in range(count)]
    found = in_calls(back, calls, data, garbage)
    assert found == in_calls(back, alone, data, 0.0)
    for (y, observed), got in zip(data, found, strict=True):
        numbers = np.frombuffer(got[: 8 * len(y)], np.float32).reshape(-1, 2)
        before = [NAN, NAN]
        for t in range(len(y)):
            errors = [
                min(abs(float(o) - b) / s, float(np.finfo(np.float32).max))
                for o, b, s in zip(observed[t], before, (0.5, 2.0), strict=True)
            ]
            known = [error for error in errors if not math.isnan(error)]
            if known:
                assert numbers[t, 0] == np.float32(max(known))
                assert errors[int(numbers[t, 1])] == max(known)
            else:
                assert np.isnan(numbers[t]).all()
            before = [float(y[t, 1]), float(y[t, 7])]
