"""The training loop: truncated back-propagation through time with carried states.

Owns one fit from a seed: updates window by window, a loss over the events that count, clipped
gradients, early stopping on validation with the best weights put back. It knows networks and
sequences, neither files nor metrics for people. Called by the commands and by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keyfold.export.errors import Crash
from keyfold.training.config import Fit
from keyfold.training.evaluate import ROWS, STEPS
from keyfold.training.forecast import Ahead
from keyfold.training.model import Network
from keyfold.training.split import Part
from keyfold.training.windows import Piece, Window, windows

WARMING = 8  # this part of a stretch warms the memory up
LARGE = 3.0  # times a forecast's usual change: beyond, an error counts by its size, not its square

# (labels (B,T) or (B,T,L), y (B,T,O)) -> like labels, a Keras tensor function
Loss = Callable[[Any, Any], Any]
# (pass from 1, training loss, validation loss, best so far)
Report = Callable[[int, float, float, bool], None]


class FitError(Crash):
    """Training cannot go on."""


@dataclass(frozen=True, slots=True)
class History:
    """What happened, pass by pass."""

    train_loss: tuple[float, ...]  # mean over the events that counted, dropout and noise on
    validation_loss: tuple[float, ...]  # likewise, off, and with the averaged weights if any
    best_pass: int  # from 1; the one whose weights were kept


def squared_error(label_deviation: float, label_cap: float | None = None) -> Loss:
    """Return the regression loss, in squared deviations of the training labels."""
    cap = np.inf if label_cap is None else label_cap

    def loss(labels: Any, y: Any) -> Any:
        return keras.ops.square((y[..., 0] - keras.ops.minimum(labels, cap)) / label_deviation)

    return loss


def cross_entropy(labels: Any, y: Any) -> Any:
    """Return the classification loss, in nats."""
    classes = keras.ops.one_hot(keras.ops.cast(labels, "int32"), y.shape[-1])
    return -keras.ops.log(keras.ops.sum(classes * y, axis=-1) + 1e-7)


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


def fit(
    network: Network,
    parts: tuple[Part, Part],
    settings: Fit,
    loss: Loss,
    report: Report = lambda *_: None,
) -> History:
    """Train `network` in place on parts (train, validation) and leave it with its best weights.

    Seed Keras (keras.utils.set_random_seed) before building the network: the same seed, data and
    number of threads then give the same weights. Raises FitError when the loss is not finite.
    """
    train, validation = parts
    draw = np.random.default_rng(settings.seed)
    trainer = _Trainer(network, settings, loss)
    losses: list[tuple[float, float]] = []
    best, best_pass, kept = np.inf, 0, network.whole.get_weights()
    if network.starts_worthy:
        # Of the naive forecast or the parent, which must be beaten to be left.
        best = trainer.measure(validation)
        report(0, best, best, True)
    for number in range(1, settings.passes + 1):
        train_loss = trainer.train(train, shuffled_pieces(train, settings, draw))
        with trainer.averaged_weights():
            validation_loss = trainer.measure(validation)
            if validation_loss < best:
                best, best_pass, kept = validation_loss, number, network.whole.get_weights()
        if not np.isfinite(train_loss + validation_loss):
            raise FitError(f"pass {number}: the loss is not finite; lower fit.learning_rate")
        losses.append((train_loss, validation_loss))
        report(number, train_loss, validation_loss, best_pass == number)
        if number - best_pass >= settings.patience:
            break
    network.whole.set_weights(kept)
    return History(tuple(a for a, _ in losses), tuple(b for _, b in losses), best_pass)


def shuffled_pieces(part: Part, settings: Fit, draw: np.random.Generator) -> list[Piece]:
    """Return one pass over a part: new order, new starts.

    A random start keeps the model from counting events where it should read them: without it, a
    state that always starts at a key's first event learns when the training keys ended.
    """
    pieces = []
    for index in draw.permutation(len(part.sequences)).tolist():
        longest = int(settings.random_start * len(part.sequences[index]))
        start = int(draw.integers(0, longest + 1))
        counts_from = max(part.counts_from[index], start + settings.skip_first)
        pieces.append(Piece(index, start, counts_from))
    if not settings.stretch:
        return pieces
    cut = [
        short
        for piece in pieces
        for short in _cut(piece, len(part.sequences[piece.index]), settings, draw)
    ]
    return [cut[number] for number in draw.permutation(len(cut)).tolist()]


def _cut(piece: Piece, end: int, settings: Fit, draw: np.random.Generator) -> Iterator[Piece]:
    """Cut a long piece into stretches, at other places each pass.

    They run side by side, which is what makes one long history fast. A stretch that begins in the
    middle begins without memory: its first events only warm it up.
    """
    if end - piece.start <= settings.stretch:
        yield piece
        return
    first = piece.start + int(draw.integers(settings.stretch // 4, settings.stretch + 1))
    starts = [piece.start, *range(first, end, settings.stretch)]
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        warm = start if start == piece.start else start + settings.stretch // WARMING
        counts_from = max(piece.counts_from, warm)
        if counts_from < stop:
            yield Piece(piece.index, start, counts_from, stop)


class _Trainer:
    """The network, its optimizer and the compiled update."""

    def __init__(self, network: Network, settings: Fit, loss: Loss) -> None:
        self._network = network
        self._settings = settings
        self._loss = loss
        self._weights = network.whole.trainable_variables
        self._optimizer = keras.optimizers.Adam(settings.learning_rate)
        self._optimizer.build(self._weights)
        self._averages = [tf.Variable(weight.value) for weight in self._weights]
        self._updates = tf.Variable(0.0)
        self._update = tf.function(self._update_eagerly, reduce_retracing=True)
        self._forward = tf.function(self._forward_eagerly, reduce_retracing=True)

    def train(self, part: Part, pieces: list[Piece]) -> float:
        """Update the weights window by window; return the mean loss of the events that counted."""
        settings = self._settings
        sequences = part.sequences
        gone_through = sum(
            sequences[piece.index].labels[piece.start : piece.end].size for piece in pieces
        )
        counting = sum(
            int((~np.isnan(sequences[p.index].labels[p.counts_from : p.end])).sum()) for p in pieces
        )
        if not counting:
            raise FitError("train: expected events with labels, got none that count")
        # Every event weighs the same in a pass, also in windows that few events share.
        density = counting / gone_through
        total = tf.constant(0.0)
        states: list[Any] = []
        for window in windows(sequences, pieces, settings.rows, settings.window):
            states = states or self._cold(window)
            scale = tf.constant(1.0 / (window.weights.size * density))
            loss, states = self._update(*_tensors(window), scale, states)
            total += loss
        return float(total) / counting

    def measure(self, part: Part) -> float:
        """Return the mean loss of a part, without dropout and noise."""
        pieces = self._judged(part)
        total, weight = tf.constant(0.0), 0.0
        states: list[Any] = []
        for window in windows(part.sequences, pieces, ROWS, STEPS):
            states = states or self._cold(window)
            loss, states = self._forward(*_tensors(window), states)
            total += loss
            weight += float(window.weights.sum())
        if not weight:
            raise FitError("validation: expected events with labels, got none that count")
        return float(total) / weight

    def _judged(self, part: Part) -> list[Piece]:
        """Return the pieces that are measured: all that count, each after its past.

        With stretches the past is one stretch, not all of it: close enough to choose a pass by.
        """
        pieces = []
        stretch = self._settings.stretch
        for index, start in enumerate(part.counts_from):
            first = max(start, self._settings.skip_first)
            if not stretch:
                pieces.append(Piece(index, 0, first))
                continue
            pieces += [
                Piece(index, max(0, begin - stretch), begin, begin + stretch)
                for begin in range(first, len(part.sequences[index]), stretch)
            ]
        return pieces

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lend the moving averages to the network, if settings.average asks for them."""
        if not self._settings.average:
            yield
            return
        current = [weight.numpy() for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.assign(average)
        try:
            yield
        finally:
            for weight, value in zip(self._weights, current, strict=True):
                weight.assign(value)

    def _cold(self, window: Window) -> list[Any]:
        return [tf.zeros((len(window.x), units)) for units in self._network.state_units]

    def _run(self, x: Any, fresh: Any, states: list[Any], training: bool) -> tuple[Any, list[Any]]:
        carried = [tf.where(fresh[:, None], 0.0, state) for state in states]
        y, *states = self._network.stepping([x, *carried], training=training)
        return y, states

    def _forward_eagerly(
        self, x: Any, labels: Any, weights: Any, fresh: Any, states: list[Any]
    ) -> tuple[Any, list[Any]]:
        y, states = self._run(x, fresh, states, training=False)
        return tf.reduce_sum(self._loss(labels, y) * weights), states

    def _update_eagerly(
        self, x: Any, labels: Any, weights: Any, fresh: Any, scale: Any, states: list[Any]
    ) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            y, states = self._run(x, fresh, states, training=True)
            total = tf.reduce_sum(self._loss(labels, y) * weights)
            loss = total * scale
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        gradients, _ = tf.clip_by_global_norm(gradients, self._settings.clip_norm)
        self._optimizer.apply_gradients(zip(gradients, self._weights, strict=True))
        self._updates.assign_add(1.0)
        # The first updates count less: an average of untrained weights would linger.
        decay = tf.minimum(self._settings.average, (1.0 + self._updates) / (10.0 + self._updates))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(decay * average + (1.0 - decay) * weight.value)
        return total, states


def _tensors(window: Window) -> tuple[Any, Any, Any, Any]:
    return (
        tf.constant(window.x),
        tf.constant(window.labels),
        tf.constant(window.weights),
        tf.constant(window.fresh),
    )
