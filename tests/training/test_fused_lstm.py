"""The fused LSTM is Keras's LSTM: values, gradients, and which layers it stands in for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keyfold.export.events import OutputSpec
from keyfold.training.config import Fit, Model
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402

from keyfold.training.fit import fit  # noqa: E402
from keyfold.training.fused_lstm import fused, is_plain  # noqa: E402
from keyfold.training.losses import squared_error  # noqa: E402
from keyfold.training.model import build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = pytest.mark.tensorflow
SCALING = Scaling((0.0, 0.0), (1.0, 1.0), 0.0, 1.0)
VALUE = OutputSpec("regression", ("value",))


def everything(network: Any, tensors: list[Any]) -> list[Any]:
    """Return outputs, states after, and gradients by weights, inputs and first states."""
    weights = [weight.value for weight in network.stepping.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y, *states = network.stepping(tensors, training=True)
        loss = tf.reduce_sum(y * y) + sum(tf.reduce_sum(state**3) for state in states)
    return [y, *states, *tape.gradient(loss, [*weights, *tensors])]


def test_values_and_all_gradients_are_those_of_the_loop() -> None:
    keras.utils.set_random_seed(1)
    network = build(Model(units=(5, 3)), SCALING, VALUE)
    tensors = [tf.random.normal((4, 9, 2))]
    tensors += [tf.random.normal((4, units)) for units in network.state_units]
    expected = everything(network, tensors)
    with fused(network.stepping, wanted=True):
        got = everything(network, tensors)
    differ = False
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
        differ |= not np.array_equal(a, b)
    assert differ, "expected another order of the sums, got the loop itself"
    for a, b in zip(expected, everything(network, tensors), strict=True):
        assert np.array_equal(a, b)  # and the layers are Keras's own again


def test_only_plain_narrow_layers_are_computed_so() -> None:
    lstm = keras.layers.LSTM
    assert is_plain(lstm(64))
    for other in (
        lstm(128),
        lstm(8, activation="relu"),
        lstm(8, recurrent_dropout=0.1),
        lstm(8, use_bias=False),
        lstm(8, go_backwards=True),
        keras.layers.GRU(8),
    ):
        assert not is_plain(other)


def test_a_training_by_it_comes_to_the_same_model_and_is_repeatable() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(6, 40, 2)).astype(np.float32)
    times = np.zeros(40, np.int64)
    sequences = tuple(Sequence(str(n), a, times, np.roll(a[:, 0], 1)) for n, a in enumerate(x))
    part = Part(sequences, (0,) * 6)
    settings = Fit(seed=3, rows=3, window=8, passes=2, learning_rate=0.01)
    losses, weights = [], []
    for chosen in (settings, replace(settings, fused=True), replace(settings, fused=True)):
        keras.utils.set_random_seed(3)
        network = build(Model(units=(6,)), SCALING, VALUE)
        losses.append(fit(network, (part, part), chosen, squared_error(1.0)).validation_loss)
        weights.append(network.whole.get_weights())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] == losses[2]
    assert all(np.array_equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
