"""Custom Keras layers that a training run may hold, beside Keras's own.

Owns what a saved model needs in order to be loaded again, here and in export. Every layer is a pure
function of its configuration, without variables: its numbers become constants of the ONNX graph
(Keras's Normalization keeps variables, which tf2onnx turns into extra graph inputs). Imported by
training (to build) and by convert (to load); the worker never sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="keyfold")
class Standardize(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Subtract each feature's mean and divide by its deviation: (..., F) -> (..., F).

    The mean is subtracted first: x * scale + offset would cancel badly in float32 where the mean is
    large against the deviation. Both are rounded to float32 here, once, so that the layer is the
    same function in any arithmetic.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], **settings: Any) -> None:
        super().__init__(**settings)
        if len(mean) != len(deviation) or not all(d > 0 for d in deviation):
            raise ValueError("Standardize: expected as many positive deviations as means")
        self.mean = tuple(map(float, mean))
        self.deviation = tuple(map(float, deviation))

    def call(self, x: Any) -> Any:
        """Scale x."""
        mean = np.array(self.mean, np.float32)
        scale = np.float32(1) / np.array(self.deviation, np.float32)
        return (x - keras.ops.convert_to_tensor(mean.tolist(), x.dtype)) * (
            keras.ops.convert_to_tensor(scale.tolist(), x.dtype)
        )

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {
            **super().get_config(),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
        }


@keras.saving.register_keras_serializable(package="keyfold")
class Ahead(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Turn learned changes into forecasts: [x (...,F), change (...,O)] -> y (...,O).

    Every output is the newest value of its field (or a constant, where the model does not see the
    field) and a change in units of how much the field changes anyway. A change of nothing is the
    forecast that everything stays as it is. With `quantiles` the outputs come in groups of so many,
    each one above the one before: a group's lowest is free, the others add softplus of theirs.
    """

    def __init__(
        self,
        sources: Sequence[int],
        offsets: Sequence[float],
        scales: Sequence[float],
        quantiles: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if not len(sources) == len(offsets) == len(scales) or len(scales) % quantiles:
            raise ValueError("Ahead: expected as many sources as offsets and scales, in groups")
        self.sources = tuple(map(int, sources))  # per output: column of x; -1: none
        self.offsets = tuple(map(float, offsets))  # per output, where there is no column
        self.scales = tuple(map(float, scales))  # per output
        self.quantiles = quantiles  # outputs of a group

    def call(self, inputs: Any) -> Any:
        """Add the changes to the newest values."""
        x, change = inputs

        def constant(values: Any) -> Any:
            rounded = np.array(values, np.float32).tolist()
            return keras.ops.convert_to_tensor(rounded, change.dtype)

        if self.quantiles > 1:
            change = self._ascending(change, constant)
        # A product with zeros and ones picks columns; tf2onnx turns it into one MatMul.
        picks = np.zeros((x.shape[-1], len(self.sources)))
        for output, column in enumerate(self.sources):
            if column >= 0:
                picks[column, output] = 1.0
        newest = keras.ops.matmul(x, constant(picks)) + constant(self.offsets)
        return newest + change * constant(self.scales)

    def _ascending(self, change: Any, constant: Any) -> Any:
        count = len(self.scales)
        first = np.arange(count) % self.quantiles == 0
        group = np.arange(count) // self.quantiles
        sums = (group[:, None] == group) & (np.arange(count)[:, None] <= np.arange(count))
        free = change * constant(first)
        steps = keras.ops.softplus(change) * constant(~first)
        # Changes of nothing spread the quantiles about the newest value: softplus(0) = log 2.
        start = np.full(count, -np.log(2.0) * ((self.quantiles - 1) / 2.0))
        return keras.ops.matmul(free + steps, constant(sums)) + constant(start)

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return the shape of the changes."""
        return shapes[1]

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {
            **super().get_config(),
            "sources": list(self.sources),
            "offsets": list(self.offsets),
            "scales": list(self.scales),
            "quantiles": self.quantiles,
        }


@keras.saving.register_keras_serializable(package="keyfold")
class Tokens(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Look up a vector for each whole number: ids (B,T,1) as floats -> (B,T,width).

    What lies between two ids is rounded to the nearest (parity is proved on drawn inputs), what is
    none is taken for the nearest one: KnownOnly makes a reject of it.
    """

    def __init__(self, count: int, width: int, **settings: Any) -> None:
        super().__init__(**settings)
        if count < 1 or width < 1:
            raise ValueError(f"Tokens: expected ids and a width, got {count} and {width}")
        self.count, self.width = count, width

    def build(self, shape: Any) -> None:
        """Make the table."""
        if shape[-1] != 1:
            raise ValueError(f"Tokens: expected one column of ids, got {shape[-1]}")
        self.table = self.add_weight((self.count, self.width), "uniform", name="table")
        self.built = True

    def call(self, x: Any) -> Any:
        """Look ids up."""
        # Bounded as integers: there is no NaN among them.
        places = keras.ops.cast(_nearest(x), "int32")
        return keras.ops.take(self.table, keras.ops.clip(places, 0, self.count - 1), axis=0)

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,width)."""
        return (*shape[:-1], self.width)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "count": self.count, "width": self.width}


@keras.saving.register_keras_serializable(package="keyfold")
class KnownOnly(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Let y (B,T,O) pass where x (B,T,1) is an id, else NaN, and so a reject: no id is guessed.

    At the end of the network: a fused operator bounds what it is given, and makes numbers of NaN.
    """

    def __init__(self, count: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.count = count

    def call(self, inputs: Any) -> Any:
        """Look at x, return y."""
        x, y = inputs
        ids = _nearest(x)[..., None]
        known = keras.ops.logical_and(ids >= 0, ids < self.count)  # NaN: neither
        return keras.ops.where(known, y, float("nan"))

    def compute_output_shape(self, shapes: Any) -> Any:
        """Return the shape of y."""
        return shapes[1]

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "count": self.count}


def _nearest(x: Any) -> Any:
    return keras.ops.floor(x[..., 0] + 0.5)


@keras.saving.register_keras_serializable(package="keyfold")
class Unfold(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Cut each event's columns into overlapping pieces: (B,T,P) or (B,T,P,C) -> (B,T,P',size*C).

    With a Dense layer behind it, it is a one-dimensional convolution over the columns of one event,
    without padding; in this form no event's result depends on how many others there are.
    """

    def __init__(self, size: int, stride: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        if size < 1 or stride < 1:
            raise ValueError(f"Unfold: expected a positive size and stride, got {size}, {stride}")
        self.size, self.stride = size, stride

    def call(self, x: Any) -> Any:
        """Cut x."""
        count, width = self.compute_output_shape(x.shape)[2:]
        return unfolded(x, self.size, self.stride, (count, width))

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,P',size*C)."""
        columns, channels = shape[2], shape[3] if len(shape) == 4 else 1
        count = (columns - self.size) // self.stride + 1
        if count < 1:
            raise ValueError(f"Unfold: expected at least {self.size} columns, got {columns}")
        return (*shape[:2], count, self.size * channels)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "size": self.size, "stride": self.stride}


def unfolded(x: Any, size: int, stride: int, shape: tuple[int, int]) -> Any:
    """Cut x (B,T,P) or (B,T,P,C) as Unfold does, into pieces of a `shape` (P',size*C) an event."""
    if len(x.shape) == 3:
        x = x[..., None]
    places = np.arange(shape[0])[:, None] * stride + np.arange(size)
    pieces = keras.ops.take(x, places.tolist(), axis=2)  # (B,T,P',size,C)
    return keras.ops.reshape(pieces, (-1, keras.ops.shape(x)[1], *shape))


@keras.saving.register_keras_serializable(package="keyfold")
class RandomGain(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """While training, multiply each row by a factor of its own: (B,T,F) -> (B,T,F).

    The factor's logarithm is normal with that deviation: as loud as it happens to be recorded.
    """

    def __init__(self, deviation: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.deviation = deviation
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: Any, training: bool = False) -> Any:
        """Scale x, or leave it as it is."""
        if not training:
            return x
        shape = (keras.ops.shape(x)[0], 1, 1)
        drawn = keras.random.normal(shape, 0.0, self.deviation, x.dtype, self.seed_generator)
        return x * keras.ops.exp(drawn)

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "deviation": self.deviation}
