"""What a key's events say as symbols: learned from the training part.

Owns which symbols there are, what a sequence's are, and which sequences can teach by
connectionist temporal classification (ctc.py): the order of a sequence's symbols is known, not
where they lie. The symbols of a sequence are those of all its labels, in order. Pure; knows neither
Keras nor files; a label becomes symbols in labels.py. Called by train.py and reread.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import NOTHING, OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.training.data import DataError, EventLog
from keyfold.training.sequence import Sequence as KeySequence
from keyfold.training.split import Part

UNKNOWN = -1  # a symbol that the training part does not have


@dataclass(frozen=True, slots=True)
class Untaught:
    """Sequences of a log that are judged, but teach nothing."""

    unknown: int  # they hold a symbol that training does not
    short: int  # they have fewer events than their symbols need


def learn_symbols(log: EventLog, train: Part, given: Sequence[str] = ()) -> EventLog:
    """Return the log with its symbols known: `given`, or those of the training part, sorted.

    Raises DataError without any.
    """
    numbers = {number for sequence in train.sequences for number in _numbers(sequence)}
    names = given or sorted({name for number in numbers for name in log.transcripts[number]})
    if not names:
        raise DataError("data.label: expected symbols in the training part, got none")
    log = replace(log, meaning=OutputSpec("transcription", (NOTHING, *names)))
    return with_symbols(log, log.outputs)


def with_symbols(log: EventLog, outputs: OutputSpec) -> EventLog:
    """Return the log whose sequences have the transcripts that `outputs` names the columns of."""
    column = {name: number for number, name in enumerate(outputs.names)}
    known = [
        np.array([column.get(name, UNKNOWN) for name in names], np.int32)
        for names in log.transcripts
    ]
    sequences = tuple(_transcribed(sequence, known) for sequence in log.sequences)
    return replace(log, sequences=sequences)


def _transcribed(sequence: KeySequence, known: list[NDArray[np.int32]]) -> KeySequence:
    """Return a sequence with its transcript, and a label at its last event if it teaches."""
    labels = np.full(len(sequence), np.nan, np.float32)
    numbers = _numbers(sequence)
    if not numbers:
        return replace(sequence, labels=labels, transcript=None)
    transcript = np.concatenate([known[number] for number in numbers])
    if not (transcript == UNKNOWN).any() and events_needed(transcript) <= len(sequence):
        labels[-1] = len(transcript)
    return replace(sequence, labels=labels, transcript=transcript)


def _numbers(sequence: KeySequence) -> list[int]:
    """Return the numbers of a sequence's labels, in order."""
    labels = sequence.labels[~np.isnan(sequence.labels)]
    return [int(number) for number in labels.astype(np.int64).tolist()]


def events_needed(transcript: NDArray[np.int32]) -> int:
    """Return how many events a transcript needs: a blank stands between equal symbols."""
    return len(transcript) + int((np.diff(transcript) == 0).sum())


def untaught(sequences: Iterable[KeySequence]) -> Untaught:
    """Count the sequences that have a transcript and teach nothing."""
    left = [
        transcript
        for sequence in sequences
        if (transcript := sequence.transcript) is not None and np.isnan(sequence.labels[-1])
    ]
    unknown = sum(bool((transcript == UNKNOWN).any()) for transcript in left)
    return Untaught(unknown, len(left) - unknown)


def check_whole(parts: Iterable[Part], window: int) -> None:
    """Refuse sequences longer than fit.window. Raises SettingsError."""
    every = [s for part in parts for s in part.sequences if not np.isnan(s.labels[-1])]
    longest = max(every, key=len, default=None)
    if longest is not None and len(longest) > window:
        raise SettingsError(
            f"fit.window: expected at least {len(longest)}, the events of the longest sequence "
            f"(key {longest.key!r}), got {window}: the loss of a transcription needs whole "
            "sequences, so raise it, or let keys start anew (data.tombstone, data.reset_after_s)"
        )
