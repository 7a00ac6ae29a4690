"""Sequence to sequence: the layers of an encoder and a decoder, and both taken out of one model.

Owns what is peculiar to a model of pairs. It is trained over x (B,T,2): in column 0 the symbols of
the source, in column 1 those said before each symbol of the answer, both padded with -1; its y
(B,T,O) are the answer's probabilities. Served it is two graphs: the encoder steps over the source's
symbols and keeps its last outputs in a ring, the decoder says symbol after symbol and attends to
that ring. Both are built here of the trained layers, by their names. Called by training (which
builds the model of pairs) and cli.py (which takes it apart).

The model: Sutskever, Vinyals and Le 2014 with attention, scored additively (Bahdanau, Cho and
Bengio 2015) or by a product (Luong, Pham and Manning 2015); as in Wu et al. 2016 the decoder's
first layer asks and its second is told, so that training needs no loop around the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keyfold.export.attention import KINDS, NOTHING
from keyfold.export.layers import KnownOnly
from keyfold.export.stateful import LayerState, Stateful, counted, joined, newest
from keyfold.export.states import StateSpec

# Names of layers, of which export takes the model apart.
SOURCE, ENCODER, SAID, ASKS, ATTENDS, TOLD, READOUT, CHANCES = (
    "source_symbols", "encoder", "said_symbols", "asks", "attends", "told", "readout", "chances",
)  # fmt: skip
NONE = -1.0  # in a column of symbols: there is none


@keras.saving.register_keras_serializable(package="keyfold")
class OneSide(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """x (B,T,2) -> the symbols of one column (B,T,1); where there is none, the first symbol."""

    def __init__(self, column: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.column = column

    def call(self, x: Any) -> Any:
        """Pick the column."""
        return keras.ops.maximum(x[..., self.column : self.column + 1], 0)

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,1)."""
        return (*shape[:-1], 1)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "column": self.column}


@keras.saving.register_keras_serializable(package="keyfold")
class LastRead(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """[e (B,T,H), x (B,T,2)] -> e at the source's last symbol (B,H)."""

    def call(self, inputs: Any) -> Any:
        """Pick each row's."""
        e, x = inputs
        last = keras.ops.sum(keras.ops.cast(x[..., 0] >= 0, "int32"), axis=1) - 1
        return tf.gather(e, last, axis=1, batch_dims=1)

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return (B,H)."""
        return (shapes[0][0], shapes[0][-1])


@keras.saving.register_keras_serializable(package="keyfold")
class Attend(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """[q (B,T,D), e (B,S,H), x (B,S,2)] -> what each q attends to among the source's e: (B,T,H)."""

    def __init__(self, kind: str, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        if kind not in KINDS or window < 1:
            raise ValueError(
                f"Attend: expected one of {', '.join(KINDS)} and a window, got {kind!r}, {window}"
            )
        self.kind = kind
        self.window = window  # most symbols of a source, when served

    def build(self, shapes: Any) -> None:
        """Make the weights."""
        asked, read = shapes[0][-1], shapes[1][-1]
        self.query = self.add_weight((asked, read), "glorot_uniform", name="query")
        if self.kind == "additive":
            self.key = self.add_weight((read, read), "glorot_uniform", name="key")
            self.key_bias = self.add_weight((read,), "zeros", name="key_bias")
            self.direction = self.add_weight((read,), "random_normal", name="direction")
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Attend to the source's symbols."""
        q, e, x = inputs
        return self.context(q, e, x[..., 0] >= 0)

    def context(self, q: Any, e: Any, there: Any) -> Any:
        """Return what q (B,T,D) attends to among e (B,S,H) where something is `there` (B,S)."""
        asked = keras.ops.matmul(q, self.query)
        if self.kind == "multiplicative":
            scores = keras.ops.matmul(asked, keras.ops.transpose(e, (0, 2, 1)))
        else:
            keys = keras.ops.matmul(e, self.key) + self.key_bias
            both = keras.ops.tanh(keys[:, None, :, :] + asked[:, :, None, :])
            scores = keras.ops.sum(both * self.direction, axis=-1)
        scores = keras.ops.where(there[:, None, :], scores, NOTHING)
        return keras.ops.matmul(keras.ops.softmax(scores, axis=-1), e)

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return (B,T,H)."""
        return (*shapes[0][:-1], shapes[1][-1])

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "kind": self.kind, "window": self.window}


class Remember(Stateful):
    """e (B,T,H) -> e; the last `window` of them, and how many there are, are its state."""

    def __init__(self, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.window = window

    def build(self, shape: Any) -> None:
        """Note the width."""
        self.width = shape[-1]
        self.built = True

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the ring, the newest last, and the count."""
        return LayerState("ring", (self.window, self.width)), LayerState("count", (1,))

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x."""
        ring, count = states
        after = [
            newest(joined(ring, x), lengths, self.window),
            counted(count, lengths, self.window),
        ]
        return x, after

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "window": self.window}


class Recall(Stateful):
    """q (B,T,D) -> what it attends to in the ring that Remember left, which stays as it is."""

    def __init__(self, attend: Attend, **settings: Any) -> None:
        super().__init__(**settings)
        self.attend, self.window = attend, attend.window
        self.width = attend.query.shape[-1]
        self.built = True

    @property
    def most_steps(self) -> int:
        """Largest T of one call: each symbol depends on the one before it anyway."""
        return 1

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return what is only read."""
        return LayerState("ring", (self.window, self.width)), LayerState("count", (1,))

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Attend to the last `count` places."""
        ring, count = states
        ages = keras.ops.cast(self.window - keras.ops.arange(self.window), count.dtype)
        return self.attend.context(x, ring, ages <= count), [ring, count]

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,H)."""
        return (*shape[:-1], self.width)


def is_of_pairs(model: Any) -> bool:
    """Say whether a model was trained on pairs."""
    return any(isinstance(layer, Attend) for layer in model.layers)


def encoder_of(model: Any) -> Any:
    """Return the encoder of a model of pairs: x (B,T,1) -> its outputs (B,T,H), which it keeps."""
    x = keras.Input((None, 1), name="x")
    symbols = model.get_layer(SOURCE)
    z = symbols(x)
    for layer in _encoders(model):
        z = layer(z)[0]
    z = Remember(model.get_layer(ATTENDS).window, name="remember")(z)
    return keras.Model(x, KnownOnly(symbols.count, name="known_source")([x, z]), name="encoder")


def decoder_of(model: Any) -> Any:
    """Return the decoder of a model of pairs: x (B,T,1) said before -> probabilities (B,T,O)."""
    x = keras.Input((None, 1), name="x")
    symbols, attend = model.get_layer(SAID), model.get_layer(ATTENDS)
    asks = model.get_layer(ASKS)(symbols(x))[0]
    context = Recall(attend, name="recall")(asks)
    told = model.get_layer(TOLD)(keras.layers.Concatenate(name="asked")([asks, context]))[0]
    said = model.get_layer(READOUT)(keras.layers.Concatenate(name="joined")([told, context]))
    y = model.get_layer(CHANCES)(said)
    return keras.Model(x, KnownOnly(symbols.count, name="known_said")([x, y]), name="decoder")


def begins_of(read: Sequence[StateSpec], said: Sequence[StateSpec]) -> tuple[str, ...]:
    """Return per state of the decoder's graph which of the encoder's graph it begins as.

    The ring and its count are the encoder's; every recurrent state is its last layer's output.
    """
    kept = {state.input.rstrip("0123456789"): state.input for state in read}  # the last of each
    names = (state.input.rstrip("0123456789") for state in said)
    return tuple(kept[name] if name in ("ring", "count") else kept["h"] for name in names)


def _encoders(model: Any) -> list[Any]:
    return [layer for layer in model.layers if layer.name.removeprefix(ENCODER).isdigit()]
