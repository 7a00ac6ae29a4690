"""Drawn inputs move as the learned ones do, and repeat none of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from keyfold.export.motion import MOST_COLUMNS, Motion


def moving(seed: int = 0) -> np.ndarray:
    """A load that is on or off for long, a temperature that follows it, a rare flag, a constant."""
    draw = np.random.default_rng(seed)
    load = np.repeat(draw.integers(0, 2, 100), 30) * 50.0 + draw.normal(size=3000)
    temperature = np.zeros(3000)
    for i in range(1, 3000):
        temperature[i] = temperature[i - 1] + 0.1 * (load[i] - temperature[i - 1])
    flag = (draw.random(3000) < 0.05).astype(float)
    return np.stack([load, temperature, flag, np.full(3000, 7.0)], axis=1).astype(np.float32)


def test_what_is_drawn_has_the_moments_and_the_distribution_that_were_learned() -> None:
    x = moving()
    deviation = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    motion = Motion.of([x], x.mean(axis=0).tolist(), deviation.tolist())
    assert motion is not None
    again = Motion.from_json(json.loads(json.dumps(asdict(motion))))
    assert again == motion
    drawn = motion.draw(np.random.default_rng(1), 8, 1000)
    assert drawn.dtype == np.float32
    between = ((drawn[..., 0] > 10) & (drawn[..., 0] < 40)).mean()
    assert between < 0.05  # a load is on or off, as it was
    steps = np.diff(drawn[..., 1], axis=1)
    assert steps.std() < 0.5 * drawn[..., 1].std()  # the temperature does not jump
    assert set(np.unique(drawn[..., 2])) == {0.0, 1.0}
    assert 0.02 < drawn[..., 2].mean() < 0.08
    assert (drawn[..., 3] == 7.0).all()
    assert not np.isin(drawn[..., 0], x[:, 0]).any(axis=1).all()


def test_too_many_columns_or_too_few_events_are_not_learned() -> None:
    wide = np.zeros((5, MOST_COLUMNS + 1), np.float32)
    assert Motion.of([wide], [0.0] * wide.shape[1], [1.0] * wide.shape[1]) is None
    assert Motion.of([np.zeros((1, 2), np.float32)], [0.0, 0.0], [1.0, 1.0]) is None
