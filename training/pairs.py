"""Events that are pairs of texts, a source and its answer: what a model of sequences learns from.

Owns the step from a log whose events still hold both texts to one sequence per pair: x (L,2), the
source's symbols beside those said before each symbol of the answer (export/pairing.py), labels the
answer's symbols; and which pairs are gone through side by side. Knows no files and no Keras. Called
by learned.py, trainer.py and evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np

from keyfold.export.errors import Reject
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import END, Reader, Text
from keyfold.training.data import SHOWN_REJECTS, EventLog, Sequence
from keyfold.training.documents import of_source
from keyfold.training.windows import Piece, Window

NONE = np.float32(-1)  # in a column of symbols: there is none
POOL = 32  # times the rows of an update: so many pairs are sorted by length, then cut


def paired(log: EventLog, text: Text, target: Text) -> EventLog:
    """Return the log with a sequence per pair. One that cannot be read is left out."""
    readers, rejects = (Reader(text), Reader(target)), list[str]()
    sequences = tuple(one for s in log.sequences for one in _pairs(s, readers, rejects))
    return replace(
        log,
        features=replace(log.features, text=text),
        target=target,
        meaning=OutputSpec("classification", target.names),
        sequences=sequences,
        rejected=log.rejected + len(rejects),
        rejects=(*log.rejects, *rejects)[:SHOWN_REJECTS],
    )


def _pairs(
    sequence: Sequence, readers: tuple[Reader, Reader], rejects: list[str]
) -> Iterator[Sequence]:
    both = zip(sequence.documents, sequence.answers, strict=True)
    for number, (source, answer) in enumerate(both):
        try:
            read = readers[0].read(source)
        except Reject as reject:
            rejects.append(f"key {sequence.key}, event {number}: {of_source(reject)}")
            continue
        try:
            said = readers[1].read(answer)
        except Reject as reject:
            rejects.append(f"key {sequence.key}, event {number}: {reject}")
            continue
        rows = max(len(read), len(said))
        x = np.full((rows, 2), NONE, np.float32)
        x[: len(read), 0] = read
        x[: len(said), 1] = np.append(np.float32(END), said[:-1])
        labels = np.full(rows, np.nan, np.float32)
        labels[: len(said)] = said
        yield Sequence(
            sequence.key, x, np.full(rows, sequence.times_ms[number]), labels,
            reach=(1,), ends=np.array([rows]),
        )  # fmt: skip


def pair_windows(sequences: Seq[Sequence], pieces: Seq[Piece], rows: int) -> Iterator[Window]:
    """Go through `pieces`, each a whole pair, `rows` side by side, about as long as each other.

    Of the next few thousand those of like length stand together: padding is work, too.
    """
    for first in range(0, len(pieces), POOL * rows):
        pool = sorted(pieces[first : first + POOL * rows], key=lambda p: len(sequences[p.index]))
        starts = range(0, len(pool), rows)
        # Not from short to long: the last updates would know long pairs only.
        for number in np.random.default_rng(first).permutation(len(starts)).tolist():
            some = pool[starts[number] : starts[number] + rows]
            yield _window([(p.index, sequences[p.index]) for p in some], min(rows, len(pieces)))


def _window(some: Seq[tuple[int, Sequence]], lanes: int) -> Window:
    steps = max(len(sequence) for _, sequence in some)
    x = np.full((lanes, steps, 2), NONE, np.float32)
    x[:, 0] = END  # an idle lane is a pair, too
    labels = np.full((lanes, steps), np.nan, np.float32)
    owner = np.full(lanes, -1, np.int64)
    for lane, (index, sequence) in enumerate(some):
        x[lane, : len(sequence)] = sequence.x
        labels[lane, : len(sequence)] = sequence.labels
        owner[lane] = index
    weights = (~np.isnan(labels)).astype(np.float32)
    fresh = np.ones(lanes, np.bool_)
    return Window(x, np.nan_to_num(labels), weights, fresh, owner, np.zeros(lanes, np.int64))
