"""Events that are texts: from one row per event to one row per symbol.

Owns the step from a log whose events still hold their texts to the log as the model sees it:
symbols, each with its event's time, a label at the end symbol alone, or the next symbol as the
label of each. Knows no files and no Keras. Called by learned.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Reject
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import Reader, Text
from keyfold.training.data import SHOWN_REJECTS, EventLog, Sequence


def unrolled(log: EventLog, text: Text) -> EventLog:
    """Return the log with a row per symbol. An event that the worker would reject is left out."""
    reader, rejects = Reader(text), list[str]()
    sequences = tuple(_unrolled(one, reader, rejects, log.next_symbols) for one in log.sequences)
    meaning = OutputSpec("classification", text.names) if log.next_symbols else log.meaning
    return replace(
        log,
        features=replace(log.features, text=text),
        meaning=meaning,
        sequences=tuple(one for one in sequences if len(one)),
        rejected=log.rejected + len(rejects),
        rejects=(*log.rejects, *rejects)[:SHOWN_REJECTS],
    )


def _unrolled(
    sequence: Sequence, reader: Reader, rejects: list[str], next_symbols: bool
) -> Sequence:
    read = dict(_read(sequence, reader, rejects))
    kept = np.array([*read], np.int64)
    symbols = np.concatenate([np.empty(0, np.float32), *read.values()])
    ends = np.cumsum([len(one) for one in read.values()], dtype=np.int64)
    came_ms = sequence.label_times_ms
    if next_symbols:
        labels = np.append(symbols[1:], np.float32(np.nan))[: len(symbols)]
    else:
        labels = np.full(len(symbols), np.nan, np.float32)
        labels[ends - 1] = sequence.labels[kept]
    of = np.repeat(kept, np.diff(ends, prepend=0))
    return replace(
        sequence,
        x=symbols[:, None],
        times_ms=sequence.times_ms[of],
        labels=labels,
        documents=(),
        ends=ends,
        reach=(1,) if next_symbols else (),
        label_times_ms=None if came_ms is None else came_ms[of],
    )


def _read(
    sequence: Sequence, reader: Reader, rejects: list[str]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for number, document in enumerate(sequence.documents):
        try:
            yield number, reader.read(document)
        except Reject as reject:
            rejects.append(f"key {sequence.key}, event {number}: {reject}")
