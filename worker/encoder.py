"""Predictions written by the native module, byte for byte as keyfold.export.predictions does.

Owns which bundles' predictions it can write; the others' (forecasts, texts' scores, the largest
probabilities alone) are written in Python. Called by worker/pipeline.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import Caused, PredictionEncoder
from keyfold.export.outputs import OutputSpec
from keyfold.worker import native


def encoder_of(
    outputs: OutputSpec, bundle_id: str, topic: str, *, use_native: bool
) -> PredictionEncoder:
    """Return what writes a bundle's predictions."""
    plain = not outputs.top and outputs.likelihood is None
    if use_native and plain and outputs.kind in ("regression", "classification"):
        return _NativeEncoder(outputs, bundle_id, topic)
    return PredictionEncoder(outputs, bundle_id, topic)


class _NativeEncoder(PredictionEncoder):
    def __init__(self, outputs: OutputSpec, bundle_id: str, topic: str) -> None:
        super().__init__(outputs, bundle_id, topic)
        names = self._labels
        if outputs.kind == "classification":
            self._heads = tuple(b'{"label":%b,"probabilities":[' % name for name in names)
            self._pieces = (b"", *[b","] * (len(names) - 1), b"]}")
        else:
            self._heads = ()
            first, *rest = names
            self._pieces = (b"{%b:" % first, *(b",%b:" % name for name in rest), b"}")

    def encode(
        self,
        partition: int,
        caused: Caused,
        y: NDArray[np.float32],
        scores: NDArray[np.float32] | None = None,
    ) -> list[bytes]:
        """Write one prediction per row of y (N,O)."""
        if caused.abouts is not None or caused.indexes is not None or caused.lasts is not None:
            return super().encode(partition, caused, y, scores)
        gaps = None if caused.gaps is None else np.asarray(caused.gaps, np.bool_)
        payloads, declined = native.write_predictions(
            b"%b:%d" % (self._topic, partition), self._heads, self._pieces, self._tail,
            np.asarray(caused.offsets, np.int64), caused.keys,
            np.asarray(caused.times_ms, np.int64), np.asarray(caused.steps, np.int64), y, gaps,
        )  # fmt: skip
        if declined:
            rest = super().encode(partition, caused.only(declined), y[declined])
            for row, payload in zip(declined, rest, strict=True):
                payloads[row] = payload
        return payloads
