"""Connectionist temporal classification: the loss of sequences whose symbols' places are unknown.

Owns the loss (Graves et al. 2006; TensorFlow's tf.nn.ctc_loss) and the windows it needs, which hold
whole sequences. Knows neither files nor the training loop; the symbols of a sequence are
transcripts.py's. Called by train.py (which loss), trainer.py (windows) and transcription.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import tensorflow as tf

from keyfold.export.recognition import BLANK
from keyfold.training.losses import TINY
from keyfold.training.sequence import Sequence
from keyfold.training.windows import Piece, Window

AHEAD = 8  # times the rows of a window: so many sequences are sorted by length at a time
HEAD = 2  # numbers before the symbols in a window's labels: events, symbols


def ctc_loss(labels: Any, y: Any) -> Any:
    """Return each row's -log of the probability of its symbols, in nats: (B,).

    `labels` (B,2+U): how many events and symbols a row has, then the symbols' columns of y, with
    anything behind them; y (B,T,O) probabilities, of blank in column 0.
    """
    numbers = tf.cast(labels, tf.int32)
    events, symbols = numbers[:, 0], numbers[:, 1]
    logits = tf.math.log(y + TINY)
    # Sparse labels: the operator written in C++. The one for dense labels is a loop of TensorFlow's
    # that takes three times as long; this one has no rows without symbols, which are a sum anyway.
    some = tf.RaggedTensor.from_tensor(
        tf.maximum(numbers[:, HEAD:], 1), lengths=tf.maximum(symbols, 1)
    )
    said = tf.nn.ctc_loss(
        some.to_sparse(), logits, None, events, logits_time_major=False, blank_index=BLANK
    )
    valid = tf.sequence_mask(events, tf.shape(y)[1], tf.float32)
    nothing = -tf.reduce_sum(logits[..., BLANK] * valid, axis=1)
    return tf.where(symbols > 0, said, nothing)


def count_whole_windows(pieces: Seq[Piece], rows: int) -> int:
    """Return how many windows whole_windows makes of the pieces."""
    return -(-len(pieces) // rows)


def whole_windows(sequences: Seq[Sequence], pieces: Seq[Piece], rows: int) -> Iterator[Window]:
    """Go through `pieces`, each a whole sequence, `rows` side by side; all begin from cold.

    Of the next few hundred, sequences of like length stand together, to save padding.
    """
    lanes = min(rows, len(pieces))
    for first in range(0, len(pieces), AHEAD * rows):
        some = sorted(pieces[first : first + AHEAD * rows], key=lambda p: len(sequences[p.index]))
        for place in range(0, len(some), rows):
            yield _whole_window([sequences[p.index] for p in some[place : place + rows]], lanes)


def _whole_window(some: Seq[Sequence], lanes: int) -> Window:
    steps = max(map(len, some))
    # Padding repeats real events, as in windows.py: infinity times a weight of 0 is not 0.
    x = np.empty((lanes, steps, some[0].x.shape[1]), np.float32)
    x[:] = some[0].x[0]
    counted = [_taught(sequence) for sequence in some]
    labels = np.zeros((lanes, HEAD + max(1, *(len(t) for t in counted))), np.float32)
    labels[:, 0] = steps
    weights = np.zeros(lanes, np.float32)
    for lane, (sequence, transcript) in enumerate(zip(some, counted, strict=True)):
        x[lane, : len(sequence)] = sequence.x
        x[lane, len(sequence) :] = sequence.x[-1]
        labels[lane, :HEAD] = len(sequence), len(transcript)
        labels[lane, HEAD : HEAD + len(transcript)] = transcript
        weights[lane] = not np.isnan(sequence.labels[-1])
    owner = np.full(lanes, -1, np.int64)
    return Window(x, labels, weights, np.ones(lanes, np.bool_), owner, np.zeros(lanes, np.int64))


def _taught(sequence: Sequence) -> Any:
    """Return the symbols that a sequence teaches; none if it does not count."""
    counts = sequence.transcript is not None and not np.isnan(sequence.labels[-1])
    return sequence.transcript if counts else np.zeros(0, np.int32)
