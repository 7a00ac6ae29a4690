"""Reads the member "anomaly" of a text's prediction and compares it with the offline bounds.

Owns the oracle's own rules for it: mean and largest lie within their bounds, the flag says whether
the score beside it is above the manifest's threshold. Called by output_reading.py, as
anomaly_reading.py is for forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keyfold.export.events import OutputSpec
from keyfold.worker.verify.offline_likelihood import LEAST, slack
from keyfold.worker.verify.offline_threshold import ROUNDING

Difference = tuple[str, str]  # expected, got
FORM = {"score", "worst", "flag"}
NONE = {"score": None, "worst": None, "flag": False}


class LikelihoodReading:
    """Judges what predictions of one bundle say of texts' likelihood."""

    def __init__(self, outputs: OutputSpec, tolerance: float) -> None:
        if outputs.likelihood is None:
            raise ValueError("outputs: expected a likelihood, got none")
        self._threshold, self._tolerance = outputs.likelihood.threshold, tolerance

    def form_difference(self, anomaly: Any) -> Difference | None:
        """Return what is wrong with the form, or with the members among themselves."""
        if not isinstance(anomaly, dict) or anomaly.keys() != FORM:
            return f"an anomaly of {', '.join(sorted(FORM))}", "another form"
        if anomaly["score"] is None or anomaly["worst"] is None:
            is_none = anomaly == NONE and anomaly["flag"] is False  # 0 equals it, too
            return None if is_none else (f"anomaly {NONE}", f"{anomaly}")
        for name in ("score", "worst"):
            if type(anomaly[name]) not in (int, float) or not 0 <= anomaly[name] < math.inf:
                return f"an anomaly {name} of 0 or more", f"{name} {anomaly[name]!r}"
        score, flag = anomaly["score"], anomaly["flag"]
        wanted = score > self._threshold
        # The threshold of the manifest is no float32 as the score is.
        is_close = abs(score - self._threshold) <= ROUNDING * self._threshold
        if flag is wanted or (type(flag) is bool and is_close):
            return None
        what = f"{str(wanted).lower()}: {score!r} against the threshold {self._threshold!r}"
        return f"anomaly flag {what}", f"flag {flag!r}"

    def difference(self, bounds: Sequence[float | None], anomaly: Any) -> Difference | None:
        """Compare with the offline bounds; the form and the flag are those of form_difference()."""
        for name, (low, high) in (("score", bounds[:2]), ("worst", bounds[2:])):
            got = anomaly[name]
            if low is None or high is None or got is None:
                if got is not low:
                    return f"anomaly {name} {low!r}", f"{name} {got!r}"
                continue
            rounding = ROUNDING * (1.0 + high)
            if not low - rounding <= got <= high + rounding:
                return f"anomaly {name} from {low:.6g} to {high:.6g}", f"{name} {got!r}"
        return None

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an anomaly says the same as another one did."""
        for name in ("score", "worst"):
            before, now = first[name], again[name]
            if before is None or now is None:
                if before is not now:
                    return False
            elif abs(before - now) > self._apart(first["worst"]):
                return False
        return True

    def _apart(self, worst: float) -> float:
        """Return how far apart two scores may be, of which no symbol is less likely than worst."""
        # Nothing is known of the other symbols: each may be as unlikely as the worst.
        likely = math.exp(-worst)
        off = slack(likely, self._tolerance)
        ratio = (likely + off) / max(likely - off, LEAST)
        return ROUNDING * (1.0 + worst) + math.log(ratio)
