"""Which stretches of which sequences a pass goes through, and in which order.

Owns the shuffling, random starts and the cutting of long histories, for training and for what
validation judges. Pure numpy; randomness is an argument. Called by fit.py; windows.py cuts the
pieces into windows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

from keyfold.training.data import Sequence
from keyfold.training.settings_fit import Fit
from keyfold.training.split import Part
from keyfold.training.windows import Piece

WARMING = 8  # this part of a stretch warms the memory up


def shuffled_pieces(part: Part, settings: Fit, draw: np.random.Generator) -> list[Piece]:
    """Return one pass over a part: new order, new starts.

    A random start keeps the model from counting events where it should read them: without it, a
    state that always starts at a key's first event learns when the training keys ended.
    """
    pieces = []
    for index in draw.permutation(len(part.sequences)).tolist():
        longest = int(settings.random_start * len(part.sequences[index]))
        start = int(draw.integers(0, longest + 1))
        counts_from = max(part.counts_from[index], start + settings.skip_first)
        pieces.append(Piece(index, start, counts_from))
    if not settings.stretch:
        return pieces
    cut = [
        short
        for piece in pieces
        for short in _cut(piece, len(part.sequences[piece.index]), settings, draw)
    ]
    return [cut[number] for number in draw.permutation(len(cut)).tolist()]


def _cut(piece: Piece, end: int, settings: Fit, draw: np.random.Generator) -> Iterator[Piece]:
    """Cut a long piece into stretches, at other places each pass.

    They run side by side, which is what makes one long history fast. A stretch that begins in the
    middle begins without memory: its first events only warm it up.
    """
    if end - piece.start <= settings.stretch:
        yield piece
        return
    first = piece.start + int(draw.integers(settings.stretch // 4, settings.stretch + 1))
    starts = [piece.start, *range(first, end, settings.stretch)]
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        warm = start if start == piece.start else start + settings.stretch // WARMING
        counts_from = max(piece.counts_from, warm)
        if counts_from < stop:
            yield Piece(piece.index, start, counts_from, stop)


def judged_pieces(part: Part, settings: Fit) -> list[Piece]:
    """Return the pieces that are measured: all that count, each after its past.

    With stretches the past is one stretch, not all of it: close enough to choose a pass by.
    """
    pieces = []
    stretch = settings.stretch
    for index, start in enumerate(part.counts_from):
        first = max(start, settings.skip_first)
        if not stretch:
            pieces.append(Piece(index, 0, first))
            continue
        pieces += [
            Piece(index, max(0, begin - stretch), begin, begin + stretch)
            for begin in range(first, len(part.sequences[index]), stretch)
        ]
    return pieces


def count_windows(sequences: Seq[Sequence], pieces: Seq[Piece], rows: int, length: int) -> int:
    """Return how many windows windows.py will make of the pieces: the updates of a pass."""
    lanes = [0] * min(rows, len(pieces))
    for piece in pieces:
        events = piece.stop(sequences[piece.index]) - piece.start
        # A piece goes to the lane that ends first; which of several does not change the count.
        heapq.heapreplace(lanes, lanes[0] + max(1, -(-events // length)))
    return max(lanes, default=0)
