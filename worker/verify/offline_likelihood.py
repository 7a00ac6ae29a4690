"""How unlikely a text's symbols are, reckoned once more from one symbol's probability at a time.

Owns the oracle's own reading of the score that keyfold.export.likelihood describes, as bounds, and
how far a probability may be off for them. It shares no code with that module. Called
by offline_key.py, offline_emit.py and likelihood_reading.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isnan, log, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-7  # a smaller probability counts as this
COMMON = 0.01  # a probability of this and more may be off by as much as any output
FLOOR = 0.01  # of that much: what the rarest symbol may be off by
BOUNDS = 4  # of an event: least and most of the mean, then of the largest, in nats


class OfflineLikelihood:
    """The score of one bundle's texts; `tolerance` is that of an output."""

    def __init__(self, symbols: int, tolerance: float) -> None:
        self._symbols, self._tolerance = symbols, tolerance

    def cold(self) -> NDArray[Any]:
        """Return the newest output (1,O) of a key without any."""
        return np.full((1, self._symbols), np.nan, np.float32)

    def bounds(self, likely: Sequence[float]) -> list[float]:
        """Return an event's BOUNDS, of its symbols' probabilities; NaN where none is judged.

        A probability that is NaN is that of a cold key's first symbol, which is not judged.
        """
        known = [one for one in likely if not isnan(one)]
        if not known:
            return [nan] * BOUNDS
        least = [_nats(one + slack(one, self._tolerance)) for one in known]
        most = [_nats(one - slack(one, self._tolerance)) for one in known]
        return [fsum(least) / len(known), fsum(most) / len(known), max(least), max(most)]


def slack(probability: float, tolerance: float) -> float:
    """Return how far a probability may be off, where an output may be by `tolerance`."""
    # A softmax makes errors of its inputs errors in proportion to each probability: what is allowed
    # falls with it. Otherwise 1e-5 beside a probability of 5e-6 would let any score pass. Not down
    # to nothing: near LEAST a large input's own rounding shows.
    return tolerance * min(1.0, max(probability / COMMON, FLOOR))


def _nats(probability: float) -> float:
    return -log(min(max(probability, LEAST), 1.0))
