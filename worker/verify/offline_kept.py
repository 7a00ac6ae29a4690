"""What a key's state keeps of its answers, written out once more for one event at a time.

Owns the oracle's own reading of the tensors "back.answer" and "back.late_offsets" and their times,
beside the arrays of keyfold.export.answers, which the worker runs. Called by offline_key.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import OutputSpec

Tensor = NDArray[Any]


class OfflineKeeping:
    """What a key's state keeps beside graph and front, one event at a time."""

    def __init__(self, outputs: OutputSpec) -> None:
        self._session = outputs.answers == "session"
        self._delay, self._width = outputs.delay, len(outputs.names)

    @property
    def count(self) -> int:
        """How many tensors there are."""
        return 2 if self._session or self._delay else 0

    def cold(self) -> list[Tensor]:
        """Return what a key without history keeps, in storage order."""
        if self._session:
            return [np.zeros((1, self._width), np.float32), np.zeros(1, np.int64)]
        if not self._delay:
            return []
        return [np.full((1, self._delay), -1, np.int64), np.zeros((1, self._delay), np.int64)]

    def one(
        self, y: NDArray[np.float32], offset: int, time_ms: int, kept: list[Tensor]
    ) -> list[Tensor]:
        """Return what is kept after an event with the outputs y (O,)."""
        if self._session:
            return [y[None], np.array([time_ms])]
        pairs = zip(kept, (offset, time_ms), strict=True)
        return [np.array([[*ring[0].tolist()[1:], new]], np.int64) for ring, new in pairs]
