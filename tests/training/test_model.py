"""The network: what it scales by, and that its two forms are one model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from keyfold.export.events import OutputSpec
from keyfold.training.config import Model
from keyfold.training.data import Sequence

keras = pytest.importorskip("keras")
from keyfold.training.model import build  # noqa: E402
from keyfold.training.scaling import Scaling, learn_scaling  # noqa: E402

pytestmark = pytest.mark.tensorflow
VALUE = OutputSpec("regression", ("value",))
CLASSES = OutputSpec("classification", ("p", "q", "r"))
SCALING = Scaling((1000.0, -3.0), (2.0, 0.5), 50.0, 20.0)


def sequence(x: Any, labels: Any) -> Sequence:
    x = np.asarray(x, np.float32)
    return Sequence("k", x, np.zeros(len(x), np.int64), np.asarray(labels, np.float32))


def test_scaling_is_learned_from_all_given_events_and_no_others() -> None:
    some = [sequence([[1, 5], [3, 5]], [0, np.nan]), sequence([[5, 5], [7, 5]], [100, 300])]
    scaling = learn_scaling(some, VALUE, label_cap=200)
    assert scaling.mean == (4.0, 5.0)
    # A constant feature is divided by 1, not by 0.
    np.testing.assert_allclose(scaling.deviation, (5**0.5, 1.0))
    assert scaling.label_mean == 100.0


def test_scaling_is_exact_where_the_mean_is_large() -> None:
    x = 16_000_000 + np.array([[-1.0], [1.0]] * 500)
    scaling = learn_scaling([sequence(x, np.zeros(1000))], CLASSES)
    assert scaling.mean == (16_000_000.0,)


def test_the_graph_scales_its_inputs_and_unscales_its_outputs() -> None:
    keras.utils.set_random_seed(1)
    network = build(Model(units=(4,)), SCALING, VALUE)
    plain = build(Model(units=(4,)), Scaling((0.0, 0.0), (1.0, 1.0), 0.0, 1.0), VALUE)
    plain.whole.set_weights(network.whole.get_weights())
    z = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    x = z * np.array(SCALING.deviation) + np.array(SCALING.mean)
    y = network.whole.predict_on_batch(x.astype(np.float32))
    np.testing.assert_allclose(y, 50 + 20 * plain.whole.predict_on_batch(z), rtol=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "gru", "simple_rnn"])
def test_steps_with_carried_state_equal_one_long_run(cell: Any) -> None:
    keras.utils.set_random_seed(2)
    settings = Model(cell, (5, 3), dense=4, dropout=0.5, input_noise=0.1)
    network = build(settings, SCALING, CLASSES)
    x = np.random.default_rng(0).normal((1000, -3), (2, 0.5), (3, 20, 2)).astype(np.float32)
    whole = network.whole.predict_on_batch(x)
    states = [np.zeros((3, units), np.float32) for units in network.state_units]
    parts, first = [], 0
    for steps in (1, 7, 12):
        y, *states = network.stepping.predict_on_batch([x[:, first : first + steps], *states])
        parts.append(y)
        first += steps
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(whole.sum(axis=-1), 1, atol=1e-6)


def test_units_remember_for_as_long_as_asked() -> None:
    keras.utils.set_random_seed(3)
    network = build(Model(units=(200,), memory=100), SCALING, VALUE)
    bias = network.whole.get_layer("recurrent0").cell.bias.numpy()
    forget = 1 / (1 + np.exp(-bias[200:400]))
    spans = 1 / (1 - forget)  # events until a cell has lost 1/e of what it held
    assert 1.9 < spans.min() < 10
    assert 90 < spans.max() < 102
    np.testing.assert_allclose(bias[:200], -bias[200:400])


def test_two_networks_from_one_seed_are_equal() -> None:
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        weights.append(build(Model(units=(4,)), SCALING, VALUE).whole.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
