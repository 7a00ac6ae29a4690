"""How unlikely a text's symbols are, reckoned once more from one symbol's probability at a time.

Owns the oracle's own reading of the score that keyfold.export.likelihood describes, as bounds: a
probability may be off by the tolerance of an output, and of a rare symbol that is much. It shares
no code with that module. Called by offline_key.py, offline_emit.py and likelihood_reading.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isnan, log, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-7  # a smaller probability counts as this
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
        least = [_nats(one + self._tolerance) for one in known]
        most = [_nats(one - self._tolerance) for one in known]
        return [fsum(least) / len(known), fsum(most) / len(known), max(least), max(most)]


def _nats(probability: float) -> float:
    return -log(min(max(probability, LEAST), 1.0))
