"""The recurrent model: scaling, recurrent layers, a head; scaled and unscaled inside the graph.

Owns the network and the two ways of calling it: `whole`, a plain functional model over complete
sequences, which is saved and exported, and `stepping`, the same layers with the states as explicit
inputs and outputs, which training uses to carry states across windows. Knows neither files nor the
training loop. Called by fit.py and the commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keyfold.export.events import OutputSpec
from keyfold.export.layers import Ahead as AheadLayer
from keyfold.training.config import Model
from keyfold.training.forecast import Ahead
from keyfold.training.scaling import Scaling, scale_layer

CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "simple_rnn": keras.layers.SimpleRNN}


@dataclass(frozen=True, slots=True)
class Network:
    """One set of layers, callable in two ways."""

    whole: Any  # keras.Model: x (B,T,F) -> y (B,T,O), from initial states
    stepping: Any  # keras.Model: [x, *states (B,H)] -> [y, *states]
    state_units: tuple[int, ...]  # H of every state tensor
    # As it begins it is worth something: the naive forecast, or a parent's weights.
    starts_worthy: bool = False


def build(settings: Model, scaling: Scaling, outputs: OutputSpec) -> Network:
    """Build the network with new weights, drawn from Keras's global seed."""
    scale = scale_layer(scaling)
    before: list[Any] = [scale]
    if settings.input_noise:
        before.append(keras.layers.GaussianNoise(settings.input_noise, name="noise"))
    recurrent = [
        CELLS[settings.cell](units, return_sequences=True, return_state=True, name=f"recurrent{i}")
        for i, units in enumerate(settings.units)
    ]
    dropouts = [
        keras.layers.Dropout(settings.dropout, name=f"drop{i}") for i in range(len(recurrent))
    ]
    head = _head(settings, scaling, outputs)
    ahead = None if scaling.ahead is None else _Forecasting(scaling.ahead, outputs)

    x = keras.Input((None, len(scaling.mean)), name="x")
    tensors_per_layer = 2 if settings.cell == "lstm" else 1
    states = [
        keras.Input((units,), name=f"state{i}_{j}")
        for i, units in enumerate(settings.units)
        for j in range(tensors_per_layer)
    ]

    def connect(carried: list[Any] | None) -> tuple[Any, list[Any]]:
        z, after = x, []
        for layer in before:
            z = layer(z)
        for i, (layer, dropout) in enumerate(zip(recurrent, dropouts, strict=True)):
            mine = slice(i * tensors_per_layer, (i + 1) * tensors_per_layer)
            z, *last = layer(z, initial_state=None if carried is None else carried[mine])
            after += last
            z = dropout(z)
        for layer in head:
            z = layer(z)
        return (z if ahead is None else ahead(x, scale(x), z)), after

    whole = keras.Model(x, connect(None)[0], name="keyfold")
    if settings.memory:
        for layer in recurrent:
            _remember(layer, settings.memory)
    y, after = connect(states)
    stepping = keras.Model([x, *states], [y, *after], name="keyfold_stepping")
    return Network(whole, stepping, tuple(state.shape[1] for state in states), ahead is not None)


def _remember(layer: Any, longest: int) -> None:
    """Set an LSTM's gate biases so that its units forget after 1 to `longest` events.

    "Chrono initialization" (Tallec and Ollivier 2018, arXiv 1804.11188). Keras's own forgets within
    a few events, and from there a trend over a hundred is hard to find.
    """
    bias, units = layer.cell.bias.numpy(), layer.units
    spans = keras.random.uniform((units,), 1.0, max(longest, 2), dtype="float32")
    forget = np.log(keras.ops.convert_to_numpy(spans))
    bias[:units], bias[units : 2 * units] = -forget, forget  # the gates are input, forget, ...
    layer.cell.bias.assign(bias)


def _head(settings: Model, scaling: Scaling, outputs: OutputSpec) -> list[Any]:
    layers: list[Any] = []
    if settings.dense:
        layers.append(keras.layers.Dense(settings.dense, activation="relu", name="dense"))
    if outputs.kind == "forecast":
        return layers  # the rest is _Forecasting's
    if outputs.kind == "classification":
        return [*layers, keras.layers.Dense(len(outputs.names), "softmax", name="probabilities")]
    unscale = keras.layers.Rescaling(scaling.label_deviation, scaling.label_mean, name="unscale")
    return [*layers, keras.layers.Dense(1, name="value"), unscale]


class _Forecasting:
    """The head of a forecast: newest values and learned changes.

    Before training every change is nothing, so that the model begins as the naive forecast "it
    stays as it is" and only ever has to be better. The changes also see the scaled inputs
    themselves: what one event shows need not pass through the memory.
    """

    def __init__(self, ahead: Ahead, outputs: OutputSpec) -> None:
        self._joined = keras.layers.Concatenate(name="joined")
        self._change = keras.layers.Dense(
            len(outputs.names), kernel_initializer="zeros", name="change"
        )
        quantiles = 1 if outputs.forecast is None else max(1, len(outputs.forecast.quantiles))
        self._ahead = AheadLayer(
            ahead.sources, ahead.offsets, ahead.scales, quantiles, name="ahead"
        )

    def __call__(self, x: Any, scaled: Any, z: Any) -> Any:
        return self._ahead([x, self._change(self._joined([z, scaled]))])
