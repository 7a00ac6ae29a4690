"""A step that ends at no finite number where a test says so: the worker's and the oracle's.

Owns the two steps and the number that says so. They are written apart, as the real ones are: that
both call the same events rejects is for the tests in tests/worker/verify to find out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Tensors
from keyfold.worker.model import Model
from keyfold.worker.verify.refold import OfflineStep

MAX = 3e38  # of a feature: where the steps below end at no finite number


class DivergingModel(Model):
    """The worker's step, infinite at an event of the largest numbers."""

    def step(
        self, x: NDArray[np.float32], lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Step rows of events."""
        y, after = super().step(x, lengths, states)
        largest = np.abs(x).max(axis=-1, keepdims=True)
        return np.where(largest >= MAX / 2, np.float32(np.inf), y), after


class DivergingStep(OfflineStep):
    """The oracle's step, likewise."""

    def one(
        self, x: NDArray[np.float32], tensors: list[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Step one event."""
        y, after = super().one(x, tensors)
        return (np.full_like(y, np.inf) if (np.abs(x) >= MAX / 2).any() else y), after
