"""Reads the member "top" of one prediction: the largest probabilities alone.

Owns the oracle's own rules for it: as many entries as the manifest says, of different labels,
falling, the label the first one's; each probability is that of its label offline, and is as large
as the offline one of its rank, so that labels whose probabilities are nearly equal may change
places. Called by output_reading.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Difference = tuple[str, str]  # expected, got
MEMBERS = {"label", "probability"}


class TopReading:
    """Judges the largest probabilities of one bundle's predictions."""

    def __init__(self, names: Sequence[str], count: int, tolerance: float) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}
        self._names, self._count, self._tolerance = names, count, tolerance

    def pairs(self, output: Any) -> list[tuple[int, float]] | None:
        """Return each entry's number of its label and probability; None: it has another form."""
        entries = output.get("top")
        if not isinstance(entries, list) or len(entries) != self._count:
            return None
        found = []
        for entry in entries:
            if not isinstance(entry, dict) or entry.keys() != MEMBERS:
                return None
            label, probability = entry["label"], entry["probability"]
            if not isinstance(label, str) or label not in self._numbers:
                return None
            if type(probability) not in (int, float):
                return None
            found.append((self._numbers[label], array("f", [probability])[0]))
        falling = all(a[1] >= b[1] for a, b in pairwise(found))
        distinct = len({number for number, _ in found}) == len(found)
        is_first = output.get("label") == self._names[found[0][0]]
        return found if falling and distinct and is_first else None

    def difference(self, wanted: Sequence[float], output: Any) -> tuple[float, Difference | None]:
        """Return the largest difference to all O offline probabilities, and what is too much."""
        ranked, worst = sorted(wanted, reverse=True), 0.0
        for rank, (number, got) in enumerate(self.pairs(output) or []):
            gap = max(abs(got - wanted[number]), abs(got - ranked[rank]))
            worst = max(worst, gap)
            if not gap <= self._tolerance:
                best = self._names[list(wanted).index(ranked[rank])]
                place = f"top {rank + 1} {best!r} {ranked[rank]!r} within {self._tolerance:.2g}"
                return worst, (place, f"{self._names[number]!r} {got!r}")
        return worst, None

    def repeats(self, first: Any, again: Any) -> bool:
        """Say whether an output says the same as another one did."""
        before, now = self.pairs(first) or [], self.pairs(again) or []
        known = dict(before)
        return len(before) == len(now) and all(
            abs(a[1] - b[1]) <= self._tolerance
            and abs(known.get(b[0], b[1]) - b[1]) <= self._tolerance
            for a, b in zip(before, now, strict=True)
        )
