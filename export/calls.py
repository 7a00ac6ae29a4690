"""A step function that takes any number of steps, made of one that takes so many a call.

Owns the cutting of a call, row by row as long as each one's length. Pure numpy; it knows no graph.
For verify.py and bundle.py, whose sequences are longer than some graphs' largest T.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keyfold.export.states import Tensors

Floats = NDArray[np.float32]
# x (B,T,F), lengths (B,), states -> y (B,T,O), states after each row's length
Step = Callable[[Floats, NDArray[np.int32], Tensors], tuple[Floats, Tensors]]


def in_calls(step: Step, max_steps: int) -> Step:
    """Return `step` for any T: calls of at most `max_steps` steps, one after the other."""

    def stepped(x: Floats, lengths: NDArray[np.int32], carried: Tensors) -> tuple[Floats, Tensors]:
        states, ys = carried, []
        for first in range(0, x.shape[1], max_steps):
            part = x[:, first : first + max_steps]
            left = lengths - first
            y, after = step(part, np.clip(left, 1, part.shape[1]).astype(np.int32), states)
            # A row that has ended steps on, since a length of 0 gives no state; it keeps its own.
            states = {
                name: np.where(
                    (left > 0).reshape(-1, *(1,) * (value.ndim - 1)), value, states[name]
                )
                for name, value in after.items()
            }
            ys.append(y)
        return np.concatenate(ys, axis=1), states

    return stepped
