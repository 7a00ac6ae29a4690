"""What a key's past adds to its inputs, written out once more for one event at a time.

Owns the oracle's own reading of the front: last known values, the time since the key's last event,
running standardisation. On purpose it is plain Python beside the arrays of keyfold.export.front,
which the worker runs; the two share no more than the feature spec. Called by offline_key.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isnan, log1p, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FeatureSpec, Field

NEVER_MS = -(2**63)  # "front.time_ms" of a key that had no event


class OfflineFront:
    """The front of one feature spec, for one event of one key."""

    def __init__(self, features: FeatureSpec) -> None:
        self._features = features
        # The fields with something to remember, and each of their value columns.
        self._last = list(_columns(features, lambda field: field.missing == "last"))
        self._since = len(features.plain_columns) - 1  # symbols of a text stand behind it
        self._scaled = list(_columns(features, lambda field: field.standardise))

    def cold(self) -> dict[str, NDArray[Any]]:
        """Return what a key without history remembers, by name, in storage order."""
        found: dict[str, NDArray[Any]] = {}
        if self._last:
            found["front.last"] = np.full(len(self._last), np.nan, np.float32)
        if self._features.since_last:
            found["front.time_ms"] = np.full((), NEVER_MS, np.int64)
        if self._scaled:
            found["front.moments"] = np.zeros((3, len(self._scaled)), np.float64)
        return found

    def one(
        self, x: NDArray[np.float32], time_ms: int, memory: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Finish one event's columns x (F,) and return them with the memory after it."""
        x, memory = x.copy(), {name: values.copy() for name, values in memory.items()}
        for place, (field, column) in enumerate(self._last):
            seen = memory["front.last"]
            if not isnan(x[column]):
                seen[place] = x[column]
            x[column] = field.fill if isnan(seen[place]) else seen[place]
        for place, (field, column) in enumerate(self._scaled):
            missing = field.missing != "error" and x[column + 1] == 1
            moments = memory["front.moments"][:, place]
            x[column] = _standardised(float(x[column]), moments, field, missing=missing)
        if self._features.since_last:
            before = int(memory["front.time_ms"])
            elapsed_ms = 0 if before == NEVER_MS else max(0, time_ms - before)
            x[self._since] = log1p(elapsed_ms / 1000)
            memory["front.time_ms"] = np.array(time_ms, np.int64)
        return x, memory


def _columns(features: FeatureSpec, wanted: Callable[[Field], bool]) -> Iterator[tuple[Field, int]]:
    column = 0
    for field in features.fields:
        if wanted(field):
            yield from ((field, column + number) for number in range(len(field.value_columns)))
        column += len(field.columns)


def _standardised(value: float, moments: NDArray[Any], field: Field, *, missing: bool) -> float:
    """Return a value by the moments that it has just changed, unless it is missing."""
    count, mean, m2 = (float(moment) for moment in moments)
    if not missing:
        count += 1
        off = value - mean
        mean += off / count
        m2 += off * (value - mean)
        moments[:] = count, mean, m2
    spread = sqrt(m2 / count) if m2 > 0 else 0.0
    return 0.0 if not spread or (missing and field.missing != "last") else (value - mean) / spread
