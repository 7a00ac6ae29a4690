"""PURE: in which groups the steps of a micro-batch run: waves while wide, the rest as bursts.

A wave holds at most one event per key, run as (B,1). Where only a few hot keys are left, their
remaining events run as bursts, padded (B,T) with lengths. Every key's events run in offset order,
so the result is the same as one event at a time; only the speed differs. Owns nothing but this
decision: it knows slots as numbers, not what is in them. Called by worker/fold.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Below this width a wave costs more per event than the LSTM op's own loop over T: one call of it
# is some 7 us, a further time step at B=1 about 1 us (FACTS, speed).
MIN_WAVE = 24
MAX_ROWS = 512  # of one call: more does not fit the cache and is slower
MAX_BURST_ROWS = 64
MAX_PADDING = 2.0  # a burst's longest row may be this many times its shortest


@dataclass(frozen=True, slots=True)
class Group:
    """One call of the model: B keys, up to T events each."""

    slots: NDArray[np.intp]  # (B,) distinct
    events: NDArray[np.intp]  # (B,T) event numbers in offset order; beyond a row's length: 0
    lengths: NDArray[np.int32]  # (B,) at least 1

    @property
    def steps(self) -> int:
        """Number of events in this group."""
        return int(self.lengths.sum())


def schedule(slots: NDArray[np.intp], max_steps: int, min_wave: int = MIN_WAVE) -> list[Group]:
    """Group N events, given in offset order by their keys' slots (N,), into calls of the model.

    The groups must run in the order given. `max_steps` limits T; from `min_wave` keys on they run
    as waves.
    """
    if not len(slots):
        return []
    order = np.argsort(slots, kind="stable")  # events by key, in offset order within a key
    sorted_slots = slots[order]
    starts = np.flatnonzero(np.r_[True, sorted_slots[1:] != sorted_slots[:-1]])
    counts = np.diff(np.r_[starts, len(slots)])
    # Keys by falling number of events: the keys with an n-th event are a prefix.
    by_count = np.argsort(-counts, kind="stable")
    starts, counts = starts[by_count], counts[by_count]
    groups: list[Group] = []
    done = 0
    width = len(counts)
    while width >= min_wave:
        groups += _wave(sorted_slots, order, starts[:width] + done)
        done += 1
        width = int(np.searchsorted(-counts, -done, side="left"))  # keys with more than `done`
    first = 0
    while first < width:
        last = _burst_end(counts[:width] - done, first)
        rows = slice(first, last)
        groups += _burst(sorted_slots, order, starts[rows] + done, counts[rows] - done, max_steps)
        first = last
    return groups


def _wave(
    sorted_slots: NDArray[np.intp], order: NDArray[np.intp], places: NDArray[np.intp]
) -> list[Group]:
    calls = -(-len(places) // MAX_ROWS)
    return [
        Group(sorted_slots[part], order[part][:, None], np.ones(len(part), np.int32))
        for part in np.array_split(places, calls)
    ]


def _burst_end(left: NDArray[np.intp], first: int) -> int:
    """Return the end of the run of keys, from `first`, whose lengths are alike."""
    end = first + 1
    shortest = left[first] / MAX_PADDING
    while end < len(left) and end - first < MAX_BURST_ROWS and left[end] >= shortest:
        end += 1
    return end


def _burst(
    sorted_slots: NDArray[np.intp],
    order: NDArray[np.intp],
    places: NDArray[np.intp],
    left: NDArray[np.intp],
    max_steps: int,
) -> list[Group]:
    groups = []
    for start in range(0, int(left[0]), max_steps):  # left[0] is the longest
        rows = left > start
        lengths = np.minimum(left[rows] - start, max_steps)
        steps = np.arange(lengths[0])
        valid = steps < lengths[:, None]
        at = np.where(valid, places[rows][:, None] + start + steps, 0)
        events = np.where(valid, order[at], 0)
        groups.append(Group(sorted_slots[places[rows]], events, lengths.astype(np.int32)))
    return groups
