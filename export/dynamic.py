"""A threshold per key that follows the key's own errors, online and with bounded state.

Owns the moving average of a key's scores, the ring of the newest averages and the threshold chosen
from them. The choice is that of Hundman, Constantinou, Laporte, Colwell, Soderstrom, "Detecting
spacecraft anomalies using LSTMs and nonparametric dynamic thresholding", KDD 2018 (arXiv
1802.04431), section 3.2: of the candidates mean + z * deviation the one whose exceedances, taken
away, lower mean and deviation the most for how many they are. Differences: the window slides (ring)
and the choice is made anew every EVERY scores; a key's fields are judged together by the largest
scaled error; the pruning of section 3.3 looks back over whole sequences and is left out.

Pure numpy; sums run in the order of time, so that a row's bits do not depend on its neighbours.
Called by anomaly.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FLOAT32_MAX
from keyfold.export.outputs import Dynamic
from keyfold.export.states import StateSpec, Tensors, own_state

ERRORS, MOVING, COUNT = "back.errors", "back.moving", "back.count"
EVERY = 16  # scores of a key between two choices of its threshold
CANDIDATES = np.arange(2.0, 10.5, 0.5)  # z; the paper found 2 to 10 to work well

Numbers = NDArray[np.float64]


class DynamicThreshold:
    """Judges the scores of keys by their own past; `fixed` is the threshold of a new key."""

    def __init__(self, dynamic: Dynamic, fixed: float) -> None:
        self._dynamic, self._fixed = dynamic, fixed
        nan = float("nan")
        self.states: tuple[StateSpec, ...] = (  # in storage order
            own_state(ERRORS, (dynamic.window,), "float32", nan),  # ring of averages
            own_state(MOVING, (2,), "float64", nan),  # newest average, threshold
            own_state(COUNT, (), "int64"),  # scores so far
        )

    def run(
        self, scores: NDArray[np.float32], states: Tensors
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Return what to judge scores (B,T) by, (B,T,2), and the states; NaN scores are none.

        First the threshold, then the number to compare: the moving average, or the score itself
        while the fixed threshold stands.
        """
        ring, count = states[ERRORS].copy(), states[COUNT].copy()
        average, threshold = states[MOVING][:, 0].copy(), states[MOVING][:, 1].copy()
        judged = np.full((*scores.shape, 2), np.nan, np.float32)
        for t in range(scores.shape[1]):
            rows = np.flatnonzero(~np.isnan(scores[:, t]))
            score = scores[rows, t].astype(np.float64)
            average[rows] = self._smoothed(score, average[rows])
            ring[rows, count[rows] % self._dynamic.window] = average[rows]
            count[rows] += 1
            warm = count[rows] - self._dynamic.warm_up
            due = rows[(warm >= 0) & (warm % EVERY == 0)]
            if len(due):
                threshold[due] = choose(self._in_order(ring[due], count[due]))
            fixed = np.isnan(threshold[rows])
            chosen = np.where(fixed, self._fixed, threshold[rows])
            judged[rows, t, 0] = np.minimum(chosen, FLOAT32_MAX)
            judged[rows, t, 1] = np.where(fixed, score, average[rows])
        moving = np.stack([average, threshold], axis=1)
        return judged, {ERRORS: ring, MOVING: moving, COUNT: count}

    def _smoothed(self, score: Numbers, average: Numbers) -> Numbers:
        weight = self._dynamic.smoothing
        return np.where(np.isnan(average), score, weight * score + (1.0 - weight) * average)

    def _in_order(self, ring: NDArray[np.float32], count: NDArray[np.int64]) -> Numbers:
        """Return the rings (R,W), oldest first; NaN stands where there was no score yet."""
        places = (count[:, None] + np.arange(ring.shape[1])) % ring.shape[1]
        return np.take_along_axis(ring, places, axis=1).astype(np.float64)


def choose(errors: Numbers) -> Numbers:
    """Choose a threshold for each row of smoothed errors (R,W); NaN entries do not count.

    NaN where all errors of a row are alike: nothing can be learned from them.
    """
    known = ~np.isnan(errors)
    errors = np.where(known, errors, 0.0)
    mean, deviation = _moments(errors, known)
    usable = deviation > 0
    spread, centre = np.where(usable, deviation, 1.0), np.where(usable, mean, 1.0)
    candidates = mean[:, None] + CANDIDATES * spread[:, None]
    below = known[:, None, :] & (errors[:, None, :] < candidates[:, :, None])
    above = known[:, None, :] & ~below
    mean_below, deviation_below = _moments(errors[:, None, :], below)
    many = above.sum(axis=-1)
    begins = above.copy()
    begins[:, :, 1:] &= ~above[:, :, :-1]
    runs = begins.sum(axis=-1)
    gain = (mean[:, None] - mean_below) / centre[:, None]
    gain = gain + (deviation[:, None] - deviation_below) / spread[:, None]
    objective = np.where(many > 0, gain / np.maximum(many + runs * runs, 1), -np.inf)
    # Where no error is above any candidate, the highest one stands.
    best = np.where((many > 0).any(axis=1), objective.argmax(axis=1), len(CANDIDATES) - 1)
    chosen: Numbers = candidates[np.arange(len(errors)), best]
    return np.where(usable, chosen, np.nan)


def _moments(values: Numbers, chosen: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Return mean and deviation of the chosen values along the last axis; of none: 0."""
    count = np.maximum(chosen.sum(axis=-1), 1)
    mean = _total(np.where(chosen, values, 0.0)) / count
    off = np.where(chosen, values - mean[..., None], 0.0)
    return mean, np.sqrt(_total(off * off) / count)


def _total(values: Numbers) -> Numbers:
    # A running sum has one order; numpy's sum has another one for other shapes.
    total: Numbers = np.add.accumulate(values, axis=-1)[..., -1]
    return total
