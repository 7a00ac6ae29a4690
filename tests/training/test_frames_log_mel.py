"""Events of raw samples through log mel powers: built, refused by name, and exported exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tf2onnx")

import keras
import onnx
from keras_marks import KERAS

from keyfold.export.convert import convert, in_float64, reference
from keyfold.export.events import OutputSpec
from keyfold.export.layers import RandomGain
from keyfold.export.log_mel import LogMel
from keyfold.export.verify import Model as Truth
from keyfold.export.verify import verify
from keyfold.training.model import build
from keyfold.training.scaling import Scaling
from keyfold.training.settings_model import Model

pytestmark = KERAS

SAMPLES = 40
SCALING = Scaling((0.0,) * SAMPLES, (1.0,) * SAMPLES, 0.0, 1.0)
FRONT: dict[str, Any] = {
    "family": "frames", "front": "log_mel", "sample_rate": 8000, "kernel": 16, "stride": 8,
    "filters": (6,),
}  # fmt: skip
WORDS = OutputSpec("transcription", ("", "yes", "no"))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_raw_samples_to_symbols_are_exported_exactly(cell: str) -> None:
    keras.utils.set_random_seed(4)
    network = build(Model(cell, (8,), input_gain=0.5, **FRONT), SCALING, WORDS)
    assert any(isinstance(layer, LogMel) for layer in network.whole.layers)
    assert any(isinstance(layer, RandomGain) for layer in network.whole.layers)
    graph = convert(network.whole)
    types = {node.op_type for node in onnx.load_from_string(graph.onnx).graph.node}
    assert cell.upper() in types
    assert not {"Loop", "Scan", "If", "RandomNormal", "RandomNormalLike"} & types
    truth = Truth(
        reference(network.whole), reference(in_float64(network.whole)), SCALING.mean,
        SCALING.deviation,
    )  # fmt: skip
    assert verify(graph.onnx, graph.states, truth).identical


def test_the_front_has_three_spectra_an_event_and_no_weights() -> None:
    network = build(Model(units=(4,), **{**FRONT, "stride": 12}), SCALING, WORDS)
    assert network.whole.get_layer("log_mel").output.shape == (None, None, 3, 6)
    assert network.whole.get_layer("log_mel").weights == []
    gain = build(Model(units=(4,), input_gain=0.5), SCALING, WORDS)
    x = np.random.default_rng(0).normal(size=(2, 3, SAMPLES)).astype(np.float32)
    served = np.asarray(gain.whole(x))
    assert not np.array_equal(np.asarray(gain.whole(x, training=True)), served)
    np.testing.assert_array_equal(np.asarray(gain.whole(x)), served)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sample_rate": 0}, "sample_rate: expected samples a second with front = 'log_mel'"),
        ({"front": ""}, "sample_rate: expected samples a second with front = 'log_mel', and 0"),
        ({"filters": (8, 8)}, r"filters: expected one number, the mel bands, .*got \(8, 8\)"),
        ({"family": "recurrent"}, "expected .* with family = 'recurrent', got"),
        ({"input_gain": -1.0}, "input_gain: expected at least 0, got -1.0"),
        ({"input_noise": -1.0}, "input_noise: expected at least 0, got -1.0"),
    ],
)
def test_settings_that_make_no_front_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Model(**{**FRONT, **changes})


def test_looked_up_ids_have_no_gain() -> None:
    with pytest.raises(ValueError, match="embedding: expected input_gain = 0 with it"):
        Model(embedding=4, tokens=9, input_gain=0.1)
