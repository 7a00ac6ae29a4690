"""Reads the "output" of a prediction that is one symbol of an answer.

Owns the oracle's own reading of that form and its comparison: symbols and texts exactly, their
probabilities within the tolerance. Called by output_reading.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keyfold.worker.verify.findings import Findings

Difference = tuple[str, str]  # expected, got
PLAIN = {"symbol", "probability"}


class SaidReading:
    """Judges symbols of one bundle's answers."""

    def __init__(self, names: Sequence[str], tolerance: float, findings: Findings) -> None:
        self._names, self._known = names, set(names)
        self._tolerance, self._findings = tolerance, findings

    def form_difference(self, output: Any) -> Difference | None:
        """Return what is wrong with an output's form."""
        wanted = "an output of symbol and probability, behind the last one also text"
        if not isinstance(output, dict) or output.keys() - {"text"} != PLAIN:
            return wanted, "another form"
        if output["symbol"] not in self._known or type(output["probability"]) not in (int, float):
            return wanted, f"symbol {output['symbol']!r}, probability {output['probability']!r}"
        if not isinstance(output.get("text", ""), str):
            return wanted, f"text {output['text']!r}"
        return None

    def difference(
        self, wanted: Sequence[float], text: str | None, output: Any
    ) -> Difference | None:
        """Return the first difference: `wanted` is the symbol's number and its probability."""
        if (wrong := self.form_difference(output)) is not None:
            return wrong
        symbol = self._names[int(wanted[0])]
        if output["symbol"] != symbol:
            return f"symbol {symbol!r}", f"symbol {output['symbol']!r}"
        gap = abs(float(output["probability"]) - wanted[1])
        self._findings.max_abs_difference = max(self._findings.max_abs_difference, gap)
        if not gap <= self._tolerance:
            return (
                f"probability {wanted[1]!r} within {self._tolerance:.2g}",
                repr(output["probability"]),
            )
        if output.get("text") != text:
            return f"text {text!r}", f"text {output.get('text')!r}"
        return None

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an output says the same as another one did."""
        if self.form_difference(first) is not None or self.form_difference(again) is not None:
            return False
        gap = abs(first["probability"] - again["probability"])
        same = [first.get(name) == again.get(name) for name in ("symbol", "text")]
        return all(same) and gap <= self._tolerance
