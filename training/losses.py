"""The losses: what is made small, event by event.

Owns the formulas and what the labels of a class weigh. Keras tensor functions without state; knows
neither networks nor the training loop. Called by train.py and search.py; fit.py is handed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keyfold.export.settings import SettingsError
from keyfold.training.forecast import Ahead
from keyfold.training.split import Part

LARGE = 3.0  # times a forecast's usual change: beyond, an error counts by its size, not its square
TINY = 1e-7  # added to a probability: its logarithm stays finite

# (labels (B,T) or (B,T,L), y (B,T,O)) -> like labels, a Keras tensor function
Loss = Callable[[Any, Any], Any]


def squared_error(label_deviation: float, label_cap: float | None = None) -> Loss:
    """Return the regression loss, in squared deviations of the training labels."""
    cap = np.inf if label_cap is None else label_cap

    def loss(labels: Any, y: Any) -> Any:
        return keras.ops.square((y[..., 0] - keras.ops.minimum(labels, cap)) / label_deviation)

    return loss


def cross_entropy(labels: Any, y: Any) -> Any:
    """Return the classification loss, in nats.

    Labels are class numbers (B,T), or one-hot (B,T,C): then the loss is spread over the C entries
    of an event, so that the mean over them is the mean over events of the class numbers' loss.
    """
    if len(labels.shape) == len(y.shape):
        return -y.shape[-1] * labels * keras.ops.log(y + TINY)
    # Taken, not multiplied by zeros and ones: the same bits, and of 8,000 labels 3.6 times as fast.
    places = keras.ops.cast(labels, "int32")[..., None]
    return -keras.ops.log(keras.ops.take_along_axis(y, places, axis=-1)[..., 0] + TINY)


def weighted_cross_entropy(weights: tuple[float, ...]) -> Loss:
    """Return the classification loss in which an event counts by its label's weight."""
    by_class = np.array(weights, np.float32)

    def loss(labels: Any, y: Any) -> Any:
        if len(labels.shape) == len(y.shape):
            return cross_entropy(labels, y) * by_class
        numbers = keras.ops.cast(labels, "int32")
        return cross_entropy(labels, y) * keras.ops.take(by_class, numbers)

    return loss


def class_weights(
    given: Mapping[str, float], names: tuple[str, ...], train: Part
) -> tuple[float, ...]:
    """Return a weight per class; the mean over the training events that have a label is 1.

    `given` by label; others weigh 1. Empty: every class weighs the same in all, however many events
    it has, and one without training events as much as the rarest. Raises SettingsError.
    """
    counts = np.zeros(len(names))
    for sequence, start in zip(train.sequences, train.counts_from, strict=True):
        labels = sequence.labels[start:]
        known = labels[~np.isnan(labels)].astype(np.int64)
        counts += np.bincount(known, minlength=len(names))
    if unknown := [name for name in given if name not in names]:
        shown = ", ".join(map(repr, names[:20]))
        raise SettingsError(
            f"fit.class_weights: expected labels among {shown}, got {unknown[0]!r}: leave it out"
        )
    if given:
        weights = np.array([given.get(name, 1.0) for name in names])
    else:
        weights = 1.0 / np.maximum(counts, counts[counts > 0].min() if counts.any() else 1.0)
    total = float((weights * counts).sum())
    if total <= 0:
        raise SettingsError(
            "fit.class_weights: expected a weight above 0 for a label that training has, got none"
        )
    return tuple((weights * counts.sum() / total).tolist())


def forecast_error(ahead: Ahead, quantiles: tuple[float, ...]) -> Loss:
    """Return the loss of forecasts, every value in units of how much it changes.

    Means: Huber's, since unlabelled data holds faults, and a squared error would learn them first.
    Quantiles: the pinball loss (Koenker and Bassett 1978).
    """
    count = max(1, len(quantiles))
    scale = np.array(ahead.scales[::count], np.float32)

    def huber(labels: Any, y: Any) -> Any:
        error = keras.ops.abs((y - labels) / scale)
        return keras.ops.where(
            error <= LARGE, 0.5 * keras.ops.square(error), LARGE * (error - 0.5 * LARGE)
        )

    def pinball(labels: Any, y: Any) -> Any:
        levels = np.array(quantiles, np.float32)
        groups = keras.ops.reshape(y, (*keras.ops.shape(labels), count))
        error = (labels[..., None] - groups) / scale[:, None]
        return keras.ops.mean(keras.ops.maximum(levels * error, (levels - 1.0) * error), axis=-1)

    return pinball if quantiles else huber
