"""Texts' scores under a model of next symbols: what they are on a log, and their threshold.

Owns the step from what evaluate.py kept of the outputs (of each symbol's next one its rank and its
probability) to the scores that export/likelihood.py defines, and the calibration on the validation
part. Pure numpy; knows no Keras. Called by train.py, evaluate.py and tests/accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import MAX_STATE_BYTES
from keyfold.export.errors import Crash
from keyfold.export.likelihood import nats, scores
from keyfold.export.outputs import Likelihood, OutputSpec
from keyfold.training.sequence import Sequence
from keyfold.training.split import Part

PROBABILITY = 1  # column of what evaluate.py keeps

Floats = NDArray[np.float32]


class LikelihoodError(Crash):
    """Texts cannot be scored."""


def check_room(state_units: tuple[int, ...], outputs: OutputSpec) -> None:
    """Refuse, before training, a vocabulary whose newest output a key's state could not hold."""
    symbols = len(outputs.names)
    if (size := 4 * (sum(state_units) + symbols)) > MAX_STATE_BYTES:
        raise LikelihoodError(
            f"outputs.likelihood: expected states of at most {MAX_STATE_BYTES} bytes a key, got "
            f"{size}: {symbols:,} symbols' probabilities are a part of it; lower text.size or "
            "model.units"
        )


def event_scores(judged: Floats, sequence: Sequence, start: int = 0) -> Floats:
    """Return mean and largest surprise (E,2) of the events from row `start` on; NaN: none judged.

    `judged` (T,2) is of the whole sequence, from where its key starts cold.
    """
    likely = np.full(len(sequence), np.nan, np.float32)
    likely[1:] = judged[: len(sequence) - 1, PROBABILITY]
    ends = np.arange(1, len(sequence) + 1) if sequence.ends is None else sequence.ends
    found = scores(nats(likely), np.diff(ends, prepend=0))
    return found[sequence.events_before(start) :]


def part_scores(judged: Seq[Floats], part: Part) -> Floats:
    """Return the scores (E,2) of a part's events that count, those that have one."""
    found = [
        event_scores(one, sequence, start)
        for one, sequence, start in zip(judged, part.sequences, part.counts_from, strict=True)
    ]
    every: Floats = np.concatenate([*found, np.empty((0, 2), np.float32)])
    return every[~np.isnan(every[:, 0])]


def calibrate(judged: Seq[Floats], part: Part, rate: float) -> Likelihood:
    """Learn the threshold of the score from a part's events that count."""
    known = part_scores(judged, part)[:, 0]
    if not len(known):
        return Likelihood(0.0, rate)
    return Likelihood(float(np.quantile(known, 1.0 - rate, method="higher")), rate)
