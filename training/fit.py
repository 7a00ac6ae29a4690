"""One fit from a seed: pass by pass, with checkpoints, until no pass is worth it.

Owns the order of passes, the schedule's plateau, early stopping on validation with the best weights
put back, and what of all that a checkpoint holds. The updates are trainer.py's. It knows networks
and sequences, neither files nor metrics for people. Called by the commands and by tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keyfold.training.checkpoint import Checkpoint, Snapshot, data_sha256
from keyfold.training.gradients import Gradients, PassNorms
from keyfold.training.losses import Loss
from keyfold.training.model import Network
from keyfold.training.optimizer import learning_rate, way
from keyfold.training.pieces import shuffled_pieces
from keyfold.training.settings_fit import Fit
from keyfold.training.split import Part
from keyfold.training.trainer import FitError, Progress, Trainer

# (pass from 1, training loss, validation loss, best so far)
Report = Callable[[int, float, float, bool], None]


@dataclass(frozen=True, slots=True)
class History:
    """What happened, pass by pass."""

    train_loss: tuple[float, ...]  # mean over the events that counted, dropout and noise on
    validation_loss: tuple[float, ...]  # likewise, off, and with the averaged weights if any
    best_pass: int  # from 1; the one whose weights were kept
    learning_rate: tuple[float, ...] = ()  # at the end of each pass
    gradients: Gradients = field(default_factory=Gradients)  # their norms


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on, and where the training is kept."""

    report: Report = lambda *_: None  # after each pass
    checkpoint: Checkpoint | None = None  # gone on with, if it holds anything
    log: Callable[[int, Mapping[str, float]], None] = lambda *_: None  # numbers by name, per pass
    clock: Callable[[], float] = time.monotonic  # seconds, for settings.minutes


def fit(
    network: Network,
    parts: tuple[Part, Part],
    settings: Fit,
    loss: Loss,
    watch: Watch = Watch(),
) -> History:
    """Train `network` in place on parts (train, validation) and leave it with its best weights.

    Seed Keras (keras.utils.set_random_seed) before building the network: the same seed, data and
    number of threads then give the same weights, also when it was ended and gone on with from a
    checkpoint. Raises FitError when the loss is not finite, CheckpointError.
    """
    training = _Training(Trainer(network, settings, loss), parts, watch)
    if not training.goes_on():
        training.begin()
    while not training.is_over:
        training.go_through_once()
    return training.end()


class _Training:
    """One training, pass by pass."""

    def __init__(self, trainer: Trainer, parts: tuple[Part, Part], watch: Watch) -> None:
        self._trainer = trainer
        self._settings = trainer.settings
        self._train, self._validation = parts
        self._watch = watch
        self._data = "" if watch.checkpoint is None else data_sha256(parts)
        self._draw = np.random.default_rng(trainer.settings.seed)
        self._progress = Progress(draw=dict(self._draw.bit_generator.state))
        self._kept: list[Any] = trainer.network.whole.get_weights()
        self._states: list[Any] = []  # carried on within a pass, when it is gone on with
        self._noted_s = watch.clock()  # when progress.seconds was last brought up to date

    def goes_on(self) -> bool:
        """Take up what a checkpoint holds, if there is one."""
        checkpoint = self._watch.checkpoint
        snapshot = None if checkpoint is None else checkpoint.load(self._data)
        if snapshot is None:
            return False
        self._progress = Progress(**snapshot.about)
        self._draw.bit_generator.state = self._progress.draw
        self._kept = _numbered(snapshot.arrays, "kept")
        self._states = [tf.constant(state) for state in _numbered(snapshot.arrays, "state")]
        values = _numbered(snapshot.arrays, "variable")
        for variable, value in zip(self._trainer.variables, values, strict=True):
            variable.assign(value)
        return True

    def begin(self) -> None:
        """Measure what the network is worth as it is."""
        progress = self._progress
        progress.lags_before = list(self._trainer.lag_norms(self._train))
        if self._trainer.network.starts_worthy:
            # Of the naive forecast or the parent, which must be beaten to be left.
            progress.best = self._trainer.measure(self._validation)
            self._watch.report(0, progress.best, progress.best, True)
        self._save()

    @property
    def is_over(self) -> bool:
        """Whether no pass is left, or none is worth it."""
        done, settings = self._progress.number, self._settings
        if done >= settings.passes or done - self._progress.best_pass >= settings.patience:
            return True
        return self._is_late()

    def go_through_once(self) -> None:
        """Go through the training sequences, judge the weights and keep them if they are best."""
        progress, trainer = self._progress, self._trainer
        pieces = shuffled_pieces(self._train, self._settings, self._draw)
        train_loss = trainer.train(self._train, pieces, progress, self._states, self._window_done)
        progress.number, progress.windows, progress.total = progress.number + 1, 0, 0.0
        progress.draw = dict(self._draw.bit_generator.state)
        self._states = []
        with trainer.averaged_weights():
            validation_loss = trainer.measure(self._validation)
            if validation_loss < progress.best:
                progress.best, progress.best_pass = validation_loss, progress.number
                self._kept = trainer.network.whole.get_weights()
        if not np.isfinite(train_loss + validation_loss):
            raise FitError(
                f"pass {progress.number}: the loss is not finite; lower fit.learning_rate"
            )
        self._note(train_loss, validation_loss)
        self._settle()
        checkpoint = self._watch.checkpoint
        if checkpoint is not None and checkpoint.is_due(pass_ends=True):
            self._save()

    def end(self) -> History:
        """Put the best weights back and tell what happened."""
        progress, trainer = self._progress, self._trainer
        trainer.network.whole.set_weights(self._kept)
        passes = tuple(PassNorms(**norms) for norms in progress.norms)
        after = trainer.lag_norms(self._train) if progress.best_pass else ()
        gradients = Gradients(passes, tuple(progress.lags_before), tuple(after))
        columns = list(zip(*progress.losses, strict=True)) or [()] * 3
        return History(columns[0], columns[1], progress.best_pass, columns[2], gradients)

    def _note(self, train_loss: float, validation_loss: float) -> None:
        progress, norms = self._progress, self._trainer.norms.taken()
        gone = way(self._settings, progress.number, progress.seconds)
        rate = learning_rate(self._settings, gone, progress.drops)
        progress.losses.append([train_loss, validation_loss, rate])
        progress.norms.append(asdict(norms))
        is_best = progress.best_pass == progress.number
        self._watch.report(progress.number, train_loss, validation_loss, is_best)
        numbers = {"loss/train": train_loss, "loss/validation": validation_loss}
        numbers |= {"learning_rate": rate, "gradients/all": norms.mean}
        numbers |= {f"gradients/{layer}": norm for layer, norm in norms.layers.items()}
        self._watch.log(progress.number, numbers)

    def _settle(self) -> None:
        """Lower the learning rate where the validation loss has been on a plateau."""
        progress, settings = self._progress, self._settings
        since = progress.number - max(progress.best_pass, progress.dropped_at)
        if settings.schedule == "plateau" and since >= settings.decay_after:
            progress.drops, progress.dropped_at = progress.drops + 1, progress.number

    def _is_late(self) -> bool:
        """Say whether there is a limit of minutes and they are over."""
        self._tick()
        return 0 < 60 * self._settings.minutes <= self._progress.seconds

    def _tick(self) -> None:
        """Bring progress.seconds up to date."""
        now = self._watch.clock()
        self._progress.seconds += now - self._noted_s
        self._noted_s = now

    def _window_done(self, number: int, total: Any, states: list[Any]) -> bool:
        """Save, if that is due; say whether the pass is to end here."""
        checkpoint, late = self._watch.checkpoint, self._is_late()
        if checkpoint is not None and checkpoint.is_due():
            self._progress.windows, self._progress.total = number, float(total)
            self._states = states
            self._save()
        return late

    def _save(self) -> None:
        if self._watch.checkpoint is None:
            return
        self._tick()
        arrays = {f"kept{n}": value for n, value in enumerate(self._kept)}
        arrays |= {f"state{n}": state.numpy() for n, state in enumerate(self._states)}
        variables = self._trainer.variables
        arrays |= {f"variable{n}": np.array(v.numpy()) for n, v in enumerate(variables)}
        self._watch.checkpoint.save(self._data, Snapshot(asdict(self._progress), arrays))


def _numbered(arrays: Mapping[str, Any], name: str) -> list[Any]:
    count = sum(key.rstrip("0123456789") == name for key in arrays)
    return [arrays[f"{name}{number}"] for number in range(count)]
