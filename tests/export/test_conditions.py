"""Scaling by operating condition: in Keras by hand-computed cases, and the same in ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

pytestmark = KERAS
pytest.importorskip("tensorflow")

import keras  # noqa: E402 - only where the training extra is installed
import onnxruntime as ort  # noqa: E402

from keyfold.export.conditions import StandardizeByCondition  # noqa: E402
from keyfold.export.convert import convert, in_float64, load_model  # noqa: E402

SETTINGS: dict[str, Any] = {
    "columns": [1],
    "spreads": [10.0],
    "centres": [[0.0], [100.0]],
    "means": [[5.0, 50.0], [1005.0, 50.0]],
    "deviations": [[2.0, 50.0], [4.0, 50.0]],
}


def test_an_event_is_scaled_by_the_nearest_condition() -> None:
    x = np.array([[[7.0, 10.0], [1009.0, 90.0], [7.0, 51.0]]], np.float32)
    y = np.asarray(StandardizeByCondition(**SETTINGS)(x))
    expected = [[[1.0, -0.8], [1.0, 0.8], [-249.5, 0.02]]]
    assert np.allclose(y, expected, atol=1e-5)


def test_of_two_conditions_at_the_same_distance_the_first_counts() -> None:
    y = np.asarray(StandardizeByCondition(**SETTINGS)(np.array([[[5.0, 50.0]]], np.float32)))
    assert y[0, 0, 0] == 0.0


def test_distances_are_in_units_of_each_columns_spread() -> None:
    layer = StandardizeByCondition(
        [0, 1],
        [1.0, 1000.0],
        [[0.0, 0.0], [5.0, 100.0]],
        [[0.0, 0.0], [1.0, 1.0]],
        [[1.0, 1.0]] * 2,
    )
    assert np.asarray(layer(np.array([[[1.0, 100.0]]], np.float32))).tolist() == [[[1.0, 100.0]]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"means": [[5.0, 50.0]]}, "a centre, means and deviations per condition"),
        ({"spreads": [1.0, 1.0]}, "and 2 spreads"),
        ({"spreads": [0.0]}, "positive spreads"),
        ({"deviations": [[2.0, 50.0], [0.0, 50.0]]}, "positive spreads and deviations"),
    ],
)
def test_contradictory_numbers_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        StandardizeByCondition(**{**SETTINGS, **change})


def test_a_saved_model_with_it_converts_to_the_same_function(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    x = keras.Input((None, 2))
    z = StandardizeByCondition(**SETTINGS, name="scale")(x)
    y = keras.layers.Dense(1)(keras.layers.LSTM(4, return_sequences=True)(z))
    keras.Model(x, y).save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras")
    draw = np.random.default_rng(1)
    which = draw.integers(2, size=(3, 20, 1))
    events = np.concatenate([1000.0 * which, 100.0 * which], axis=2) + draw.normal(size=(3, 20, 2))
    events = events.astype(np.float32)
    graph = convert(model)
    session = ort.InferenceSession(graph.onnx)
    cold = {state.input: np.zeros((3, *state.dims), np.float32) for state in graph.states}
    got = session.run(["y"], {"x": events, "lengths": np.full(3, 20, np.int32), **cold})[0]
    expected = np.asarray(model(events))
    assert expected.std() > 0.01
    assert np.abs(got - expected).max() < 1e-5
    assert np.abs(np.asarray(in_float64(model)(events)) - expected).max() < 1e-4
