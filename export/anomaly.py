"""How far an event is from what was forecast for it, as a part of the fold behind the graph.

Owns the score and the point forecast that a key's state keeps until its next event. Pure numpy;
knows neither records nor graphs. The same events give the same bits however they are grouped into
calls. Called by training (to calibrate), the worker's fold and keyfold-verify.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.dynamic import DynamicThreshold
from keyfold.export.features import FLOAT32_MAX
from keyfold.export.outputs import Anomaly, Forecast, OutputSpec
from keyfold.export.recognition import Recognition
from keyfold.export.states import StateSpec, Tensors, own_state

FORECAST = "back.forecast"

Rows = NDArray[np.float32]  # (B,T,...)


class Back:
    """The part of the fold behind the graph, of one output spec."""

    def __init__(self, forecast: Forecast, anomaly: Anomaly) -> None:
        self._points = list(forecast.point_columns)
        self._scales = np.array(anomaly.scales, np.float64)
        self.columns: tuple[str, ...] = ("score", "field")  # of the scores
        self.states: tuple[StateSpec, ...] = (  # in storage order
            own_state(FORECAST, (len(self._points),), "float32", float("nan")),
        )
        self._own: DynamicThreshold | None = None
        if anomaly.dynamic is not None:
            self._own = DynamicThreshold(anomaly.dynamic, anomaly.threshold)
            self.columns += ("threshold", "judged")
            self.states += self._own.states

    @classmethod
    def of(cls, outputs: OutputSpec) -> Back | Recognition | None:
        """Return the back of an output spec; None: nothing is scored or recognised."""
        if outputs.kind == "transcription":
            return Recognition()
        if outputs.forecast is None or outputs.anomaly is None:
            return None
        return cls(outputs.forecast, outputs.anomaly)

    def run(
        self, y: Rows, observed: Rows | None, lengths: NDArray[Any], states: Tensors
    ) -> tuple[Rows, dict[str, NDArray[Any]]]:
        """Score the events whose outputs are y (B,T,O) and whose values are observed (B,T,K).

        Returns scores (B,T,S), named by `columns`, and the states under their names. All are NaN
        where nothing was forecast or observed. What stands beyond a row's length is not looked at,
        and is NaN in the result. Without `judged`, the score is compared with the fixed threshold.
        """
        if observed is None:
            raise RuntimeError("expected observed values: the bundle scores events, got none")
        points = y[:, :, self._points]
        before = np.concatenate([states[FORECAST][:, None], points[:, :-1]], axis=1)
        errors = np.abs(observed.astype(np.float64) - before) / self._scales
        valid = np.arange(y.shape[1]) < np.asarray(lengths)[:, None]
        known = ~np.isnan(errors) & valid[:, :, None]
        errors = np.where(known, np.minimum(errors, FLOAT32_MAX), -1.0)
        some = known.any(axis=2)
        scores = np.stack(
            [
                np.where(some, errors.max(axis=2), np.nan),
                np.where(some, errors.argmax(axis=2), np.nan),
            ],
            axis=2,
        ).astype(np.float32)
        every = np.concatenate([states[FORECAST][:, None], points], axis=1)
        last = every[np.arange(len(y)), np.asarray(lengths)].astype(np.float32)
        if self._own is None:
            return scores, {FORECAST: last}
        judged, after = self._own.run(scores[:, :, 0], states)
        return np.concatenate([scores, judged], axis=2), {FORECAST: last, **after}
