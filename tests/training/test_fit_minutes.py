"""A limit of minutes: training ends within it, with its best weights, and so does a resumed one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export.events import OutputSpec
from keyfold.training.checkpoint import Checkpoint, Snapshot
from keyfold.training.config import Fit, Model
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
from keyfold.training.fit import History, Watch, fit  # noqa: E402
from keyfold.training.losses import squared_error  # noqa: E402
from keyfold.training.model import build  # noqa: E402
from keyfold.training.optimizer import learning_rate, way  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = KERAS
SCALING = Scaling((0.5,), (0.5,), 0.5, 0.5)
# Three sequences of 40 events in one lane: 15 windows a pass.
FIT = Fit(seed=5, rows=1, window=8, passes=50, patience=50, schedule="cosine", learning_rate=0.01)
WINDOWS = 15


class Clock:
    """Seconds that pass one at a time, whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def part() -> Part:
    draw = np.random.default_rng(1)
    sequences = []
    for number in range(3):
        x = draw.integers(0, 2, 40).astype(np.float32)
        sequences.append(Sequence(f"k{number}", x[:, None], np.zeros(40, np.int64), np.roll(x, 2)))
    return Part(tuple(sequences), (0,) * 3)


def trained(settings: Fit, checkpoint: Checkpoint | None = None) -> tuple[list[Any], History]:
    keras.utils.set_random_seed(settings.seed)
    network = build(Model(units=(4,)), SCALING, OutputSpec("regression", ("value",)))
    watch = Watch(checkpoint=checkpoint, clock=Clock())
    history = fit(network, (part(), part()), settings, squared_error(0.5), watch)
    return network.whole.get_weights(), history


def test_training_ends_within_its_minutes_also_in_the_middle_of_a_pass() -> None:
    weights, history = trained(replace(FIT, minutes=0.5))  # 30 looks at the clock
    assert len(history.train_loss) == 2  # 15 windows and a look behind them, then 14
    assert history.best_pass in (1, 2)
    assert all(np.isfinite(one).all() for one in weights)
    _, short = trained(replace(FIT, minutes=0.1))  # 6 windows: judged as they are
    assert len(short.train_loss) == 1
    assert short.best_pass == 1
    # Loss by event, not by pass: six windows say about as much as all.
    assert short.train_loss[0] == pytest.approx(history.train_loss[0], rel=0.5)


def test_a_cosine_ends_with_the_minutes() -> None:
    settings = replace(FIT, minutes=2.0, passes=100)
    assert way(settings, 3.0, 60.0) == 50.0
    assert learning_rate(settings, way(settings, 3.0, 120.0)) == pytest.approx(0.0, abs=1e-12)
    assert way(settings, 99.0, 60.0) == 99.0  # whichever comes first
    assert way(replace(settings, schedule="constant"), 3.0, 60.0) == 3.0
    assert way(FIT, 3.0, 60.0) == 3.0


class Killed(Exception):
    """Stands for what ends a program between two windows."""


class Dying(Checkpoint):
    """A checkpoint whose program ends behind the 12th save."""

    left = 12

    def save(self, data: str, snapshot: Snapshot) -> None:
        super().save(data, snapshot)
        self.left -= 1
        if self.left == 0:
            raise Killed


def test_a_resumed_training_counts_its_earlier_time(tmp_path: Path) -> None:
    settings = replace(FIT, minutes=0.5, save_every_s=0.0)
    _, whole = trained(settings)
    with pytest.raises(Killed):
        trained(settings, Dying(tmp_path, {}, 0.0))
    _, history = trained(settings, Checkpoint(tmp_path, {}, 0.0))
    assert len(history.train_loss) <= len(whole.train_loss)
    assert history.train_loss[0] == pytest.approx(whole.train_loss[0], rel=0.1)
