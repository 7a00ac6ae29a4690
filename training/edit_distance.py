"""How many edits make one list of symbols of another: Levenshtein's distance (1966).

Owns the one function. Pure numpy; knows no models. Called by transcription.py and tests/accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def edits(got: Sequence[int], truth: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and changes between two lists of numbers."""
    row = np.arange(len(truth) + 1)
    wanted = np.asarray(truth)
    for number, symbol in enumerate(got, 1):
        others = np.minimum(row[1:] + 1, row[:-1] + (wanted != symbol))
        # What is left is a run of insertions: a running minimum once each place is taken off.
        rest = np.concatenate([[number], others]) - np.arange(len(row))
        row = np.minimum.accumulate(rest) + np.arange(len(row))
    return int(row[-1])
