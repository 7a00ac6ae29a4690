"""The layer that scales each event by the operating condition that it was recorded in.

Owns `StandardizeByCondition`, a pure function of its configuration, without variables: its numbers
become constants of the ONNX graph, as in layers.py. It knows nothing of how conditions are learned
(training/conditions.py). Imported by training (to build) and by convert (to load); the worker never
sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

Numbers = Sequence[float]


@keras.saving.register_keras_serializable(package="keyfold")
class StandardizeByCondition(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Subtract the mean of an event's condition, divide by its deviation: (..., F) -> (..., F).

    The condition is the nearest of K centres over C of the columns, each in units of `spreads`; of
    two at the same distance the first. Given columns may be scaled alike in all conditions by
    giving all conditions the same numbers: this layer makes no difference.
    """

    def __init__(
        self,
        columns: Sequence[int],
        spreads: Numbers,
        centres: Sequence[Numbers],
        means: Sequence[Numbers],
        deviations: Sequence[Numbers],
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.columns = tuple(map(int, columns))  # C columns of x
        self.spreads = tuple(map(float, spreads))  # per column: what counts as a distance of 1
        self.centres = _rows(centres)  # (K,C)
        self.means = _rows(means)  # (K,F)
        self.deviations = _rows(deviations)  # (K,F)
        shapes = [np.shape(some) for some in (self.centres, self.means, self.deviations)]
        count, width = shapes[1] if len(shapes[1]) == 2 else (0, 0)
        expected = [(count, len(self.columns)), (count, width), (count, width)]
        if not count or shapes != expected or len(self.spreads) != len(self.columns):
            raise ValueError(
                "StandardizeByCondition: expected a centre, means and deviations per condition, "
                f"got shapes {shapes} and {len(self.spreads)} spreads"
            )
        if min(self.spreads) <= 0 or np.min(self.deviations) <= 0:
            raise ValueError("StandardizeByCondition: expected positive spreads and deviations")

    def call(self, x: Any) -> Any:
        """Scale x."""

        def constant(values: Any) -> Any:
            # Rounded once, so that the layer is the same function in any arithmetic.
            return keras.ops.convert_to_tensor(np.array(values, np.float32).tolist(), x.dtype)

        seen = keras.ops.take(x, np.array(self.columns, np.int32), axis=-1)
        away = (seen[..., None, :] - constant(self.centres)) / constant(self.spreads)
        # Not argmin: Keras guards it against -0 by operators that ONNX does not have.
        nearest = keras.ops.top_k(-keras.ops.sum(keras.ops.square(away), axis=-1), 1)[1][..., 0]
        # A product with one 1 among zeros picks a row exactly.
        condition = keras.ops.one_hot(nearest, len(self.centres), dtype=x.dtype)
        scales = 1.0 / np.array(self.deviations, np.float32)
        mean = keras.ops.matmul(condition, constant(self.means))
        return (x - mean) * keras.ops.matmul(condition, constant(scales))

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {
            **super().get_config(),
            "columns": list(self.columns),
            "spreads": list(self.spreads),
            "centres": [list(row) for row in self.centres],
            "means": [list(row) for row in self.means],
            "deviations": [list(row) for row in self.deviations],
        }


def _rows(rows: Sequence[Numbers]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)
