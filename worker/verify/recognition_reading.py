"""Reads the output of one prediction of a transcription and compares it with the offline one.

Owns the oracle's own rules for it: the symbol is null or one of the names, and one that may be told
there; the probability is the largest of the event. Called by output_reading.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from keyfold.worker.verify.findings import Findings

Difference = tuple[str, str]  # expected, got


class RecognitionReading:
    """Judges what predictions of one bundle recognise."""

    def __init__(self, names: Sequence[str], tolerance: float, findings: Findings) -> None:
        self._names, self._tolerance, self._findings = names, tolerance, findings

    def form_difference(self, output: Any) -> Difference | None:
        """Return what is wrong with the form; symbol and probability may be any."""
        form = "an output of symbol (null or text) and probability"
        if not isinstance(output, dict) or output.keys() != {"symbol", "probability"}:
            return form, "another form"
        symbol, probability = output["symbol"], output["probability"]
        if type(probability) not in (int, float):
            return form, f"probability {probability!r}"
        if symbol is not None and (type(symbol) is not str or symbol not in self._names[1:]):
            return "null or a symbol of the bundle", f"symbol {symbol!r}"
        return None

    def difference(
        self, wanted: Sequence[float], told: Sequence[float | None], output: Any
    ) -> Difference | None:
        """Compare with the offline outputs (O,) and with what may be told (O,)."""
        wrong = self.form_difference(output)
        if wrong is not None:
            return wrong
        best, got = max(wanted), array("f", [output["probability"]])[0]
        gap = abs(got - best)
        self._findings.max_abs_difference = max(self._findings.max_abs_difference, gap)
        if not gap <= self._tolerance:
            return f"probability {best!r} within {self._tolerance:.2g}", repr(got)
        symbol = output["symbol"]
        if told[0 if symbol is None else self._names.index(symbol)]:
            return None
        some = [self._names[number] or "null" for number, may in enumerate(told) if may]
        return f"symbol {' or '.join(some)}", f"symbol {symbol or 'null'}"

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an output says the same as another one did."""
        if self.form_difference(first) is not None or self.form_difference(again) is not None:
            return False
        gap = abs(float(first["probability"]) - float(again["probability"]))
        return bool(first["symbol"] == again["symbol"] and gap <= self._tolerance)
