"""How far numbers spread around their mean, and which of them do not change at all.

Owns that rule alone. Called by scaling.py and conditions.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def deviations(squares: Numbers, mean: Numbers) -> Numbers:
    """Return deviations (F,) by the mean squares around `mean` (F,); 1 where nothing changes."""
    found = np.sqrt(squares)
    constant = found <= 1e-6 * np.maximum(1.0, np.abs(mean))  # float32 noise of a constant
    return np.where(constant, 1.0, found)
