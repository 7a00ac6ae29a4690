"""Sequences of mixed lengths cut into windows of (B,T), for truncated back-propagation.

Owns the order in which events meet the training loop. B lanes run side by side; a lane follows one
sequence window by window and takes the next sequence when it ends, so that a long key does not hold
up the short ones. Pure numpy; knows nothing of Keras. Called by fit.py and evaluate.py, which carry
the states from a window to the next and drop them where `fresh` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.training.data import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """The stretch of a sequence that one pass goes through, from a cold state."""

    index: int  # of the sequence, among those given
    start: int  # first event gone through
    counts_from: int  # first event whose loss counts
    end: int | None = None  # first event that is not gone through; None: the sequence's end

    def stop(self, sequence: Sequence) -> int:
        """Return the first event that is not gone through."""
        return len(sequence) if self.end is None else min(self.end, len(sequence))


@dataclass(frozen=True, slots=True)
class Window:
    """T steps of B lanes."""

    x: NDArray[np.float32]  # (B,T,F); padding repeats a real event
    labels: NDArray[np.float32]  # (B,T), or (B,T,L) of forecasts; 0 where there is none
    weights: NDArray[np.float32]  # likewise; 1 where the loss counts, 0 for padding and no label
    fresh: NDArray[np.bool_]  # (B,) the lane begins a sequence: its state is the initial one
    owner: NDArray[np.int64]  # (B,) index of the lane's sequence; -1: idle
    at: NDArray[np.int64]  # (B,) place of the window's first event in that sequence


def windows(
    sequences: Seq[Sequence], pieces: Seq[Piece], rows: int, length: int
) -> Iterator[Window]:
    """Go through `pieces` in order, in `rows` lanes, `length` steps at a time."""
    lanes: list[Piece | None] = [None] * min(rows, len(pieces))
    at = np.zeros(len(lanes), np.int64)
    waiting = iter(pieces)
    while True:
        fresh = np.zeros(len(lanes), np.bool_)
        for lane, piece in enumerate(lanes):
            if piece is None or at[lane] >= piece.stop(sequences[piece.index]):
                lanes[lane] = following = next(waiting, None)
                at[lane] = following.start if following is not None else 0
                fresh[lane] = True
        if not any(lanes):
            return
        yield _cut(sequences, lanes, at, fresh, length)
        at = at + length


def _cut(
    sequences: Seq[Sequence],
    lanes: Seq[Piece | None],
    at: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    length: int,
) -> Window:
    shape = (len(lanes), length)
    # Idle lanes and padding hold real values too: arbitrary ones could drive a state to infinity,
    # and infinity times a weight of 0 is not 0.
    x = np.empty((*shape, sequences[0].x.shape[1]), np.float32)
    x[:] = sequences[0].x[0]
    labels = np.full((*shape, *sequences[0].labels.shape[1:]), np.nan, np.float32)
    owner = np.full(len(lanes), -1, np.int64)
    counts = np.zeros(shape, np.bool_)
    for lane, piece in enumerate(lanes):
        if piece is None:
            continue
        sequence, first = sequences[piece.index], int(at[lane])
        steps = min(length, piece.stop(sequence) - first)
        x[lane, :steps] = sequence.x[first : first + steps]
        x[lane, steps:] = sequence.x[first + steps - 1]
        labels[lane, :steps] = sequence.labels[first : first + steps]
        counts[lane] = np.arange(first, first + length) >= piece.counts_from
        owner[lane] = piece.index
    counts = counts.reshape(*shape, *(1,) * (labels.ndim - 2))
    weights = (counts & ~np.isnan(labels)).astype(np.float32)
    return Window(x, np.nan_to_num(labels), weights, fresh, owner, at.copy())
