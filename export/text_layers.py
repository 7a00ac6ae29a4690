"""Keras layers that read the text of one event: a row of symbols becomes one vector.

Owns them: picking columns, embedding symbols, and three ways to encode what was embedded (mean and
maximum, convolutions, a recurrent layer through the symbols). No layer reaches from one event to
another; places that hold no symbol (text.py: END) change nothing, wherever a row is cut. Called by
training (to build) and convert.py (to load).

Letters: B rows, T events, N places of a text, E numbers of a symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keyfold.export.stateful import steps_within
from keyfold.export.text import END

CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
POOLS = ("mean", "max")
LARGEST = 1e9  # of an embedded number, far below the end of float32


@keras.saving.register_keras_serializable(package="keyfold")
class Pick(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Take `count` columns from `first` on: (..., F) -> (..., count)."""

    def __init__(self, first: int, count: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.first, self.count = first, count

    def call(self, x: Any) -> Any:
        """Pick."""
        return x[..., self.first : self.first + self.count]

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (..., count)."""
        return (*shape[:-1], self.count)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "first": self.first, "count": self.count}


@keras.saving.register_keras_serializable(package="keyfold")
class Symbols(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Embed symbols: numbers (B,T,N) as floats -> (B,T,N,E), zeros where there is no symbol.

    What is no symbol's number is taken for the nearest one: decoding makes no such number, but
    whatever stands beyond a row's length must not end the worker.
    """

    def __init__(self, count: int, width: int, **settings: Any) -> None:
        super().__init__(**settings)
        if count < 1 or width < 1:
            raise ValueError(f"Symbols: expected symbols and a width, got {count} and {width}")
        self.count, self.width = count, width

    def build(self, shape: Any) -> None:
        """Make the table."""
        self.table = self.add_weight((self.count, self.width), "uniform", name="table")
        self.built = True

    def call(self, x: Any) -> Any:
        """Look symbols up."""
        places = keras.ops.cast(keras.ops.floor(x + 0.5), "int32")  # bounded as integers: no NaN
        places = keras.ops.clip(places, 0, self.count - 1)
        there = keras.ops.cast(keras.ops.not_equal(places, END), self.compute_dtype)
        return keras.ops.take(self.table, places, axis=0) * there[..., None]

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,N,E)."""
        return (*shape, self.width)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "count": self.count, "width": self.width}


class OfTexts(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """A layer [symbols (B,T,N), embedded (B,T,N,E)] -> (B,T,D). Empty text gives zeros."""

    @property
    def width(self) -> int:
        """Return D; the layer must be built."""
        raise NotImplementedError

    @property
    def numbers(self) -> int:
        """How many numbers one event takes in memory while it is read, all its places at once."""
        return self.places * (2 * self.each + self.width)

    @property
    def most_steps(self) -> int:
        """Largest T of one call."""
        return steps_within(self.numbers)

    def build(self, shapes: Any) -> None:
        """Note N and E."""
        self.places, self.each = int(shapes[1][2]), int(shapes[1][3])
        self.built = True

    def filled(self, symbols: Any) -> Any:
        """Return 1 where there is a symbol, else 0: (B,T,N,1)."""
        return keras.ops.cast(symbols > END + 0.5, self.compute_dtype)[..., None]

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return (B,T,D)."""
        return (*shapes[0][:-1], self.width)


@keras.saving.register_keras_serializable(package="keyfold")
class Pooled(OfTexts):
    """The mean and the maximum of what each symbol has become, as far as `of` names them."""

    def __init__(self, of: Sequence[str] = POOLS, **settings: Any) -> None:
        super().__init__(**settings)
        if not of or not set(of) <= set(POOLS):
            raise ValueError(f"Pooled: expected some of {', '.join(POOLS)}, got {list(of)}")
        self.of = tuple(of)

    @property
    def width(self) -> int:
        """Return D."""
        return len(self.of) * self.each

    def call(self, inputs: Any) -> Any:
        """Pool."""
        symbols, z = inputs
        there = self.filled(symbols)
        found = [pooled(z, there, how) for how in self.of]
        return found[0] if len(found) == 1 else keras.ops.concatenate(found, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "of": list(self.of)}


@keras.saving.register_keras_serializable(package="keyfold")
class Convolved(OfTexts):
    """Filters over neighbouring symbols, each at the place where it is strongest.

    Kim 2014 (arXiv 1408.5882): for each width so many filters, ReLU, maximum over the places. A
    filter begins at each symbol and sees zeros behind the last one.
    """

    def __init__(self, filters: int, widths: Sequence[int], **settings: Any) -> None:
        super().__init__(**settings)
        if filters < 1 or not widths or min(widths) < 1:
            raise ValueError(f"Convolved: expected filters and widths, got {filters}, {widths}")
        self.filters, self.widths = filters, tuple(map(int, widths))

    def build(self, shapes: Any) -> None:
        """Make the filters."""
        super().build(shapes)
        self.kernels = [
            self.add_weight(
                (wide * self.each, self.filters), "glorot_uniform", name=f"kernel{number}"
            )
            for number, wide in enumerate(self.widths)
        ]
        self.bias = self.add_weight((self.width,), "zeros", name="bias")

    @property
    def numbers(self) -> int:
        """What filters see is in memory, too."""
        return self.places * ((2 + max(self.widths)) * self.each + 2 * self.width)

    @property
    def width(self) -> int:
        """Return D."""
        return len(self.widths) * self.filters

    def call(self, inputs: Any) -> Any:
        """Convolve."""
        symbols, z = inputs
        longer = keras.ops.pad(z, [[0, 0], [0, 0], [0, max(self.widths) - 1], [0, 0]])
        found = []
        for wide, kernel in zip(self.widths, self.kernels, strict=True):
            seen = [longer[:, :, first : first + self.places] for first in range(wide)]
            # One product for all places of all events: a row's bits hang on no other row.
            found.append(keras.ops.matmul(keras.ops.concatenate(seen, axis=-1), kernel))
        each = keras.ops.relu(keras.ops.concatenate(found, axis=-1) + self.bias)
        return keras.ops.max(each * self.filled(symbols), axis=2)  # none is below 0

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "widths": list(self.widths),
        }


@keras.saving.register_keras_serializable(package="keyfold")
class ReadThrough(OfTexts):
    """A recurrent layer through the symbols of a text, forwards, and backwards if asked to.

    Each direction begins at the text's own end and is taken at the other: its last state, or with
    `pool` the maximum of its states at all symbols.
    """

    # What stands in for the recurrent layers while convert.py traces: (layer, z) -> its output.
    stand_in: Callable[[Any, Any], Any] | None = None

    def __init__(
        self, cell: str, units: int, both: bool = True, pool: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        if cell not in CELLS or units < 1:
            raise ValueError(f"ReadThrough: expected lstm or gru and units, got {cell!r}, {units}")
        self.cell, self.units, self.both, self.pool = cell, units, both, pool
        names = ("forward", "backward") if both else ("forward",)
        self.directions = tuple(
            CELLS[cell](units, return_sequences=True, dtype=self.dtype_policy, name=name)
            for name in names
        )

    def build(self, shapes: Any) -> None:
        """Make the weights of each direction."""
        super().build(shapes)
        for layer in self.directions:
            layer.build((None, self.places, self.each))

    @property
    def numbers(self) -> int:
        """Gates of every place are in memory, too."""
        return self.places * (3 * self.each + 8 * self.units)

    @property
    def width(self) -> int:
        """Return D."""
        return len(self.directions) * self.units

    def call(self, inputs: Any) -> Any:
        """Read."""
        symbols, z = inputs
        events = keras.ops.shape(z)[1]
        there = keras.ops.reshape(self.filled(symbols), (-1, self.places, 1))
        z = keras.ops.reshape(z, (-1, self.places, self.each))
        found = [self._read(layer, z, there) for layer in self.directions[:1]]
        # Turned within its own length, and so without the places behind it.
        found += [self._read(layer, _turned(z, there), there) for layer in self.directions[1:]]
        y = found[0] if len(found) == 1 else keras.ops.concatenate(found, axis=-1)
        return keras.ops.reshape(y, (-1, events, self.width))

    def _read(self, layer: Any, z: Any, there: Any) -> Any:
        states = layer(z) if self.stand_in is None else self.stand_in(layer, z)
        if self.pool:
            return pooled(states, there, "max")
        last = there - keras.ops.pad(there[:, 1:], [[0, 0], [0, 1], [0, 0]])  # 1 at the last symbol
        return keras.ops.sum(states * last, axis=1)  # of one state and zeros: exact

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        names = ("cell", "units", "both", "pool")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def pooled(z: Any, there: Any, how: str) -> Any:
    """Return the mean or maximum of z (..., N, E) over the places that are `there` (..., N, 1)."""
    count = keras.ops.sum(there, axis=-2)  # (..., 1)
    if how == "max":
        largest = keras.ops.max(z * there - (1.0 - there) * LARGEST, axis=-2)
        return largest * keras.ops.minimum(count, 1.0)
    # As a product: how a runtime adds along an axis hangs on how many rows there are.
    total = keras.ops.matmul(keras.ops.swapaxes(there, -1, -2), z)
    return keras.ops.squeeze(total, axis=-2) / keras.ops.maximum(count, 1.0)


def _turned(z: Any, there: Any) -> Any:
    """Turn the symbols of each row of z (M,N,E), of those that are `there` (M,N,1)."""
    count = keras.ops.cast(keras.ops.sum(there, axis=1), "int32")  # (M,1)
    places = count - 1 - keras.ops.arange(z.shape[1], dtype="int32")
    return tf.gather(z, keras.ops.maximum(places, 0), axis=1, batch_dims=1)
