"""PURE: which predictions a share's records cause: about which event each is, and in which order.

Owns this list, for bundles that answer every event, that answer late (look-ahead), once per session
or at every symbol of a text. A prediction's id names its cause: the offset of a record, and an
index among what this record causes. It knows rows and slots, nothing of bytes, partitions or
topics. Called by worker/pipeline.py, which writes what is listed here; whoever has more to say than
one row of y (generation) puts its own `outputs` in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keyfold.export.answers import ANSWER, ANSWER_MS
from keyfold.export.outputs import OutputSpec
from keyfold.worker.placement import Left
from keyfold.worker.rows import Rows
from keyfold.worker.slots import Slots

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers:
    """M predictions of one share, by their causes and then by index."""

    causes: NDArray[np.intp]  # (M,) rows of the records that cause them, rising
    slots: NDArray[np.intp]  # (M,) of their keys
    y: NDArray[np.float32]  # (M,O) outputs
    times_ms: Numbers  # (M,) of the events that they describe
    steps: Numbers  # (M,) of the key at those
    scores: NDArray[np.float32] | None = None  # (M,S)
    verdicts: NDArray[np.uint8] | None = None  # (M,) where each goes; None: all to the output
    abouts: Numbers | None = None  # (M,) offsets of those events; None: those of their causes
    indexes: Numbers | None = None  # (M,) among their cause's; None: each is the only one
    lasts: NDArray[np.bool_] | None = None  # (M,) whether it is its cause's last; None: likewise
    outputs: Sequence[bytes] | None = None  # each one's "output" as JSON; None: it is y's

    def pick(self, which: NDArray[np.bool_]) -> Answers:
        """Return those of `which` (M,); what is chosen is chosen by cause, so lasts stay true."""
        if which.all():
            return self
        at = np.flatnonzero(which)
        return replace(
            self, causes=self.causes[at], slots=self.slots[at], y=self.y[at],
            times_ms=self.times_ms[at], steps=self.steps[at], scores=_some(self.scores, at),
            verdicts=_some(self.verdicts, at), abouts=_some(self.abouts, at),
            indexes=_some(self.indexes, at), lasts=_some(self.lasts, at),
            outputs=None if self.outputs is None else [self.outputs[i] for i in at.tolist()],
        )  # fmt: skip


class Listing(Protocol):
    """A way from events to predictions."""

    def __call__(self, stepped: NDArray[np.intp], rows: Rows, closed: Sequence[Left], /) -> Answers:
        """List a share's predictions.

        `stepped` (N,) are the rows of its events, `closed` the slots that its keys have left.
        """
        ...


def listing_of(outputs: OutputSpec, slots: Slots) -> Listing:
    """Return how the predictions of a bundle are listed."""
    if outputs.generate is not None:
        return _every_said
    if outputs.answers == "session":
        return _Sessions(slots)
    if outputs.delay:
        return _Late(outputs.delay)
    return _every_symbol if outputs.read == "every" else _every_event


def _every_event(stepped: NDArray[np.intp], rows: Rows, _: Sequence[Left], /) -> Answers:
    """List one prediction for each event, about itself."""
    return Answers(
        stepped, rows.slots[stepped], rows.y[stepped], rows.times_ms[stepped], rows.steps[stepped],
        _some(rows.scores, stepped), _some(rows.verdicts, stepped),
    )  # fmt: skip


def _every_symbol(stepped: NDArray[np.intp], rows: Rows, _: Sequence[Left], /) -> Answers:
    """List one prediction for each symbol of each event."""
    if rows.each is None or rows.lengths is None:
        raise RuntimeError("expected the outputs of every symbol, got none")
    mine = rows.lengths[stepped]
    causes, behind = np.repeat(stepped, mine), np.cumsum(mine)
    indexes = np.arange(len(causes)) - np.repeat(behind - mine, mine)
    first = np.cumsum(rows.lengths) - rows.lengths  # of each event's symbols in rows.each
    return Answers(
        causes, rows.slots[causes], rows.each[first[causes] + indexes], rows.times_ms[causes],
        rows.steps[causes], indexes=indexes, lasts=indexes + 1 == rows.lengths[causes],
    )  # fmt: skip


def _every_said(stepped: NDArray[np.intp], rows: Rows, _: Sequence[Left], /) -> Answers:
    """List one prediction for each symbol that answers an event."""
    said = [] if rows.said is None else [rows.said[event] for event in stepped.tolist()]
    counts = np.array([len(one) for one in said], np.int64)
    causes, behind = np.repeat(stepped, counts), np.cumsum(counts)
    indexes = np.arange(len(causes)) - np.repeat(behind - counts, counts)
    return Answers(
        causes, rows.slots[causes], np.empty((len(causes), 0), np.float32), rows.times_ms[causes],
        rows.steps[causes], indexes=indexes, lasts=indexes + 1 == np.repeat(counts, counts),
        outputs=[output for one in said for output in one],
    )  # fmt: skip


class _Late:
    """Each event lets an earlier one of its key be answered; a key's first events none."""

    def __init__(self, delay: int) -> None:
        self._delay = delay

    def __call__(self, stepped: NDArray[np.intp], rows: Rows, _: Sequence[Left], /) -> Answers:
        if rows.abouts is None or rows.about_ms is None:
            raise RuntimeError("expected the events that late answers describe, got none")
        causes = stepped[rows.steps[stepped] > self._delay]
        return Answers(
            causes, rows.slots[causes], rows.y[causes], rows.about_ms[causes],
            rows.steps[causes] - self._delay, abouts=rows.abouts[causes],
        )  # fmt: skip


class _Sessions:
    """A session that ends is answered about its last event."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __call__(
        self, _stepped: NDArray[np.intp], _rows: Rows, closed: Sequence[Left], /
    ) -> Answers:
        slots = self._slots
        left = np.array([one.slot for one in closed], np.intp)
        causes = np.array([one.row for one in closed], np.intp)
        # A session of nothing but rejects has no event to answer about.
        answered = slots.steps[left] > 0
        left, causes = left[answered], causes[answered]
        order = np.argsort(causes, kind="stable")  # what a record closes: in the order it does
        left, causes = left[order], causes[order]
        first = np.searchsorted(causes, causes, side="left")
        behind = np.searchsorted(causes, causes, side="right")
        places = np.arange(len(causes))
        return Answers(
            causes, left, slots.tensors[ANSWER][left], slots.tensors[ANSWER_MS][left],
            slots.steps[left].astype(np.int64), abouts=slots.offsets[left],
            indexes=places - first, lasts=places + 1 == behind,
        )  # fmt: skip


def _some(values: Any, at: NDArray[np.intp]) -> Any:
    return None if values is None else values[at]
