"""Custom Keras layers that a training run may hold, beside Keras's own.

Owns what a saved model needs in order to be loaded again, here and in export. Every layer is a pure
function of its configuration, without variables: its numbers become constants of the ONNX graph
(Keras's Normalization keeps variables, which tf2onnx turns into extra graph inputs). Imported by
training (to build) and by convert (to load); the worker never sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="keyfold")
class Standardize(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Subtract each feature's mean and divide by its deviation: (..., F) -> (..., F).

    The mean is subtracted first: x * scale + offset would cancel badly in float32 where the mean is
    large against the deviation. Both are rounded to float32 here, once, so that the layer is the
    same function in any arithmetic.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], **settings: Any) -> None:
        super().__init__(**settings)
        if len(mean) != len(deviation) or not all(d > 0 for d in deviation):
            raise ValueError("Standardize: expected as many positive deviations as means")
        self.mean = tuple(map(float, mean))
        self.deviation = tuple(map(float, deviation))

    def call(self, x: Any) -> Any:
        """Scale x."""
        mean = np.array(self.mean, np.float32)
        scale = np.float32(1) / np.array(self.deviation, np.float32)
        return (x - keras.ops.convert_to_tensor(mean.tolist(), x.dtype)) * (
            keras.ops.convert_to_tensor(scale.tolist(), x.dtype)
        )

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {
            **super().get_config(),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
        }
