"""Waves and bursts: whatever the stream of keys, per-key order holds and nothing is left out.

Properties over uniform, zipf and single-key streams; the shapes that make it fast are held by
examples. Needs nothing but numpy.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyfold.worker.schedule import MAX_BURST_ROWS, MAX_PADDING, MAX_ROWS, Group, schedule

Slots = NDArray[np.intp]


@st.composite
def streams(draw: st.DrawFn) -> Slots:
    """Slots of up to 3,000 events: uniform, zipf or one key, with gaps between slot numbers."""
    count = draw(st.integers(0, 3000))
    keys = draw(st.sampled_from([1, 2, 23, 24, 25, 64, 65, 600, 2000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        chosen = random.integers(0, keys, count)
    else:
        chosen = np.minimum(random.zipf(1.3, count), keys) - 1
    numbers = random.permutation(3 * keys)[:keys]
    return numbers[chosen].astype(np.intp)


MAX_STEPS = st.sampled_from([1, 2, 7, 512])


def real(group: Group) -> NDArray[np.bool_]:
    """Return which places (B,T) of a group are events."""
    mask: NDArray[np.bool_] = np.arange(group.events.shape[1]) < group.lengths[:, None]
    return mask


@given(streams(), MAX_STEPS)
def test_every_event_runs_exactly_once_on_its_own_slot(slots: Slots, max_steps: int) -> None:
    seen = []
    for group in schedule(slots, max_steps):
        where = real(group)
        rows = np.broadcast_to(group.slots[:, None], where.shape)
        np.testing.assert_array_equal(slots[group.events[where]], rows[where])
        seen.append(group.events[where])
        assert group.steps == where.sum()
    events = np.sort(np.concatenate(seen)) if seen else np.empty(0, np.intp)
    np.testing.assert_array_equal(events, np.arange(len(slots)))


@given(streams(), MAX_STEPS)
def test_events_of_a_key_run_in_offset_order(slots: Slots, max_steps: int) -> None:
    last: dict[int, int] = {}
    for group in schedule(slots, max_steps):
        for slot, events, length in zip(
            group.slots.tolist(), group.events.tolist(), group.lengths.tolist(), strict=True
        ):
            own = [last.get(slot, -1), *events[:length]]
            assert own == sorted(set(own))
            last[slot] = own[-1]


@given(streams(), MAX_STEPS)
def test_groups_stay_within_the_model_s_limits(slots: Slots, max_steps: int) -> None:
    for group in schedule(slots, max_steps):
        rows, steps = group.events.shape
        assert len(np.unique(group.slots)) == rows == len(group.lengths)
        assert 1 <= rows <= MAX_ROWS
        assert 1 <= steps <= max_steps
        assert group.lengths.min() >= 1
        assert group.lengths.max() == steps
        assert group.lengths.dtype == np.int32
        # Padding points at an event that exists: its numbers are read, never used.
        assert (group.events[~real(group)] == 0).all()
        if steps > 1:
            assert rows <= MAX_BURST_ROWS


@given(streams(), MAX_STEPS)
def test_schedule_is_a_function_of_its_input(slots: Slots, max_steps: int) -> None:
    first, second = schedule(slots, max_steps), schedule(slots.copy(), max_steps)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for one, other in ((a.slots, b.slots), (a.events, b.events), (a.lengths, b.lengths)):
            np.testing.assert_array_equal(one, other)


def test_no_events_are_no_groups() -> None:
    assert schedule(np.empty(0, np.intp), 512) == []


def test_many_keys_with_an_event_each_run_as_one_wave_per_512_rows() -> None:
    shapes = [g.events.shape for g in schedule(np.arange(1024, dtype=np.intp), 512)]
    assert shapes == [(512, 1), (512, 1)]


def test_one_hot_key_runs_as_bursts_over_time() -> None:
    shapes = [g.events.shape for g in schedule(np.zeros(1300, np.intp), 512)]
    assert shapes == [(1, 512), (1, 512), (1, 276)]


@pytest.mark.parametrize("keys", [8, 24, 200])
def test_hot_key_beside_many_others_costs_few_calls(keys: int) -> None:
    slots = np.r_[np.zeros(1000, np.intp), np.arange(1, keys, dtype=np.intp)]
    groups = schedule(slots, 512)
    assert len(groups) <= 4
    assert sum(g.events.size for g in groups) <= MAX_PADDING * len(slots)
