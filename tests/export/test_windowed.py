"""The bidirectional layer with look-ahead: what each direction sees, held to one made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

keras = pytest.importorskip("keras")

from keyfold.export.windowed import BidirectionalWindow  # noqa: E402

pytestmark = KERAS
WINDOW, AHEAD, STEPS = 5, 2, 9


def layer_and_x(cell: str) -> tuple[Any, Any]:
    keras.utils.set_random_seed(1)
    layer = BidirectionalWindow(cell, 3, WINDOW, look_ahead=AHEAD)
    x = np.random.default_rng(0).normal(size=(1, STEPS, 2)).astype(np.float32)
    layer.build(x.shape)
    return layer, x


@pytest.mark.parametrize("cell", ["lstm", "gru", "simple_rnn"])
def test_both_directions_end_at_the_event_that_is_described(cell: str) -> None:
    """Schuster and Paliwal 1997: forwards up to the event, backwards from the newest down to it."""
    layer, x = layer_and_x(cell)
    y = np.asarray(layer(x))[0]
    padded = np.concatenate([np.zeros((1, WINDOW - 1, 2), np.float32), x], axis=1)
    for t in range(STEPS):
        window = padded[:, t : t + WINDOW]
        at = WINDOW - 1 - AHEAD
        forth = np.asarray(layer.forward(window[:, : at + 1]))[0]
        back = np.asarray(layer.backward(window[:, at:]))[0]  # goes backwards by itself
        np.testing.assert_allclose(y[t], np.concatenate([forth, back]), atol=1e-6)


def test_the_forward_direction_does_not_see_later_events() -> None:
    layer, x = layer_and_x("lstm")
    other = x.copy()
    other[:, STEPS - AHEAD :] += 5.0  # what comes after the event that the last answer describes
    before, after = np.asarray(layer(x))[0, -1], np.asarray(layer(other))[0, -1]
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3:] - after[3:]).max() > 1e-3


def test_without_look_ahead_the_layer_is_what_it_was() -> None:
    layer, x = layer_and_x("lstm")
    plain = BidirectionalWindow("lstm", 3, WINDOW)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    padded = np.concatenate([np.zeros((1, WINDOW - 1, 2), np.float32), x], axis=1)
    last = padded[:, -WINDOW:]
    wanted = np.concatenate(
        [np.asarray(plain.forward(last))[0], np.asarray(plain.backward(last))[0]]
    )
    np.testing.assert_allclose(np.asarray(plain(x))[0, -1], wanted, atol=1e-6)
    assert BidirectionalWindow.from_config(layer.get_config()).look_ahead == AHEAD


@pytest.mark.parametrize("ahead", [-1, WINDOW])
def test_a_look_ahead_as_long_as_the_window_is_refused(ahead: int) -> None:
    with pytest.raises(ValueError, match=f"expected a look_ahead of 0 to {WINDOW - 1}"):
        BidirectionalWindow("lstm", 3, WINDOW, look_ahead=ahead)
