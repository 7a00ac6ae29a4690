"""Logarithms of mel band powers of one event's samples, as constant matrix products.

Owns the layer for events that are chunks of raw audio: short-time Fourier transform, mel filters,
logarithm. Nothing is learned and nothing reaches from one event to the next. A custom layer like
those of layers.py: a pure function of its configuration. Imported by training (to build) and by
convert (to load); the worker never sees it.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keyfold.export.layers import unfolded

FLOOR = 1e-5  # power added before the logarithm, where samples have a deviation of 1
# log power of speech so scaled lies between log(FLOOR) = -11.5 and about 4: brought to -2 .. 2.
CENTRE, SPREAD = -4.0, 4.0


@keras.saving.register_keras_serializable(package="keyfold")
class LogMel(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Turn each event's samples into log mel powers: (B,T,S) -> (B,T,P,bands).

    P windows of `size` samples, `hop` apart, tapered by Hann's window; the power spectrum by a
    product with cosines and sines; triangular filters, equally spaced in mel from 0 to half the
    rate (Davis and Mermelstein 1980; mel(f) = 2595 log10(1 + f / 700) as in the HTK Book, 2002).
    Samples are expected scaled to a deviation of about 1.
    """

    def __init__(self, rate_hz: int, size: int, hop: int, bands: int, **settings: Any) -> None:
        super().__init__(**settings)
        if min(rate_hz, size, hop, bands) < 1:
            raise ValueError(
                f"LogMel: expected positive numbers, got {(rate_hz, size, hop, bands)}"
            )
        self.rate_hz, self.size, self.hop, self.bands = rate_hz, size, hop, bands

    def call(self, x: Any) -> Any:
        """Transform x."""

        def constant(values: NDArray[np.float64]) -> Any:
            return keras.ops.convert_to_tensor(values.astype(np.float32).tolist(), x.dtype)

        pieces = unfolded(x, self.size, self.hop, (self._places(x.shape[2]), self.size))
        parts = keras.ops.matmul(pieces, constant(_fourier(self.size)))
        # Both parts of a frequency share their filter: one product adds them up.
        filters = np.tile(mel_filters(self.rate_hz, self.size, self.bands), (2, 1))
        power = keras.ops.matmul(keras.ops.square(parts), constant(filters))
        return (keras.ops.log(power + FLOOR) - CENTRE) / SPREAD

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,P,bands)."""
        return (*shape[:2], self._places(shape[2]), self.bands)

    def _places(self, samples: int) -> int:
        if samples < self.size:
            raise ValueError(f"LogMel: expected at least {self.size} samples, got {samples}")
        return (samples - self.size) // self.hop + 1

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        own = {"rate_hz": self.rate_hz, "size": self.size, "hop": self.hop, "bands": self.bands}
        return {**super().get_config(), **own}


def _fourier(size: int) -> NDArray[np.float64]:
    """Return the tapered cosines and sines of all frequencies: (size, 2 * (size // 2 + 1)).

    Scaled so that white noise of variance 1 has power 1 at every frequency.
    """
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
    angle = 2 * np.pi * np.outer(np.arange(size), np.arange(size // 2 + 1)) / size
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(taper[:, None] * waves / np.sqrt(np.sum(np.square(taper))))


def mel_filters(rate_hz: int, size: int, bands: int) -> NDArray[np.float64]:
    """Return the weights of `bands` filters: (size // 2 + 1, bands), each column's sum 1."""
    frequencies = np.arange(size // 2 + 1) * rate_hz / size
    highest = 2595.0 * np.log10(1.0 + rate_hz / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, highest, bands + 2) / 2595.0) - 1.0)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (middle - low)
    falling = (high - frequencies[:, None]) / (high - middle)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    # A filter narrower than the distance of two frequencies takes the nearest one.
    nearest = np.abs(frequencies[:, None] - middle).argmin(axis=0)
    weights[nearest, np.arange(bands)] += weights.sum(axis=0) == 0
    return np.asarray(weights / weights.sum(axis=0))
