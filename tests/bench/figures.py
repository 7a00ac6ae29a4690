"""What is made of measured numbers: spreads over runs, percentiles, ratios, rows of 80 columns.

Pure: knows nothing of what was measured. Called by run.py and by what prints beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 80


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over several runs."""

    median: float  # of the runs
    least: float  # run
    most: float  # run

    @classmethod
    def of(cls, runs: Sequence[float]) -> Spread:
        """Return the spread of at least one run."""
        return cls(statistics.median(runs), min(runs), max(runs))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that `percent` % of them do not exceed."""
    if not values:
        raise ValueError("a percentile needs at least one value, got none")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[min(max(rank, 1), len(values)) - 1]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of run-by-run ratios: both of a run have seen the same weather."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def count(value: float) -> str:
    """Write a rate or a number of things."""
    return f"{value:,.0f}"


def row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Lay one row out: the first cell to the left, the others to the right, within WIDTH.

    A first cell that is too long is cut; of the others nothing may be lost.
    """
    if sum(widths) > WIDTH:
        raise ValueError(f"expected at most {WIDTH} columns, got {sum(widths)}")
    first = cells[0][: widths[0] - 1].ljust(widths[0])
    others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return (first + "".join(others)).rstrip()
