"""The threshold that follows a key's own scores, written out once more for one score at a time.

Owns the oracle's own reading of it: moving average, ring, choice (Hundman et al. 2018, arXiv
1802.04431, section 3.2, as keyfold.export.dynamic describes it), and whether the choice is a close
one: numbers within the tolerance might then lead to another threshold, which is no harm. Called by
offline_key.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FLOAT32_MAX
from keyfold.export.outputs import Dynamic

EVERY = 16  # scores between two choices
CANDIDATES = [z / 2 for z in range(4, 21)]  # 2 to 10 deviations above the mean
ROUNDING = 1e-6  # relative: scores are float32
# By how many times the errors' own tolerance mean + 10 deviations may be off, and a little more.
SPREAD = 12

Tensor = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a score is judged by."""

    threshold: float  # above which it is an anomaly; NaN: it may be another one, too
    smoothed: float  # what is compared with it; NaN: it may be the score or the average


class OfflineThreshold:
    """The threshold of one bundle's keys; `tolerance` is that of a score."""

    def __init__(self, dynamic: Dynamic, fixed: float, tolerance: float) -> None:
        self._dynamic, self._fixed, self._tolerance = dynamic, fixed, tolerance

    def cold(self) -> list[Tensor]:
        """Return what a key without scores remembers: as stored, and whether it is sure of it."""
        ring = np.full((1, self._dynamic.window), np.nan, np.float32)
        moving, count = np.full((1, 2), np.nan), np.zeros(1, np.int64)
        return [ring, moving, count, np.ones(1, np.bool_)]

    def one(self, score: float, memory: list[Tensor]) -> tuple[Judged, list[Tensor]]:
        """Take a key's next score (NaN: none); return how it is judged and the memory after it."""
        if isnan(score):
            return Judged(nan, nan), memory
        ring, count = memory[0].copy(), int(memory[2][0])
        average, threshold = (float(number) for number in memory[1][0])
        sure = bool(memory[3][0])
        weight = self._dynamic.smoothing
        average = score if isnan(average) else weight * score + (1 - weight) * average
        ring[0, count % self._dynamic.window] = average
        count += 1
        warm = count - self._dynamic.warm_up
        if warm >= 0 and warm % EVERY == 0:
            errors = np.roll(ring[0], -count % len(ring[0])).astype(np.float64)
            threshold, sure = choose(errors[~np.isnan(errors)], self._tolerance)
        after = [ring, np.array([[average, threshold]]), np.array([count]), np.array([sure])]
        if not sure:
            return Judged(nan, nan), after
        if isnan(threshold):
            return Judged(self._fixed, score), after
        return Judged(min(threshold, FLOAT32_MAX), average), after


def choose(errors: NDArray[np.float64], tolerance: float) -> tuple[float, bool]:
    """Choose a threshold for smoothed errors, oldest first; say whether no other one comes close.

    NaN when all errors are alike: the fixed threshold stands.
    """
    mean, deviation = float(errors.mean()), float(errors.std())
    allowed = tolerance + ROUNDING * float(errors.max())
    if errors.min() == errors.max() or deviation <= SPREAD * allowed:
        return (nan if errors.min() == errors.max() else mean), False
    candidates = [mean + z * deviation for z in CANDIDATES]
    close = bool(np.abs(errors[:, None] - candidates).min() <= 2 * SPREAD * allowed)
    gains = [_gain(errors, candidate, mean, deviation) for candidate in candidates]
    best = max(range(len(gains)), key=lambda number: (gains[number][0], -number))
    if gains[best][1] == 0:  # no error is above any candidate: the highest one stands
        return candidates[-1], not close
    # Candidates with the same errors above them stay equal whatever the last digits are.
    rivals = [gain for gain, above in gains if above and above != gains[best][1]]
    margin = 4 * SPREAD * allowed * (1 / max(mean, allowed) + 1 / deviation)
    lead = gains[best][0] - max(rivals, default=-np.inf)
    return candidates[best], not close and lead > margin


def _gain(
    errors: NDArray[np.float64], candidate: float, mean: float, deviation: float
) -> tuple[float, int]:
    """Return what taking the errors above a candidate away would gain, and how many they are."""
    above = errors >= candidate
    many = int(above.sum())
    if not many:
        return -np.inf, 0
    runs = sum(1 for i, now in enumerate(above) if now and (i == 0 or not above[i - 1]))
    below = errors[~above]  # some are: a candidate is above the mean
    lower = (mean - float(below.mean())) / mean
    narrower = (deviation - float(below.std())) / deviation
    return (lower + narrower) / (many + runs * runs), many
