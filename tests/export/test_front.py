"""The fold before the graph: last values, time since the last event, running standardisation.

The states make every grouping of the same events into calls give the same bits; an independent,
one-event-at-a-time model in plain Python says what the right values are. Needs no service.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyfold.export.features import FeatureSpec, Field
from keyfold.export.front import LAST, MOMENTS, TIME, Front
from keyfold.export.states import cold

NAN = float("nan")
FULL = FeatureSpec(
    (
        Field("plain"),
        Field("temp", missing="last", fill=5.0),
        Field("mode", "category", ("a", "b"), missing="last"),
        Field("own", missing="mask", fill=7.0, standardise=True),
        Field("both", missing="last", fill=3.0, standardise=True),
        Field("always", standardise=True),
    ),
    since_last=True,
)


def front_of(features: FeatureSpec) -> Front:
    front = Front.of(features)
    assert front is not None
    return front


def fold(features: FeatureSpec, rows: list[list[float]], times: list[int]) -> NDArray[np.float32]:
    """Run one key's events in one call."""
    front = front_of(features)
    x = np.array([rows], np.float32)
    times_ms = np.array([times], np.int64)
    done, _ = front.run(x, times_ms, np.array([len(rows)]), cold(front.states, 1))
    row: NDArray[np.float32] = done[0]
    return row


def test_nothing_per_key_is_no_front() -> None:
    assert Front.of(FeatureSpec.numbers("a", "b")) is None
    masked = FeatureSpec((Field("a", missing="mask"), Field("b", "category", ("x",))))
    assert Front.of(masked) is None


def test_states_hold_only_what_is_needed() -> None:
    assert [s.input for s in front_of(FULL).states] == [LAST, TIME, MOMENTS]
    assert [(s.dims, s.dtype) for s in front_of(FULL).states] == [
        ((4,), "float32"),
        ((), "int64"),
        ((3, 3), "float64"),
    ]
    only = FeatureSpec((Field("a"),), since_last=True)
    assert [s.input for s in front_of(only).states] == [TIME]


def test_missing_value_is_the_last_one_and_before_any_the_fill() -> None:
    features = FeatureSpec((Field("a", missing="last", fill=5.0),))
    x = fold(features, [[NAN, 1], [2, 0], [NAN, 1], [NAN, 1], [3, 0]], [0] * 5)
    assert x.tolist() == [[5, 1], [2, 0], [2, 1], [2, 1], [3, 0]]


def test_since_last_is_the_log_of_seconds_and_never_below_0() -> None:
    features = FeatureSpec((Field("a"),), since_last=True)
    x = fold(features, [[1, 0]] * 4, [10_000, 11_000, 11_000, 500])
    np.testing.assert_allclose(x[:, 1], [0, math.log(2), 0, 0], rtol=1e-6)


def test_event_times_at_the_limits_do_not_overflow() -> None:
    features = FeatureSpec((Field("a"),), since_last=True)
    limit = int(8.64e15)
    x = fold(features, [[1, 0]] * 3, [-limit, limit, -limit])
    np.testing.assert_allclose(x[:, 1], [0, math.log1p(2 * limit / 1000), 0], rtol=1e-6)


def test_standardisation_includes_the_current_value_and_knows_only_the_key_s_own() -> None:
    features = FeatureSpec((Field("a", standardise=True),))
    values = [4.0, 8.0, 6.0, 6.0]
    x = fold(features, [[v] for v in values], [0] * 4)
    for i, value in enumerate(values[1:], 1):
        past = np.array(values[: i + 1])
        assert x[i, 0] == pytest.approx((value - past.mean()) / past.std(), abs=1e-6)
    assert x[0, 0] == 0


def test_constant_value_stands_at_0() -> None:
    features = FeatureSpec((Field("a", standardise=True),))
    assert fold(features, [[0.1]] * 5, [0] * 5).tolist() == [[0]] * 5


def test_missing_value_changes_no_moments() -> None:
    masked = FeatureSpec((Field("a", missing="mask", fill=1e6, standardise=True),))
    x = fold(masked, [[4, 0], [8, 0], [1e6, 1], [6, 0]], [0] * 4)
    assert x[2].tolist() == [0, 1]
    np.testing.assert_allclose(x[[0, 1, 3], 0], [0, 1, 0], atol=1e-6)
    last = FeatureSpec((Field("a", missing="last", fill=1e6, standardise=True),))
    x = fold(last, [[NAN, 1], [4, 0], [8, 0], [NAN, 1], [6, 0]], [0] * 5)
    np.testing.assert_allclose(x[:, 0], [0, 0, 1, 1, 0], atol=1e-6)


def test_largest_numbers_stay_finite() -> None:
    features = FeatureSpec((Field("a", standardise=True),))
    x = fold(features, [[3e38], [-3e38], [3e38], [1e-45], [-1e-45]], [0] * 5)
    assert np.isfinite(x).all()


def test_inputs_are_left_as_they_are() -> None:
    front = front_of(FULL)
    x = np.ones((2, 3, len(FULL.columns)), np.float32)
    states = cold(front.states, 2)
    before = x.copy(), {name: value.copy() for name, value in states.items()}
    front.run(x, np.zeros((2, 3), np.int64), np.array([3, 1]), states)
    np.testing.assert_array_equal(x, before[0])
    for name, value in states.items():
        np.testing.assert_array_equal(value, before[1][name])


# -- one event at a time, in plain Python ----------------------------------------------------------


@dataclass
class Plain:
    """What one key's state means, without arrays; float arithmetic is the same IEEE double."""

    features: FeatureSpec

    def __post_init__(self) -> None:
        self.last: dict[int, np.float32] = {}
        self.moments: dict[int, tuple[float, float, float]] = {}
        self.time: int | None = None

    def step(self, row: list[float], time_ms: int) -> list[float]:
        result, at = list(row), 0
        for field in self.features.fields:
            width = len(field.value_columns)
            missing = field.missing != "error" and row[at + width] == 1
            for column in range(at, at + width):
                if field.missing == "last" and not missing:
                    self.last[column] = np.float32(row[column])
                if field.missing == "last":
                    result[column] = float(self.last.get(column, np.float32(field.fill)))
            if field.standardise:
                result[at] = self._standardised(field, at, result[at], missing)
            at += len(field.columns)
        if self.features.since_last:
            gap = 0 if self.time is None else max(0, time_ms - self.time)
            result[at] = float(np.float32(np.log1p(np.array([gap / 1000]))[0]))
            self.time = time_ms
        return result

    def _standardised(self, field: Field, at: int, value: float, missing: bool) -> float:
        count, mean, m2 = self.moments.get(at, (0.0, 0.0, 0.0))
        if not missing:
            count += 1
            off = value - mean
            mean += off / count
            m2 += off * (value - mean)
            self.moments[at] = (count, mean, m2)
        shown = not missing or field.missing == "last"
        spread = math.sqrt(m2 / count) if count else 0.0
        return float(np.float32((value - mean) / spread)) if shown and spread else 0.0


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def events_of_a_key(draw: st.DrawFn) -> list[tuple[list[float], int]]:
    events = []
    for _ in range(draw(st.integers(1, 9))):
        gone = [draw(st.booleans()) for _ in range(4)]
        temp, mode, own, both = gone
        row = [draw(NUMBERS), NAN if temp else draw(NUMBERS), float(temp)]
        row += [NAN, NAN, 1.0] if mode else [0.0, 1.0, 0.0]
        row += [7.0, 1.0] if own else [draw(NUMBERS), 0.0]
        row += [NAN, 1.0] if both else [draw(NUMBERS), 0.0]
        row += [draw(NUMBERS), 0.0]
        events.append((row, draw(st.integers(-(10**15), 10**15))))
    return events


Calls = list[list[tuple[int, int]]]  # per call: (key, how many of its next events)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[tuple[list[float], int]]], Calls]:
    keys = draw(st.lists(events_of_a_key(), min_size=1, max_size=4))
    left = [len(events) for events in keys]
    calls: Calls = []
    while any(left):
        chosen = draw(st.permutations([key for key, count in enumerate(left) if count]))
        some = chosen[: draw(st.integers(1, len(chosen)))]
        call = [(key, draw(st.integers(1, left[key]))) for key in some]
        for key, count in call:
            left[key] -= count
        calls.append(call)
    return keys, calls


@settings(deadline=None)
@given(case=cases(), padding=st.integers(0, 3), garbage=st.sampled_from([0.0, NAN, 3e38, -1.0]))
def test_every_grouping_of_the_same_events_gives_the_same_bits(
    case: tuple[list[list[tuple[list[float], int]]], Calls], padding: int, garbage: float
) -> None:
    keys, calls = case
    front = front_of(FULL)
    width = len(FULL.columns)
    states: list[dict[str, NDArray[Any]]] = [cold(front.states, 1) for _ in keys]
    done = [0] * len(keys)
    found: list[list[NDArray[np.float32]]] = [[] for _ in keys]
    for call in calls:
        longest = max(count for _, count in call) + padding
        x = np.full((len(call), longest, width), garbage, np.float32)
        times_ms = np.full((len(call), longest), np.iinfo(np.int64).min if padding else 3, np.int64)
        for row, (key, count) in enumerate(call):
            for t, (event, time_ms) in enumerate(keys[key][done[key] : done[key] + count]):
                x[row, t], times_ms[row, t] = event, time_ms
        gathered = {n: np.concatenate([states[k][n] for k, _ in call]) for n in states[0]}
        lengths = np.array([count for _, count in call], np.int32)
        result, after = front.run(x, times_ms, lengths, gathered)
        assert np.isfinite(result).all()
        for row, (key, count) in enumerate(call):
            found[key].append(result[row, :count])
            states[key] = {name: value[row : row + 1] for name, value in after.items()}
            done[key] += count
    for key, events in enumerate(keys):
        plain = Plain(FULL)
        wanted = np.array([plain.step(row, time_ms) for row, time_ms in events], np.float32)
        assert np.concatenate(found[key]).tobytes() == wanted.tobytes()
        for spec in front.states:
            assert states[key][spec.input].dtype == spec.dtype
            assert states[key][spec.input].shape == (1, *spec.dims)


@pytest.mark.parametrize("length", [1, 513])
def test_long_rows_give_the_bits_of_single_events(length: int) -> None:
    # Wide and long arrays take other loops in numpy than short ones do.
    draw = np.random.default_rng(length)
    front = front_of(FULL)
    rows = 37
    x = draw.normal(0, 50, (rows, length, len(FULL.columns))).astype(np.float32)
    for column, name in enumerate(FULL.columns):
        if name.endswith("?"):
            gone = draw.random((rows, length)) < 0.3
            x[:, :, column] = gone
            if name in ("temp?", "both?"):
                x[:, :, column - 1][gone] = NAN
            if name == "mode?":
                x[:, :, column - 2][gone] = x[:, :, column - 1][gone] = NAN
    times_ms = draw.integers(0, 10**7, (rows, length))
    whole, _ = front.run(x, times_ms, np.full(rows, length), cold(front.states, rows))
    states: Any = cold(front.states, rows)
    for t in range(length):
        one, states = front.run(x[:, t : t + 1], times_ms[:, t : t + 1], np.ones(rows, int), states)
        assert one.tobytes() == whole[:, t : t + 1].tobytes()
