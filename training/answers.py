"""Labels where predictions are: at a session's end, behind a look-ahead, at every symbol of a text.

Owns which row of a sequence a prediction is made at, and so which label is held against it. Pure
numpy; knows no files and no Keras. Called by train.py once a log is finished, and for a model that
is there already by reread.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keyfold.export.outputs import OutputSpec
from keyfold.training.config import Config
from keyfold.training.data import EventLog, Sequence


def asked(outputs: OutputSpec, config: Config) -> OutputSpec:
    """Return what is predicted, with what the settings say about when. Raises SpecError."""
    given = config.outputs
    return replace(outputs, answers=given.answers, read=given.read, delay=config.model.delay)


def answered(log: EventLog, outputs: OutputSpec) -> EventLog:
    """Return the log with its labels at the rows where the outputs are predicted.

    A sequence is a session. One that is open where the log ends counts as ended there.
    """
    if outputs.answers == "session":
        return replace(log, sequences=tuple(map(_at_the_end, log.sequences)))
    if outputs.delay:
        late = (_late(one, outputs.delay) for one in log.sequences)
        return replace(log, sequences=tuple(late))
    if outputs.read == "every" and not log.next_symbols:
        return replace(log, sequences=tuple(map(_at_every_symbol, log.sequences)))
    return log


def _at_the_end(sequence: Sequence) -> Sequence:
    labels = sequence.labels.copy()
    labels[:-1] = np.nan
    return replace(sequence, labels=labels)


def _late(sequence: Sequence, delay: int) -> Sequence:
    """Return a sequence whose events have the labels of those `delay` before them."""
    described = np.maximum(np.arange(len(sequence)) - delay, 0)
    labels, came_ms = sequence.labels[described], sequence.label_times_ms
    labels[:delay] = np.nan  # they come before anything is described
    came_ms = None if came_ms is None else came_ms[described]
    return replace(sequence, labels=labels, label_times_ms=came_ms)


def _at_every_symbol(sequence: Sequence) -> Sequence:
    """Return a sequence whose symbols each have the label of their text."""
    if sequence.ends is None:
        return sequence
    symbols = np.diff(sequence.ends, prepend=0)
    return replace(sequence, labels=np.repeat(sequence.labels[sequence.ends - 1], symbols))
