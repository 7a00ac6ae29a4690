"""How good a transcription is: symbols read as they will be when served, against the true ones.

Owns the symbol error rate and what goes with it. The reading is the worker's own
(export/recognition.py). Called by evaluate.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyfold.export.recognition import BLANK, Recognition
from keyfold.export.states import cold
from keyfold.training.ctc import HEAD, ctc_loss
from keyfold.training.edit_distance import edits
from keyfold.training.sequence import Sequence
from keyfold.training.split import Part

Metrics = dict[str, float | int]


def recognised(y: NDArray[np.float32]) -> list[int]:
    """Return the columns of the symbols that a cold key's outputs (T,O) tell, in order."""
    return [column for column in told(y) if column != BLANK]


def told(y: NDArray[np.float32]) -> list[int]:
    """Return the column of the symbol that each of a cold key's outputs (T,O) tells, or BLANK."""
    back, lengths = Recognition(), np.array([len(y)])
    columns, _ = back.run(y[None], None, lengths, cold(back.states, 1))
    return [int(column) for column in columns[0, :, 0].tolist()]


def measure_symbols(y: list[NDArray[np.float32]], part: Part) -> Metrics:
    """Judge outputs (T,O) of a part's sequences that have a transcript.

    The rate is the edits of all together by the symbols of all together; the loss is the mean over
    the sequences that count for training, in nats. Without any sequence to judge only the count.
    """
    pairs = [(got, s) for got, s in zip(y, part.sequences, strict=True) if s.transcript is not None]
    if not pairs:
        return {"events": 0}
    wrong = symbols = right = 0
    for got, sequence in pairs:
        truth = [] if sequence.transcript is None else sequence.transcript.tolist()
        distance = edits(recognised(got), truth)
        wrong, symbols, right = wrong + distance, symbols + len(truth), right + (not distance)
    found: Metrics = {
        "events": len(pairs),
        "symbols": symbols,
        "symbol_error_rate": wrong / max(1, symbols),
        "sequences_right": right / len(pairs),
    }
    losses = [_loss(got, s) for got, s in pairs if not np.isnan(s.labels[-1])]
    return {**found, "ctc_loss": float(np.mean(losses))} if losses else found


def _loss(y: NDArray[np.float32], sequence: Sequence) -> float:
    transcript = np.zeros(0, np.int32) if sequence.transcript is None else sequence.transcript
    labels = np.zeros((1, HEAD + max(1, len(transcript))), np.float32)
    labels[0, :HEAD] = len(y), len(transcript)
    labels[0, HEAD : HEAD + len(transcript)] = transcript
    return float(ctc_loss(labels, y[None])[0])
