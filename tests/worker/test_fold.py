"""The fold over scheduled groups equals the fold of one event at a time, bit for bit.

Runs a real, tiny LSTM over random streams; NaN and overflow are made by a graph that multiplies.
Needs no service.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiplier import make_multiplier
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Tensors, initial_states
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.slots import Slots


@dataclass
class World:
    """A model, its slots and a fold over them."""

    model: Model
    slots: Slots
    fold: Fold


def world(model: Model, keys: int) -> World:
    slots = Slots(model.bundle.manifest)
    for number in range(keys):
        slots.add(0, b"%d" % number)
    return World(model, slots, Fold(model, slots, Metrics()))


def rows(model: Model, slots: NDArray[np.intp], x: NDArray[np.float32], first: int = 0) -> Rows:
    count = len(slots)
    offsets = np.arange(first, first + count, dtype=np.int64)
    outputs = len(model.bundle.manifest.outputs.names)
    return Rows(
        slots.copy(), x, offsets, offsets * 10, offsets * 10 + 3,
        np.zeros((count, outputs), np.float32), np.zeros(count, np.int64), {},
    )  # fmt: skip


def one_at_a_time(
    model: Model, slots: NDArray[np.intp], x: NDArray[np.float32]
) -> tuple[NDArray[np.float32], dict[int, dict[str, NDArray[Any]]]]:
    """Return what the offline fold says: outputs by row and the last state of each slot."""
    states: dict[int, dict[str, NDArray[Any]]] = {}
    y = np.zeros((len(slots), len(model.bundle.manifest.outputs.names)), np.float32)
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        before = states.get(slot) or initial_states(model.bundle.manifest, 1)
        out, states[slot] = model.step(x[row][None, None], np.ones(1, np.int32), before)
        y[row] = out[0, 0]
    return y, states


@pytest.fixture(scope="module", params=["regression", "classification"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_tiny_bundle(tmp_path_factory.mktemp("b"), hidden=5, kind=request.param))


@st.composite
def key_streams(draw: st.DrawFn) -> tuple[NDArray[np.intp], int, int]:
    """Return slots of up to 900 events (some -1: rejects), the number of keys, and a seed."""
    keys = draw(st.sampled_from([1, 3, 23, 24, 30, 100]))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    count = draw(st.integers(0, 900))
    uniform = draw(st.booleans())
    chosen = random.integers(0, keys, count) if uniform else random.zipf(1.4, count) % keys
    chosen[random.random(count) < draw(st.sampled_from([0.0, 0.1]))] = -1
    return chosen.astype(np.intp), keys, seed


@settings(max_examples=25, deadline=None)
@given(key_streams(), st.integers(1, 4))
def test_fold_over_groups_is_the_fold_of_one_event_at_a_time_bit_for_bit(
    model: Model, stream: tuple[NDArray[np.intp], int, int], micro_batches: int
) -> None:
    slots, keys, seed = stream
    x = np.random.default_rng(seed).normal(0, 2, (len(slots), 2)).astype(np.float32)
    want_y, want_states = one_at_a_time(model, slots, x)
    here = world(model, keys)
    got_y, got_steps = [np.zeros((0, want_y.shape[1]), np.float32)], [np.zeros(0, np.int64)]
    for part in np.array_split(np.arange(len(slots)), micro_batches):
        some = rows(model, slots[part], x[part], int(part[0]) if len(part) else 0)
        here.fold.apply(some)
        assert some.rejects == {}
        got_y.append(some.y)
        got_steps.append(some.steps)
    np.testing.assert_array_equal(np.concatenate(got_y), want_y)
    np.testing.assert_array_equal(np.concatenate(got_steps), _steps(slots))
    for slot, state in want_states.items():
        mine = np.flatnonzero(slots == slot)
        for name, tensor in state.items():
            np.testing.assert_array_equal(here.slots.tensors[name][slot], tensor[0])
        assert here.slots.steps[slot] == len(mine)
        assert here.slots.offsets[slot] == mine[-1]
        assert here.slots.times_ms[slot] == mine[-1] * 10
        assert here.slots.touched_ms[slot] == mine[-1] * 10 + 3
    untouched = set(range(keys)) - set(want_states)
    assert all(here.slots.steps[slot] == 0 for slot in untouched)


def _steps(slots: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return for each row the how-manieth event of its key it is, 0 for rejects."""
    counts: dict[int, int] = {}
    found = []
    for slot in slots.tolist():
        counts[slot] = counts.get(slot, 0) + 1
        found.append(counts[slot] if slot >= 0 else 0)
    return np.array(found, np.int64)


def test_nothing_to_step_calls_no_model(model: Model) -> None:
    here = world(model, 1)
    nothing = rows(model, np.full(3, -1, np.intp), np.zeros((3, 2), np.float32))
    here.fold.apply(nothing)
    assert nothing.steps.tolist() == [0, 0, 0]
    assert here.slots.steps.sum() == 0


# -- results that are not finite -------------------------------------------------------------------


@pytest.fixture(scope="module")
def multiplier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a model whose state overflows, and so does its output."""
    return Model(make_multiplier(tmp_path_factory.mktemp("multiplier")))


def test_event_whose_state_overflows_is_a_reject_and_its_key_s_state_stays(
    multiplier: Model,
) -> None:
    here = world(multiplier, 2)
    slots = np.array([0, 1, 0, 1, 0, 0], np.intp)
    x = np.array([[1e30], [2], [1e30], [3], [2], [0.5]], np.float32)
    some = rows(multiplier, slots, x)
    here.fold.apply(some)
    assert some.rejects == {2: NOT_FINITE}
    assert some.slots.tolist() == [0, 1, -1, 1, 0, 0]
    assert some.steps.tolist() == [1, 1, 0, 2, 2, 3]
    np.testing.assert_array_equal(
        some.y[:, 0], np.array([1 / np.float32(1e30), 0.5, 0, 1 / np.float32(6),
                                1 / np.float32(2e30), 1 / np.float32(1e30)], np.float32)
    )  # fmt: skip
    assert here.slots.tensors["s"][:2, 0].tolist() == [np.float32(1e30), 6.0]
    assert here.slots.steps[:2].tolist() == [3, 2]
    assert here.slots.offsets[:2].tolist() == [5, 3]


def test_event_whose_output_is_not_finite_is_a_reject_though_its_state_is(
    multiplier: Model,
) -> None:
    here = world(multiplier, 1)
    some = rows(multiplier, np.zeros(3, np.intp), np.array([[2], [0], [2]], np.float32))
    here.fold.apply(some)
    assert some.rejects == {1: NOT_FINITE}
    assert here.slots.tensors["s"][0, 0] == 4.0


def test_event_that_is_rejected_first_leaves_its_key_cold(multiplier: Model) -> None:
    here = world(multiplier, 1)
    some = rows(multiplier, np.zeros(2, np.intp), np.array([[0], [2]], np.float32))
    here.fold.apply(some)
    assert some.rejects == {0: NOT_FINITE}
    assert some.steps.tolist() == [0, 1]


def test_bad_event_of_one_key_leaves_the_bits_of_all_others_alone(multiplier: Model) -> None:
    slots = (np.arange(400) % 40).astype(np.intp)
    x = np.random.default_rng(0).normal(0, 1, (400, 1)).astype(np.float32)
    good = np.flatnonzero(np.arange(400) != 123)
    want, want_states = one_at_a_time(multiplier, slots[good], x[good])
    x[123] = np.inf  # no decoder lets this through; the step must not spread it either
    here = world(multiplier, 40)
    some = rows(multiplier, slots, x)
    here.fold.apply(some)
    assert some.rejects == {123: NOT_FINITE}
    np.testing.assert_array_equal(some.y[good], want)
    for slot, state in want_states.items():
        np.testing.assert_array_equal(here.slots.tensors["s"][slot], state["s"][0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e10, 1e38, 3.4e38]))
def test_inputs_near_the_end_of_float32_fold_the_same_in_any_group(
    model: Model, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    slots = random.integers(0, 30, 200).astype(np.intp)
    x = (random.uniform(-1, 1, (200, 2)) * scale).astype(np.float32)
    want, want_states = one_at_a_time(model, slots, x)
    here = world(model, 30)
    some = rows(model, slots, x)
    here.fold.apply(some)
    assert some.rejects == {}
    np.testing.assert_array_equal(some.y, want)
    for slot, state in want_states.items():
        np.testing.assert_array_equal(here.slots.tensors["c"][slot], state["c"][0])


class Broken(Model):
    """A model whose result is not finite where an event says so, and which counts its calls."""

    calls = 0

    def step(
        self, x: NDArray[np.float32], lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        self.calls += 1
        y, after = super().step(x, lengths, states)
        ill = (x >= ILL_STATE).any(axis=-1) & (np.arange(x.shape[1]) < lengths[:, None])
        after["c"][ill.any(axis=1)] = np.nan  # it would stay so: the output may hide it
        return np.where((x >= ILL_OUTPUT).any(axis=-1, keepdims=True), np.inf, y), after


ILL_STATE, ILL_OUTPUT = np.float32(1e6), np.float32(2e6)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    return Broken(make_tiny_bundle(tmp_path_factory.mktemp("b"), hidden=5))


@settings(max_examples=25, deadline=None)
@given(key_streams(), st.integers(1, 4), st.sampled_from([0.002, 0.05, 0.6, 1.0]))
def test_events_without_a_finite_result_are_left_out_of_any_group_bit_for_bit(
    broken: Broken, stream: tuple[NDArray[np.intp], int, int], micro_batches: int, share: float
) -> None:
    slots, keys, seed = stream
    draw = np.random.default_rng(seed)
    x = draw.normal(0, 2, (len(slots), 2)).astype(np.float32)
    ill = draw.random(len(slots)) < share
    x[ill, 0] = draw.choice([ILL_STATE, ILL_OUTPUT], int(ill.sum()))
    grouped, single = world(broken, keys), world(broken, keys)
    parts = [part for part in np.array_split(np.arange(len(slots)), micro_batches) if len(part)]
    mine = [rows(broken, slots[part], x[part], int(part[0])) for part in parts]
    alone = [rows(broken, slots[[i]], x[[i]], i) for i in range(len(slots))]
    for here, some in ((grouped, mine), (single, alone)):
        for one in some:
            here.fold.apply(one)
    for name in ("slots", "y", "steps"):
        found, want = ([getattr(one, name) for one in some] for some in (mine, alone))
        none = [getattr(rows(broken, slots[:0], x[:0]), name)]
        np.testing.assert_array_equal(np.concatenate(found + none), np.concatenate(want + none))
    rejects = {int(p[0]) + row for p, one in zip(parts, mine, strict=True) for row in one.rejects}
    assert rejects == set(np.flatnonzero(ill & (slots >= 0)).tolist())
    for name, tensor in grouped.slots.tensors.items():
        np.testing.assert_array_equal(tensor[:keys], single.slots.tensors[name][:keys])
    for name in ("steps", "offsets", "times_ms", "touched_ms"):
        both = (getattr(here.slots, name)[:keys] for here in (grouped, single))
        np.testing.assert_array_equal(*both)


def test_an_event_without_a_finite_result_costs_no_further_call_in_a_wave(broken: Broken) -> None:
    x = np.ones((200, 2), np.float32)
    x[7], here = ILL_STATE, world(broken, 200)
    broken.calls = 0
    some = rows(broken, np.arange(200), x)
    here.fold.apply(some)
    assert (broken.calls, some.rejects) == (1, {7: NOT_FINITE})


def test_an_event_without_a_finite_result_costs_some_calls_in_a_burst(broken: Broken) -> None:
    x = np.ones((3 * 256, 2), np.float32)
    x[300], here = ILL_OUTPUT, world(broken, 3)
    broken.calls = 0
    some = rows(broken, np.repeat(np.arange(3), 256), x)
    here.fold.apply(some)
    assert some.rejects == {300: NOT_FINITE}
    assert broken.calls <= 1 + 2 * 8  # halves of 256 steps, of one key


def test_event_that_is_rejected_here_is_a_sign_of_life_and_no_step(multiplier: Model) -> None:
    here = world(multiplier, 1)
    here.fold.apply(rows(multiplier, np.zeros(1, np.intp), np.array([[2]], np.float32), first=0))
    some = rows(multiplier, np.zeros(1, np.intp), np.array([[0]], np.float32), first=7)
    here.fold.apply(some)
    assert some.rejects == {0: NOT_FINITE}
    slots = here.slots
    assert (slots.times_ms[0], slots.touched_ms[0]) == (70, 73)
    assert (slots.steps[0], slots.offsets[0], slots.tensors["s"][0, 0]) == (1, 0, 2.0)
