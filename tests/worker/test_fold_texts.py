"""Texts are folded event by event, however micro-batches and calls group their symbols.

Runs a real, tiny LSTM behind an embedding over random texts; one character's embedding is NaN.
Needs no service.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from text_bundle import BROKEN, TEXT, make_text_bundle, odd_text

from keyfold.export.bundle import initial_states
from keyfold.export.text import Reader
from keyfold.worker import unrolled
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.slots import Slots

KEYS = 40
ONE = np.ones(1, np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_text_bundle(tmp_path_factory.mktemp("b")))


def rows(slots: NDArray[np.intp], texts: list[str], first: int = 0) -> Rows:
    read = Reader(TEXT).read
    symbols = [read(text) for text in texts]
    offsets = np.arange(first, first + len(texts), dtype=np.int64)
    return Rows(
        slots.copy(), np.concatenate([np.empty(0, np.float32), *symbols])[:, None], offsets,
        offsets * 10, offsets * 10 + 3, np.zeros((len(texts), 3), np.float32),
        np.zeros(len(texts), np.int64), {}, lengths=np.array([*map(len, symbols)], np.int64),
    )  # fmt: skip


def one_at_a_time(model: Model, slots: NDArray[np.intp], texts: list[str]) -> dict[str, Any]:
    """Return what the offline fold says: outputs by row, steps and states by slot, rejects."""
    read = Reader(TEXT).read
    states: dict[int, Any] = {}
    steps = dict.fromkeys(range(KEYS), 0)
    found: dict[str, Any] = {"y": {}, "rejects": set(), "states": states, "steps": steps}
    for row, (slot, text) in enumerate(zip(slots.tolist(), texts, strict=True)):
        if slot < 0:
            continue
        if BROKEN in text:
            found["rejects"].add(row)
            continue
        after = states.get(slot) or initial_states(model.bundle.manifest, 1)
        y = np.zeros((1, 1, 3), np.float32)
        for symbol in read(text):
            y, after = model.step(np.full((1, 1, 1), symbol, np.float32), ONE, after)
        states[slot], found["y"][row] = after, y[0, 0]
        steps[slot] += 1
    return found


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 30, 40]), st.sampled_from([60, 900, 1 << 16])
)
@settings(max_examples=40, deadline=None)
def test_grouping_texts_changes_nothing(model: Model, seed: int, keys: int, most: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(0, 80))
    slots = draw.integers(-1, keys, count).astype(np.intp)
    texts = [odd_text(draw) for _ in range(count)]
    expected = one_at_a_time(model, slots, texts)
    held = Slots(model.bundle.manifest)
    for number in range(KEYS):
        held.add(0, b"%d" % number)
    fold = Fold(model, held, Metrics())
    cuts = np.sort(draw.integers(0, count + 1, int(draw.integers(0, 4)))).tolist()
    before = unrolled.MOST_STEPS
    unrolled.MOST_STEPS = most
    try:
        for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
            some = rows(slots[start:stop], texts[start:stop], start)
            fold.apply(some)
            check(some, held, expected, slots, start)
    finally:
        unrolled.MOST_STEPS = before
    for slot, states in expected["states"].items():
        for name, tensor in states.items():
            np.testing.assert_allclose(held.tensors[name][slot], tensor[0], atol=2e-5)
        assert held.steps[slot] == expected["steps"][slot]


def check(some: Rows, held: Slots, expected: Any, slots: NDArray[np.intp], start: int) -> None:
    """Compare a micro-batch's rows with what they must be."""
    for place in range(len(some.offsets)):
        row = start + place
        if row in expected["y"]:
            np.testing.assert_allclose(some.y[place], expected["y"][row], atol=2e-5)
            slot = slots[row]
            assert some.steps[place] == int((slots[: row + 1] == slot).sum()) - len(
                [one for one in expected["rejects"] if one <= row and slots[one] == slot]
            )
        assert (some.rejects.get(place) == NOT_FINITE) == (row in expected["rejects"])
    for slot in set(some.slots[some.slots >= 0].tolist()):
        newest = int(np.flatnonzero(some.slots == slot)[-1])
        assert held.offsets[slot] == some.offsets[newest]


def test_a_reject_is_a_sign_of_life_and_nothing_else(model: Model) -> None:
    held = Slots(model.bundle.manifest)
    held.add(0, b"k")
    fold = Fold(model, held, Metrics())
    fold.apply(rows(np.zeros(1, np.intp), ["fine"]))
    before = {name: tensor[0].copy() for name, tensor in held.tensors.items()}
    some = rows(np.zeros(2, np.intp), ["", "a" + BROKEN], 1)
    some.slots[0] = -1
    fold.apply(some)
    assert some.rejects == {1: NOT_FINITE}
    assert all(np.array_equal(held.tensors[name][0], before[name]) for name in before)
    assert (held.steps[0], held.offsets[0]) == (1, 0)
    assert (held.times_ms[0], held.touched_ms[0]) == (20, 23)


def test_a_text_longer_than_a_call_carries_its_state_on(model: Model) -> None:
    held = Slots(model.bundle.manifest)
    held.add(0, b"k")
    text = "a long line of symbols, " * 40  # calls take 16 steps
    some = rows(np.zeros(1, np.intp), [text])
    Fold(model, held, Metrics()).apply(some)
    expected = one_at_a_time(model, np.zeros(1, np.intp), [text])
    np.testing.assert_allclose(some.y[0], expected["y"][0], atol=2e-5)
    assert held.steps[0] == 1
