"""Updates of a network's weights, window by window, and what they tell of their gradients.

Owns the compiled update and forward pass, the carried states within a pass, the averaged weights
and the list of all variables that a checkpoint holds. It knows networks and sequences; passes,
stopping and checkpoints are fit.py's, which calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from keyfold.export.errors import Crash
from keyfold.training.ctc import count_whole_windows, ctc_loss, whole_windows
from keyfold.training.evaluate import ROWS, STEPS
from keyfold.training.fused_lstm import fused
from keyfold.training.gradients import MOST_LAGS, Norms, lag_norms
from keyfold.training.losses import Loss
from keyfold.training.model import Network
from keyfold.training.optimizer import learning_rate, make_optimizer, way
from keyfold.training.pairs import pair_windows
from keyfold.training.pieces import count_windows, judged_pieces
from keyfold.training.settings_fit import Fit
from keyfold.training.split import Part
from keyfold.training.windows import Piece, Window, windows

LOOKED_AT = 32  # sequences whose gradients are followed back in time
LOOKED_THROUGH = 500  # windows of them, until one is found in which something counts


class FitError(Crash):
    """Training cannot go on."""


@dataclass(slots=True)
class Progress:
    """How far a training has come: what of it is no array."""

    number: int = 0  # passes done
    losses: list[list[float]] = field(default_factory=list)  # per pass: train, validation, rate
    best: float = float("inf")  # validation loss
    best_pass: int = 0  # from 1
    drops: int = 0  # of the learning rate on a plateau
    dropped_at: int = 0  # the pass after which it last dropped
    draw: dict[str, Any] = field(default_factory=dict)  # the generator before the next pass
    windows: int = 0  # of that pass, if it has begun: gone through
    total: float = 0.0  # their loss
    seconds: float = 0.0  # that it took so far, earlier programs' included
    norms: list[dict[str, Any]] = field(default_factory=list)  # PassNorms
    lags_before: list[float] = field(default_factory=list)  # see Gradients


class Trainer:
    """The network, its optimizer and the compiled update."""

    def __init__(self, network: Network, settings: Fit, loss: Loss) -> None:
        self.network, self.settings = network, settings
        self._loss = loss
        self._keeps_whole = loss is ctc_loss  # it is that of a sequence, not of events
        self._weights = network.whole.trainable_variables
        self._optimizer = make_optimizer(settings, self._weights)
        averaged = self._weights if settings.average else []
        self._averages = [tf.Variable(weight.value) for weight in averaged]
        self._updates = tf.Variable(0.0)
        self.norms = Norms(self._weights)
        self._rate: float | None = None  # of the newest update; None: none since the start
        # Without autograph: it would read this file again, and nothing here needs it.
        compiled = partial(tf.function, reduce_retracing=True, autograph=False)
        self._update = compiled(self._update_eagerly)
        self._forward = compiled(self._forward_eagerly)

    @property
    def variables(self) -> list[Any]:
        """All that updates change: weights, states of random generators, moments, averages."""
        of_network = [*self.network.whole.variables, *self.network.stepping.variables]
        unique = list({id(variable): variable for variable in of_network}.values())
        own = [*self._averages, self._updates, *self.norms.variables]
        return [*unique, *self._optimizer.variables, *own]

    def train(
        self,
        part: Part,
        pieces: list[Piece],
        progress: Progress,
        states: list[Any],
        window_done: Callable[[int, Any, list[Any]], bool],
    ) -> float:
        """Update the weights window by window; return the mean loss of the events that counted.

        Begins behind progress.windows, with the states that they left; ends early where
        `window_done` says so.
        """
        settings = self.settings
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
        updates = count_windows(sequences, pieces, settings.rows, settings.window)
        if self._keeps_whole:
            gone_through, updates = len(pieces), count_whole_windows(pieces, settings.rows)
        elif sequences[0].is_pair:
            updates = count_whole_windows(pieces, settings.rows)
        total, counted = tf.constant(progress.total), 0.0
        cut = self._windows(part, pieces, (settings.rows, settings.window))
        numbered = enumerate(cut, 1)
        for number, window in numbered:
            counted += float(window.weights.sum())
            if number <= progress.windows:
                continue
            states = states or self._cold(window)
            gone = way(settings, progress.number + number / updates, progress.seconds)
            self._set_rate(learning_rate(settings, gone, progress.drops))
            scale = tf.constant(1.0 / (window.weights.size * density))
            loss, states = self._update(*_tensors(window), scale, states)
            total += loss
            if window_done(number, total, states):
                break
        return float(total) / max(counted, 1.0)

    def _windows(self, part: Part, pieces: list[Piece], size: tuple[int, int]) -> Iterator[Window]:
        """Cut pieces into windows of `size` (rows, steps), or of whole sequences."""
        if self._keeps_whole:
            return whole_windows(part.sequences, pieces, size[0])
        if part.sequences[0].is_pair:
            return pair_windows(part.sequences, pieces, size[0])
        return windows(part.sequences, pieces, *size)

    def _set_rate(self, rate: float) -> None:
        if rate != self._rate:
            self._rate = rate
            self._optimizer.learning_rate.assign(rate)

    def measure(self, part: Part) -> float:
        """Return the mean loss of a part, without dropout and noise."""
        pieces = judged_pieces(part, self.settings)
        total, weight = tf.constant(0.0), 0.0
        states: list[Any] = []
        for window in self._windows(part, pieces, (ROWS, STEPS)):
            states = states or self._cold(window)
            loss, states = self._forward(*_tensors(window), states)
            total += loss
            weight += float(window.weights.sum())
        if not weight:
            raise FitError("validation: expected events with labels, got none that count")
        return float(total) / weight

    def lag_norms(self, part: Part) -> tuple[float, ...]:
        """Return how far gradients reach back in the longest sequences (gradients.py)."""
        if self._keeps_whole or part.sequences[0].is_pair:
            return ()  # no event has a loss of its own
        lengths = [len(sequence) for sequence in part.sequences]
        longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[:LOOKED_AT]
        firsts = [max(part.counts_from[index], self.settings.skip_first) for index in longest]
        pieces = [Piece(i, 0, first) for i, first in zip(longest, firsts, strict=True)]
        found: tuple[float, ...] = ()
        states: list[Any] = []
        length = min(self.settings.window, MOST_LAGS)
        found_in = windows(part.sequences, pieces, LOOKED_AT, length)
        for window in islice(found_in, LOOKED_THROUGH):
            states = states or self._cold(window)
            if window.weights.any():
                is_first, found = (
                    not found,
                    lag_norms(self._step(window), self._loss, window, states),
                )
                # A second window, if there is one: memory has something in it by then.
                if not (is_first and window.fresh.all()):
                    break
            _, states = self._run(tf.constant(window.x), window.fresh, states, training=False)
        return found

    def _step(self, window: Window) -> Callable[[Any, list[Any]], tuple[Any, list[Any]]]:
        fresh = [window.fresh]

        def step(x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
            now = tf.constant(fresh.pop() if fresh else np.zeros(len(x), np.bool_))
            y, after = self._run(tf.constant(x), now, states, training=False)
            return y, after

        return step

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lend the moving averages to the network, if settings.average asks for them."""
        if not self.settings.average:
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
        return [tf.zeros((len(window.x), units)) for units in self.network.state_units]

    def _run(self, x: Any, fresh: Any, states: list[Any], training: bool) -> tuple[Any, list[Any]]:
        carried = [tf.where(fresh[:, None], 0.0, state) for state in states]
        y, *states = self.network.stepping([x, *carried], training=training)
        return y, states

    def _forward_eagerly(
        self, x: Any, labels: Any, weights: Any, fresh: Any, states: list[Any]
    ) -> tuple[Any, list[Any]]:
        y, states = self._run(x, fresh, states, training=False)
        return tf.reduce_sum(self._loss(labels, y) * weights), states

    def _update_eagerly(
        self, x: Any, labels: Any, weights: Any, fresh: Any, scale: Any, states: list[Any]
    ) -> tuple[Any, list[Any]]:
        stepping, wanted = self.network.stepping, self.settings.fused
        with tf.GradientTape() as tape, fused(stepping, wanted=wanted):
            y, states = self._run(x, fresh, states, training=True)
            total = tf.reduce_sum(self._loss(labels, y) * weights)
            loss = total * scale
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        clip_norm = self.settings.clip_norm
        norm = self.norms.add(gradients, clip_norm)
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)
        self._optimizer.apply_gradients(zip(gradients, self._weights, strict=True))
        if not self.settings.average:
            return total, states
        self._updates.assign_add(1.0)
        # The first updates count less: an average of untrained weights would linger.
        decay = tf.minimum(self.settings.average, (1.0 + self._updates) / (10.0 + self._updates))
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
