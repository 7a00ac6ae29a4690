"""Reads the member "output" of one prediction and compares it with the offline one.

Owns the oracle's own reading of that member, without the encoder that wrote it: its form for every
kind of output, the O numbers, the label. What it says of an anomaly is anomaly_reading.py's.
Called by prediction.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.anomaly_reading import AnomalyReading
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.folded import Expected
from keyfold.worker.verify.likelihood_reading import LikelihoodReading
from keyfold.worker.verify.recognition_reading import RecognitionReading
from keyfold.worker.verify.said_reading import SaidReading
from keyfold.worker.verify.top_reading import TopReading

Difference = tuple[str, str]  # expected, got
Path = tuple[str, ...]  # of members, from the outside in


class OutputReading:
    """Judges the outputs of one bundle."""

    def __init__(self, bundle: Bundle, findings: Findings) -> None:
        outputs = bundle.manifest.outputs
        self._findings = findings
        self._tolerance = bundle.manifest.tolerance * bundle.golden.scale()
        self._names, self._kind = outputs.names, outputs.kind
        self._paths = list(_paths(outputs)) if outputs.forecast is not None else []
        self._anomaly = (
            AnomalyReading(outputs, self._tolerance) if outputs.anomaly is not None else None
        )
        self._said = (
            SaidReading(self._names, self._tolerance, findings)
            if outputs.generate is not None
            else None
        )
        self._likelihood = (
            LikelihoodReading(outputs, self._tolerance) if outputs.likelihood is not None else None
        )
        self._recognition = (
            RecognitionReading(outputs.names, self._tolerance, findings)
            if outputs.kind == "transcription"
            else None
        )
        self._top = TopReading(self._names, outputs.top, self._tolerance) if outputs.top else None
        named = "probabilities" if self._top is None else "top"
        self._members = {"label", named} | ({"anomaly"} if self._likelihood is not None else set())

    def form_difference(self, output: Any) -> Difference | None:
        """Return what is wrong with an output's form; its numbers may be any."""
        if self._said is not None:
            return self._said.form_difference(output)
        if self._recognition is not None:
            return self._recognition.form_difference(output)
        if self.numbers(output) is None:
            return f"an output of {', '.join(self._names)}", "another form"
        scored = self._anomaly or self._likelihood
        return None if scored is None else scored.form_difference(output["anomaly"])

    def difference(self, expected: Expected, output: Any) -> Difference | None:
        """Return the first difference between an output and the offline one."""
        if self._said is not None:
            return self._said.difference(expected.output, expected.text, output)
        if self._recognition is not None:
            return self._recognition.difference(expected.output, expected.scores, output)
        wrong = self.form_difference(output) or self._number_difference(expected.output, output)
        if wrong is None and self._likelihood is not None:
            return self._likelihood.difference(expected.scores, output["anomaly"])
        if wrong is not None or self._anomaly is None:
            return wrong
        return self._anomaly.difference(expected.scores, expected.judged, output["anomaly"])

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an output says the same as another one did."""
        if self._said is not None:
            return self._said.repeats(first, again)
        if self._recognition is not None:
            return self._recognition.repeats(first, again)
        if self.form_difference(first) is not None or self.form_difference(again) is not None:
            return False
        pairs = zip(self.numbers(first) or [], self.numbers(again) or [], strict=True)
        if self._top is not None:
            if not self._top.repeats(first, again):
                return False
        elif not all(abs(a - b) <= self._tolerance for a, b in pairs):
            return False
        scored = self._anomaly or self._likelihood
        return scored is None or scored.repeats(first["anomaly"], again["anomaly"])

    def numbers(self, output: Any) -> list[float] | None:
        """Return an output's O numbers (or the largest), or None when it has another form."""
        if not isinstance(output, dict):
            return None
        numbers: Any
        if self._kind == "classification":
            if output.keys() != self._members or output["label"] not in self._names:
                return None
            if self._top is not None:
                pairs = self._top.pairs(output)
                return None if pairs is None else [probability for _, probability in pairs]
            numbers = output["probabilities"]
        elif self._kind == "forecast":
            members = {"forecast"} if self._anomaly is None else {"forecast", "anomaly"}
            if output.keys() != members:
                return None
            numbers = self._forecast_numbers(output["forecast"])
        else:
            if output.keys() != set(self._names):
                return None
            numbers = [output[name] for name in self._names]
        if not isinstance(numbers, list) or len(numbers) != len(self._names):
            return None
        if not all(type(number) in (int, float) for number in numbers):
            return None
        # The text is the shortest that reads back as the same float32.
        return array("f", numbers).tolist()

    def _forecast_numbers(self, forecast: Any) -> list[Any] | None:
        leaves = dict(_leaves(forecast))
        if leaves.keys() != set(self._paths):
            return None
        return [leaves[path] for path in self._paths]

    def _number_difference(self, wanted: Sequence[float], output: Any) -> Difference | None:
        if self._top is not None:
            gap, wrong = self._top.difference(wanted, output)
            self._findings.max_abs_difference = max(self._findings.max_abs_difference, gap)
            return wrong
        numbers = self.numbers(output) or []
        for name, want, got in zip(self._names, wanted, numbers, strict=True):
            gap = abs(got - want)
            self._findings.max_abs_difference = max(self._findings.max_abs_difference, gap)
            if not gap <= self._tolerance:
                return f"{name} {want!r} within {self._tolerance:.2g}", repr(got)
        if self._kind == "classification":
            best = self._names[numbers.index(max(numbers))]
            # Of equal probabilities any may give the label.
            if numbers[self._names.index(output["label"])] != max(numbers):
                return f"label {best!r}", f"label {output['label']!r}"
        return None


def _paths(outputs: Any) -> Iterator[Path]:
    """Yield where each column of a forecast stands: field, horizon and, if any, quantile."""
    forecast, names = outputs.forecast, iter(outputs.names)
    for field in forecast.fields:
        for horizon in forecast.horizons:
            for _ in forecast.quantiles or (None,):
                quantile = next(names).removeprefix(f"{field}+{horizon}")[1:]
                yield (field, str(horizon), *([quantile] if quantile else []))


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what stands in nested objects, by path."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*path, name))
