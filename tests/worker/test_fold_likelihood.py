"""Texts' scores are the same bits however micro-batches and calls group their symbols.

Runs a real, tiny LSTM of next symbols over random texts; one character's embedding is NaN. Needs no
service.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_bundle import TEXT, make_language_bundle
from numpy.typing import NDArray
from text_bundle import BROKEN, odd_text

from keyfold.export.bundle import initial_states
from keyfold.export.likelihood import NEXT
from keyfold.export.text import Reader
from keyfold.worker import unrolled
from keyfold.worker.emission import ALERT, OUTPUT, Emission
from keyfold.worker.emit_settings import Emit
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import Rows
from keyfold.worker.slots import Slots

KEYS = 20
ONE = np.ones(1, np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_language_bundle(tmp_path_factory.mktemp("b")))


def rows(fold: Fold, slots: NDArray[np.intp], texts: list[str], first: int = 0) -> Rows:
    symbols = [Reader(TEXT).read(text) for text in texts]
    count = len(texts)
    offsets = np.arange(first, first + count, dtype=np.int64)
    return Rows(
        slots.copy(), np.concatenate([np.empty(0, np.float32), *symbols])[:, None], offsets,
        offsets * 10, offsets * 10 + 3, np.zeros((count, TEXT.size), np.float32),
        np.zeros(count, np.int64), {}, scores=fold.scores(count), verdicts=fold.verdicts(count),
        lengths=np.array([*map(len, symbols)], np.int64),
    )  # fmt: skip


def folded(model: Model, rule: Emission | None = None) -> tuple[Fold, Slots]:
    held = Slots(model.bundle.manifest, () if rule is None else rule.states)
    for number in range(KEYS):
        held.add(0, b"%d" % number)
    return Fold(model, held, Metrics(), rule), held


def by_hand(model: Model, slots: NDArray[np.intp], texts: list[str]) -> list[tuple[float, float]]:
    """Return mean and largest surprise of each event, reckoned symbol by symbol."""
    states: dict[int, Any] = {}
    newest: dict[int, Any] = {}
    found = []
    for slot, text in zip(slots.tolist(), texts, strict=True):
        if slot < 0 or BROKEN in text:
            found.append((math.nan, math.nan))
            continue
        after = states.get(slot) or initial_states(model.bundle.manifest, 1)
        y, surprises = newest.get(slot), []
        for symbol in Reader(TEXT).read(text):
            if y is not None:
                surprises.append(-math.log(y[int(symbol)]))
            out, after = model.step(np.full((1, 1, 1), symbol, np.float32), ONE, after)
            y = out[0, 0]
        states[slot], newest[slot] = after, y
        mean = sum(surprises) / len(surprises) if surprises else math.nan
        found.append((mean, max(surprises, default=math.nan)))
    return found


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, KEYS]), st.sampled_from([60, 1 << 16]))
@settings(max_examples=30, deadline=None)
def test_grouping_texts_changes_no_score(model: Model, seed: int, keys: int, most: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 50))
    slots = draw.integers(-1, keys, count).astype(np.intp)
    texts = [odd_text(draw) for _ in range(count)]
    fold, held = folded(model)
    whole = rows(fold, slots, texts)
    fold.apply(whole)
    assert whole.scores is not None
    stepped = whole.slots >= 0
    expected = np.array(by_hand(model, slots, texts))
    np.testing.assert_allclose(whole.scores[stepped], expected[stepped], rtol=1e-4)
    fold, again = folded(model)
    before, unrolled.MOST_STEPS = unrolled.MOST_STEPS, most
    try:
        cuts = np.sort(draw.integers(0, count + 1, 3)).tolist()
        for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
            some = rows(fold, slots[start:stop], texts[start:stop], start)
            fold.apply(some)
            assert some.scores is not None
            here = stepped[start:stop]
            assert some.scores[here].tobytes() == whole.scores[start:stop][here].tobytes()
    finally:
        unrolled.MOST_STEPS = before
    assert again.tensors[NEXT][:KEYS].tobytes() == held.tensors[NEXT][:KEYS].tobytes()


def test_a_cold_keys_first_symbol_is_not_judged_and_a_reject_leaves_no_trace(model: Model) -> None:
    fold, held = folded(model)
    some = rows(fold, np.zeros(3, np.intp), ["", "a" + BROKEN, "ab"])
    fold.apply(some)
    assert some.scores is not None
    assert np.isnan(some.scores[0]).all()
    assert list(some.rejects) == [1]
    y = held.tensors[NEXT][0]
    alone, _ = folded(model)
    twice = rows(alone, np.zeros(2, np.intp), ["", "ab"])
    alone.apply(twice)
    assert twice.scores is not None
    assert twice.scores[1].tobytes() == some.scores[2].tobytes()
    assert y.tobytes() == some.y[2].tobytes()


def test_an_alert_goes_by_the_score(model: Model) -> None:
    emit = Emit("all", "anomaly.score", above=5.58, alert_topic="alerts")
    rule = Emission.of(emit, model.bundle.manifest.outputs)
    fold, _ = folded(model, rule)
    draw = np.random.default_rng(1)
    texts = [odd_text(draw).replace(BROKEN, "") for _ in range(40)]
    some = rows(fold, np.arange(40, dtype=np.intp) % KEYS, texts)
    fold.apply(some)
    assert some.scores is not None
    assert some.verdicts is not None
    wanted = [OUTPUT | ALERT if score > 5.58 else OUTPUT for score in some.scores[:, 0].tolist()]
    assert some.verdicts.tolist() == wanted
    assert len(set(wanted)) == 2
    usual = Emission.of(Emit("when"), model.bundle.manifest.outputs)
    assert usual is not None
    assert usual.said == "a prediction is emitted when anomaly.flag is true"
