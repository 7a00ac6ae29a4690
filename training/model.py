"""The network: scaling, a family's layers, a head; scaled and unscaled inside the graph.

Owns the network and the two ways of calling it: `whole`, a plain functional model over complete
sequences, which is saved and exported, and `stepping`, the same layers with the states as explicit
inputs and outputs, which training uses to carry states across windows. Whatever a family's states
are, here they are flat, and all zeros where a key is cold. Knows neither files nor the training
loop. Called by fit.py and the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keyfold.export.bundle import MAX_STATE_BYTES
from keyfold.export.errors import Crash
from keyfold.export.events import OutputSpec
from keyfold.export.layers import Ahead as AheadLayer
from keyfold.export.layers import KnownOnly, RandomGain, Tokens
from keyfold.training.config import Model
from keyfold.training.data import Sequence
from keyfold.training.families.bidirectional import bidirectional
from keyfold.training.families.frames import frames
from keyfold.training.families.inside import EMBEDDING, read_inside
from keyfold.training.families.links import Link
from keyfold.training.families.recurrent import recurrent
from keyfold.training.families.seq2seq import pairs
from keyfold.training.families.transformer import transformer
from keyfold.training.forecast import Ahead
from keyfold.training.scaling import Scaling, scale_layer

FAMILIES: dict[str, Callable[[Model], Link]] = {
    "recurrent": recurrent,
    "transformer": transformer,
    "bidirectional": bidirectional,
}  # and frames, which also asks for the number of columns


@dataclass(frozen=True, slots=True)
class Network:
    """One set of layers, callable in two ways."""

    whole: Any  # keras.Model: x (B,T,F) -> y (B,T,O), from initial states
    stepping: Any  # keras.Model: [x, *states (B,size)] -> [y, *states]
    state_units: tuple[int, ...]  # size of every state tensor; a cold key's are zeros
    # As it begins it is worth something: the naive forecast, or a parent's weights.
    starts_worthy: bool = False


class ModelError(Crash):
    """The settings and the data make no network together."""


def build(settings: Model, scaling: Scaling, outputs: OutputSpec) -> Network:
    """Build the network with new weights, drawn from Keras's global seed.

    Raises ModelError, SettingsError or CellError before anything is trained.
    """
    return (_of_pairs if settings.family == "seq2seq" else _of_events)(settings, scaling, outputs)


def _of_events(settings: Model, scaling: Scaling, outputs: OutputSpec) -> Network:
    """Build a network that steps over events, or over their symbols."""
    if scaling.symbols and not scaling.width:  # of a text: how many there are was learned
        embedding = settings.embedding or EMBEDDING
        settings = replace(settings, tokens=scaling.symbols, embedding=embedding)
    before = _entry(settings, scaling, outputs)
    body = _body(settings, scaling.columns)
    head = _head(settings, scaling, outputs)
    ahead = None if scaling.ahead is None else _Forecasting(scaling.ahead, outputs)
    known = KnownOnly(settings.tokens, name="known")
    x = keras.Input((None, scaling.columns), name="x")
    event = None  # an event's vector, where it is more than its scaled columns
    if scaling.width:
        event = read_inside(settings, scaling.symbols, scaling.width, before, x)

    def connect(carried: list[Any] | None) -> tuple[Any, list[Any]]:
        z = x if event is None else event
        for layer in before if event is None else ():
            z = layer(z)
        z, after = body(z, carried)
        for layer in head:
            z = layer(z)
        if settings.tokens:
            return known([x, z]), after
        if ahead is None:
            return z, after
        return ahead(x, before[0](x) if event is None else event, z), after

    whole = keras.Model(x, connect(None)[0], name="keyfold")
    sizes = body.sizes()
    _check_size(sizes)
    if settings.memory:
        for number in range(len(settings.units)):
            _remember(whole.get_layer(f"recurrent{number}"), settings.memory)
    states = [keras.Input((size,), name=f"state{i}") for i, size in enumerate(sizes)]
    y, after = connect(states)
    stepping = keras.Model([x, *states], [y, *after], name="keyfold_stepping")
    return Network(whole, stepping, sizes, ahead is not None)


def _of_pairs(settings: Model, scaling: Scaling, outputs: OutputSpec) -> Network:
    """Build the network over whole pairs: no state is carried from one window to the next."""
    symbols = (scaling.symbols, len(outputs.names))
    whole = pairs(settings, symbols, settings.embedding or EMBEDDING)
    kept = settings.window * (settings.units[-1] + 1) + 2 * sum(settings.units)
    if kept * 4 > MAX_STATE_BYTES:
        raise ModelError(
            f"model: expected an encoder's states of at most {MAX_STATE_BYTES} bytes, got "
            f"{kept * 4}: lower model.window or model.units"
        )
    # A state of nothing: Keras unpacks a lone output, and training expects a list.
    nothing = keras.Input((1,), name="nothing")
    after = keras.layers.Identity(name="still_nothing")(nothing)
    return Network(whole, keras.Model([*whole.inputs, nothing], [*whole.outputs, after]), (1,))


def check_ids(settings: Model, sequences: Iterable[Sequence]) -> None:
    """Refuse events whose one feature is no id, where the network looks ids up.

    Raises ModelError; called before training, whose loss would only be said not to be finite.
    """
    if not settings.tokens:
        return
    for sequence in sequences:
        ids = sequence.x[:, 0]
        wrong = ids[(ids != np.floor(ids)) | (ids < 0) | (ids >= settings.tokens)]
        if len(wrong):
            raise ModelError(
                f"model.tokens: expected whole numbers from 0 to {settings.tokens - 1} in every "
                f"event, got {wrong[0]:g} under key {sequence.key!r}: raise model.tokens, or count "
                "from 0"
            )


def _body(settings: Model, columns: int) -> Link:
    if settings.family == "frames":
        return frames(settings, columns)
    return FAMILIES[settings.family](settings)


def _entry(settings: Model, scaling: Scaling, outputs: OutputSpec) -> list[Any]:
    """Return what an event's columns go through first: they are scaled, or looked up."""
    if not settings.tokens:
        noise, gain = settings.input_noise, settings.input_gain
        varied = [RandomGain(gain, name="gain")] if gain else []
        varied += [keras.layers.GaussianNoise(noise, name="noise")] if noise else []
        return [scale_layer(scaling), *varied]
    if len(scaling.mean) != 1 or outputs.kind == "forecast":
        raise ModelError(
            "model.embedding: expected one feature, a whole number, and a label, got "
            f"{len(scaling.mean)} columns and {outputs.kind}"
        )
    return [Tokens(settings.tokens, settings.embedding, name="tokens")]


def _check_size(sizes: tuple[int, ...]) -> None:
    if (size := sum(sizes) * 4) > MAX_STATE_BYTES:
        raise ModelError(
            f"model: expected states of at most {MAX_STATE_BYTES} bytes a key, got {size}: lower "
            "model.window, model.units, or a transformer's model.kv_heads"
        )


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
    if outputs.kind in ("classification", "transcription"):
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
