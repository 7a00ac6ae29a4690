"""A model of pairs taken apart: both graphs together are the model, whoever shares a call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

pytest.importorskip("tensorflow")

import keras
import onnx

from keyfold.export.bundle import Golden
from keyfold.export.convert import in_float64, reference
from keyfold.export.decode_proof import Taken, prove, taken
from keyfold.export.pairing import is_of_pairs
from keyfold.export.verify import Model as Truth
from keyfold.export.verify import ParityError, verify
from keyfold.training.families.seq2seq import pairs
from keyfold.training.settings_model import Model

pytestmark = KERAS
SYMBOLS = (30, 25)
LSTM = Model(family="seq2seq", attention="additive", window=9, units=(10, 8), dropout=0.1)
GRU = Model(family="seq2seq", cell="gru", attention="multiplicative", window=5, units=(8,))


def golden_of(pair: Taken) -> Golden:
    truth = Truth(
        reference(pair.encoder), reference(in_float64(pair.encoder)), (0.0,), (1.0,), None,
        SYMBOLS[0],
    )  # fmt: skip
    proof = verify(pair.read.onnx, pair.read.states, truth, max_steps=pair.read.max_steps)
    assert proof.identical
    return proof.golden


@pytest.mark.parametrize("settings", [LSTM, GRU], ids=["lstm", "gru"])
def test_both_graphs_are_the_model(tmp_path: Path, settings: Model) -> None:
    keras.utils.set_random_seed(3)
    pairs(settings, SYMBOLS, 6).save(tmp_path / "model.keras")
    pair = taken(keras.models.load_model(tmp_path / "model.keras"))
    proof = prove(pair, golden_of(pair), SYMBOLS)
    assert proof.largest_difference < 1e-6
    begins = dict(zip((s.input for s in proof.decode.states), proof.decode.begins, strict=True))
    last = len(settings.units) - 1
    assert begins["h0"] == f"h{last}"
    assert begins["ring1"] == f"ring{last + 1}"
    assert proof.golden.y.shape == (4, 12, SYMBOLS[1])
    for graph in (pair.read, pair.said):
        operators = {node.op_type for node in onnx.load_from_string(graph.onnx).graph.node}
        assert settings.cell.upper() in operators
        assert not operators & {"Loop", "Scan", "If"}


def test_a_decoder_that_begins_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.utils.set_random_seed(3)
    pair = taken(pairs(LSTM, SYMBOLS, 6))
    golden = golden_of(pair)
    begin: Any = lambda read, said: ("h1", "c1", "ring2", "count2", "h1", "h1")  # noqa: E731
    monkeypatch.setattr("keyfold.export.decode_proof.begins_of", begin)
    with pytest.raises(ParityError, match=r"decode graph, 48 symbols: expected probabilities"):
        prove(pair, golden, SYMBOLS)


def test_the_ring_holds_the_last_symbols_alone() -> None:
    """A source longer than the ring leaves what its last symbols led to."""
    pair = taken(pairs(replace(GRU, window=4), SYMBOLS, 6))
    ring = next(state for state in pair.read.states if state.input.startswith("ring"))
    assert ring.dims == (4, 8)
    from keyfold.export.states import cold
    from keyfold.export.verify import opened

    step, x = opened(pair.read.onnx, pair.read.states), np.arange(7, dtype=np.float32)
    y, after = step(x[None, :, None], np.array([7], np.int32), cold(pair.read.states, 1))
    assert np.array_equal(after[ring.input][0], y[0, 3:])
    assert after["count1"].tolist() == [[4.0]]


def test_other_models_are_none_of_pairs() -> None:
    x = keras.Input((None, 2))
    assert not is_of_pairs(keras.Model(x, keras.layers.LSTM(3, return_sequences=True)(x)))
    assert is_of_pairs(pairs(GRU, SYMBOLS, 6))
