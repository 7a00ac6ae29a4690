"""Many events of many keys as few calls of the model: the k-th events of all keys together.

Owns that order, which keeps every key's events in theirs. Used by the peers that take whole lots
(faust_take, confluent), in their environments: numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from peers.step import Rows, Step

CHUNK = 256  # rows of one call: wider ones leave the processor's caches


def fold(step: Step, x: Rows, slots: NDArray[np.intp], states: Rows) -> Rows:
    """Fold N events into the states of their keys, which change in place; return y (N,).

    x (N,F) is in the keys' order of events; event i belongs to the key whose state is
    states[slots[i]].
    """
    order = np.argsort(slots, kind="stable")  # by key, and within a key as they came
    counts = np.bincount(slots, minlength=len(states))
    begins = np.cumsum(counts) - counts
    nth = np.empty(len(slots), np.intp)
    nth[order] = np.arange(len(slots)) - begins[slots[order]]
    by_wave = np.argsort(nth, kind="stable")
    y = np.empty(len(slots), np.float32)
    begin = 0
    for width in np.bincount(nth).tolist():
        for at in range(begin, begin + width, CHUNK):
            events = by_wave[at : min(at + CHUNK, begin + width)]
            keys = slots[events]
            y[events], states[keys] = step.rows(x[events], states[keys])
        begin += width
    return y
