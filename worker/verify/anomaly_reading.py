"""Reads the member "anomaly" of one prediction and compares it with the offline scores.

Owns the oracle's own rules for it: the score is the largest of the fields', a field counts as the
largest when it is within the tolerance, and the flag says of the numbers beside it whether the one
is above the other. So a score within the tolerance of the threshold may be flagged or not, as it
was computed. Called by output_reading.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keyfold.export.events import OutputSpec
from keyfold.worker.verify.offline_threshold import ROUNDING, SPREAD, Judged

Difference = tuple[str, str]  # expected, got


class AnomalyReading:
    """Judges what predictions of one bundle say of anomalies."""

    def __init__(self, outputs: OutputSpec, tolerance: float) -> None:
        forecast, anomaly = outputs.forecast, outputs.anomaly
        if forecast is None or anomaly is None:
            raise ValueError("outputs: expected a forecast and an anomaly, got none")
        self._fields = forecast.fields
        self._tolerances = [tolerance / scale for scale in anomaly.scales]
        self._threshold = anomaly.threshold
        # A key's own threshold and what is compared with it stand in the prediction.
        self._own = {"threshold", "smoothed"} if anomaly.dynamic is not None else set()

    def form_difference(self, anomaly: Any) -> Difference | None:
        """Return what is wrong with the form, or with the members among themselves."""
        if not isinstance(anomaly, dict):
            return "an anomaly", "another form"
        if anomaly.get("score") is None:
            wanted = {"score": None, "field": None, "flag": False}
            is_none = anomaly == wanted and anomaly["flag"] is False  # 0 equals it, too
            return None if is_none else (f"anomaly {wanted}", f"{anomaly}")
        form = {"score", "field", "flag", *self._own}
        if anomaly.keys() != form:
            return f"an anomaly of {', '.join(sorted(form))}", "another form"
        for name in sorted({"score", *self._own}):
            if type(anomaly[name]) not in (int, float) or not 0 <= anomaly[name] < math.inf:
                return f"an anomaly {name} of 0 or more", f"{name} {anomaly[name]!r}"
        if anomaly["field"] not in self._fields:
            return f"an anomaly field of {', '.join(self._fields)}", f"field {anomaly['field']!r}"
        return self._flag_difference(anomaly)

    def difference(
        self, scores: Sequence[float | None], judged: Judged, anomaly: Any
    ) -> Difference | None:
        """Compare with the offline scores, one per field (None: no forecast or no value).

        The form and the flag are those of form_difference().
        """
        best = max((score for score in scores if score is not None), default=None)
        got = anomaly["score"]
        if best is None or got is None:
            return None if best is got else (f"anomaly score {best!r}", f"score {got!r}")
        number = self._fields.index(anomaly["field"])
        own, allowed = scores[number], self._allowed(number, best)
        top = scores.index(best)
        # Online the largest is at least what the offline largest is there, and is the field's own.
        if not -self._allowed(top, best) <= got - best <= allowed:
            return f"anomaly score {best!r} within {allowed:.2g}", f"score {got!r}"
        if own is None or got > own + allowed:
            return f"anomaly field {self._fields[top]!r}", f"field {anomaly['field']!r}"
        return self._own_difference(judged, anomaly) if self._own else None

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an anomaly says the same as another one did."""
        before, now = first["score"], again["score"]
        if before is None or now is None:
            return before is now
        numbers = [self._fields.index(one["field"]) for one in (first, again)]
        return bool(abs(before - now) <= max(self._allowed(n, before) for n in numbers))

    def _own_difference(self, judged: Judged, anomaly: Any) -> Difference | None:
        """Compare the key's own threshold and its moving average, where they are sure."""
        allowed = max(self._tolerances)
        for name, want, spread in (
            ("smoothed", judged.smoothed, 1),
            ("threshold", judged.threshold, SPREAD),
        ):
            if abs(anomaly[name] - want) > spread * (allowed + ROUNDING * want):
                return f"anomaly {name} {want!r}", f"{name} {anomaly[name]!r}"
        return None

    def _flag_difference(self, anomaly: Any) -> Difference | None:
        """Compare the flag with the numbers beside it."""
        judged = anomaly["smoothed" if self._own else "score"]
        threshold = anomaly["threshold"] if self._own else self._threshold
        flag, wanted = anomaly["flag"], judged > threshold
        # The threshold of the manifest is no float32 as the score is.
        rounding = 0.0 if self._own else ROUNDING * threshold
        if flag is wanted or (type(flag) is bool and abs(judged - threshold) <= rounding):
            return None
        what = f"{str(wanted).lower()}: {judged!r} against the threshold {threshold!r}"
        return f"anomaly flag {what}", f"flag {flag!r}"

    def _allowed(self, number: int, score: float) -> float:
        return self._tolerances[number] + ROUNDING * score
