"""Which symbol an event of a transcription tells, reckoned once more for one event at a time.

Owns the oracle's own reading of what keyfold.export.recognition describes: a symbol is told where
it is the best column and was not the best of the key's previous event. Where two columns are nearly
equal either may be the best, and both are followed. It shares no code with that module. Called by
offline_key.py, offline_emit.py and recognition_reading.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BEST = "back.best"  # the tensor's name in the manifest's order of states
Tensor = NDArray[Any]


class OfflineRecognition:
    """The reading of one bundle's events; `tolerance` is that of an output."""

    def __init__(self, columns: int, tolerance: float) -> None:
        self.columns, self._tolerance = columns, tolerance

    def cold(self) -> list[Tensor]:
        """Return what a key without history remembers: blank. Behind it, what it may be."""
        may = np.zeros((1, self.columns), np.bool_)
        may[0, 0] = True
        return [np.zeros(1, np.int32), may]

    def one(self, y: NDArray[np.float32], memory: list[Tensor]) -> tuple[list[float], list[Tensor]]:
        """Return per column 1.0 if an event may tell it, else 0.0, and what is remembered then.

        Column 0 stands for no symbol.
        """
        before = set(np.flatnonzero(memory[1][0]).tolist())
        now = y >= y.max() - 2 * self._tolerance
        told = [0.0] * self.columns
        for column in np.flatnonzero(now).tolist():
            if column == 0 or column in before:
                told[0] = 1.0
            if column and before - {column}:
                told[column] = 1.0
        return told, [np.array([y.argmax()], np.int32), now[None]]


def is_possible(stored: int, tensors: list[Tensor]) -> bool:
    """Say whether a stored best column is one that it may be after a key's last event."""
    may = tensors[-1][0]
    return 0 <= stored < len(may) and bool(may[stored])
