"""Anomalies as ranges: precision, recall and F0.5 as telemanom counts them, never point-adjusted.

Owns how flagged events become ranges and how ranges are counted. A true range is found when any
flagged range touches it, however often; a flagged range that touches none is a false alarm
(Hundman et al. 2018, arXiv 1802.04431, section 4.2; there too, ranges lie on single channels and
are counted over all of them). Precision = found / (found + false alarms), recall = found / true
ranges. Pure. Called by smap.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Range = tuple[int, int]  # first and last step, both included
WEIGHT = 0.5  # of recall against precision: F0.5


@dataclass(frozen=True, slots=True)
class Count:
    """Ranges found, missed and made up."""

    found: int = 0  # true ranges that a flagged one touches
    missed: int = 0  # true ranges that none does
    false: int = 0  # flagged ranges that touch no true one

    def __add__(self, other: Count) -> Count:
        return Count(self.found + other.found, self.missed + other.missed, self.false + other.false)

    def figures(self) -> dict[str, float]:
        """Return precision, recall and F0.5; 0 where nothing was found."""
        if not self.found:
            return {"precision": 0.0, "recall": 0.0, "f0.5": 0.0}
        precision = self.found / (self.found + self.false)
        recall = self.found / (self.found + self.missed)
        square = WEIGHT**2
        f = (1 + square) * precision * recall / (square * precision + recall)
        return {"precision": precision, "recall": recall, "f0.5": f}


def flagged_ranges(flags: Sequence[bool], reach: int) -> list[Range]:
    """Return where flags are set, as ranges; those with fewer than `reach` steps between are one.

    An operator gets one alert for what flares up again within `reach` steps.
    """
    found: list[Range] = []
    for step, flag in enumerate(flags):
        if not flag:
            continue
        if found and step - found[-1][1] <= reach:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def count(truth: Iterable[Range], flagged: Iterable[Range]) -> Count:
    """Count the ranges of one channel."""
    right, made = list(truth), list(flagged)
    found = sum(any(_touch(one, other) for other in made) for one in right)
    false = sum(not any(_touch(one, other) for one in right) for other in made)
    return Count(found, len(right) - found, false)


def _touch(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
