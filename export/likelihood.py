"""How unlikely an event's symbols are, as a part of the fold behind the graph.

Owns the score of texts under a model of next symbols: the negative logarithm of each symbol's
probability, given all of the key's symbols before it, earlier events included; an event's score is
their mean, in nats per symbol, beside the largest. What a key's state keeps for it is the model's
newest output, by which the first symbol of the next event is judged; a cold key's first symbol is
not judged. The end symbol counts like any other, and so does the unknown one, by the probability
that the model gives to unknown symbols. Pure; knows neither records nor graphs. The same events
give the same bits however they are grouped into calls. Called by training (to calibrate) and the
worker's fold; keyfold-verify has its own reading.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import OutputSpec
from keyfold.export.states import StateSpec, Tensors, own_state

NEXT = "back.next"  # (O,) probabilities of the key's next symbol; NaN: it is cold
LEAST = 1e-7  # smaller probabilities count as this: float32 says nothing about them
COLUMNS = ("score", "worst")  # of an event: mean and largest; NaN where no symbol was judged
# Surprises are added up as whole numbers of this fraction of a nat, in any order with one result:
# 16.2 nats (LEAST) of 2^24 symbols (the most that a text may have) stay below 2^63.
UNIT = 2.0**-32

Rows = NDArray[np.float32]
Nats = NDArray[np.float64]


class Surprise:
    """The score of one output spec's events."""

    columns = COLUMNS

    def __init__(self, symbols: int) -> None:
        self.states: tuple[StateSpec, ...] = (  # in storage order
            own_state(NEXT, (symbols,), "float32", float("nan")),
        )

    @classmethod
    def of(cls, outputs: OutputSpec) -> Surprise | None:
        """Return the score of an output spec; None: texts are not scored."""
        return None if outputs.likelihood is None else cls(len(outputs.names))

    def run(
        self, y: Rows, symbols: Rows, lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[Rows, dict[str, Rows]]:
        """Find how likely each symbol was: symbols (B,T) whose outputs are y (B,T,O).

        Returns probabilities (B,T) and the states under their names. The probability of a cold
        key's first symbol is NaN. Beyond a row's length stands nothing of meaning.
        """
        rows = np.arange(len(y))
        places = symbols.astype(np.intp)
        found = np.empty(symbols.shape, np.float32)
        found[:, 0] = states[NEXT][rows, places[:, 0]]
        found[:, 1:] = y[rows[:, None], np.arange(y.shape[1] - 1), places[:, 1:]]
        return found, {NEXT: y[rows, np.asarray(lengths) - 1]}


def nats(probabilities: Rows) -> Nats:
    """Return how surprising symbols of these probabilities (M,) are; NaN stays NaN."""
    # The mathematics library's own logarithm: numpy's may have other last digits in another place.
    bounded = np.clip(probabilities, LEAST, 1.0, dtype=np.float64).tolist()
    return np.array([-math.log(one) for one in bounded], np.float64) + 0.0


def scores(surprises: Nats, lengths: NDArray[np.int64]) -> Rows:
    """Return the scores (E,2) of events whose symbols' surprises (M,) stand one behind the other.

    `lengths` (E,) are those of the events, each at least 1; they add up to M.
    """
    if not len(lengths):
        return np.empty((0, len(COLUMNS)), np.float32)
    first = np.cumsum(lengths) - lengths
    judged = ~np.isnan(surprises)
    units = np.rint(np.where(judged, surprises, 0.0) / UNIT).astype(np.int64)
    counts = np.add.reduceat(judged.astype(np.int64), first)
    total = np.add.reduceat(units, first) * UNIT
    worst = np.maximum.reduceat(np.where(judged, surprises, -1.0), first)
    found = np.stack([total / np.maximum(counts, 1), worst], axis=1)
    return np.where(counts[:, None] > 0, found, np.nan).astype(np.float32)
