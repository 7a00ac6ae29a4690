"""One key's events in order, as arrays: what training learns from.

Owns this shape, and the difference between events and rows where an event is several rows (the
symbols of a text). Knows neither files nor Keras. Made by data.py and texts.py; everybody imports
it from data.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sequence:
    """One key's events in order, from a cold start to its next one."""

    key: str  # for people and patterns; bytes that are no UTF-8 are shown escaped
    x: NDArray[np.float32]  # (T,F) unscaled features
    times_ms: NDArray[np.int64]  # (T,) event times
    labels: NDArray[np.float32]  # (T,) label or class number, (T,L) forecasts' truth; NaN: none
    observed: NDArray[np.float32] | None = None  # (T,K) values of the forecast fields; NaN: missing
    texts: NDArray[np.int32] | None = None  # (T,C) numbers of category texts, before they are x
    reach: tuple[int, ...] = ()  # per column of (T,L) labels: events ahead that it lies
    label_times_ms: NDArray[np.int64] | None = None  # (T,) when a label came; None: with its event
    # (U,) columns of the symbols it says, -1: unknown; None: no transcription, or not known what
    transcript: NDArray[np.int32] | None = None
    documents: tuple[str, ...] = ()  # (T,) texts of events, before they are x
    answers: tuple[str, ...] = ()  # (T,) texts that answer them, before they are x
    # (E,) where each event ends if it is several rows, the symbols of its text; None: T events
    ends: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def events(self) -> int:
        """How many events it has."""
        return len(self) if self.ends is None else len(self.ends)

    @property
    def is_next_symbols(self) -> bool:
        """Whether each label is the next symbol of a text."""
        return self.ends is not None and bool(self.reach)

    @property
    def is_pair(self) -> bool:
        """Whether it is a source and its answer, which belong into one window."""
        return self.is_next_symbols and self.x.shape[1] == 2

    @property
    def event_times_ms(self) -> NDArray[np.int64]:
        """(E,) event times."""
        return self.times_ms if self.ends is None else self.times_ms[self.ends - 1]

    def row(self, event: int) -> int:
        """Return the row that an event begins with; of as many as there are, where they end."""
        return event if self.ends is None or not event else int(self.ends[event - 1])

    def events_before(self, row: int) -> int:
        """Return how many events have ended at a row."""
        return row if self.ends is None else int(np.searchsorted(self.ends, row, side="right"))

    def head(self, end: int, cut_ms: int | None = None) -> Sequence:
        """Return the first events; their labels know nothing of what comes after.

        `cut_ms`: when that begins; without it, at the first event that is left out, if any.
        """
        labels, came_ms = self.labels[:end], self.label_times_ms
        if cut_ms is None and end < len(self):
            cut_ms = int(self.times_ms[end])
        if came_ms is not None:
            came_ms = came_ms[:end]
            if cut_ms is not None:
                labels = np.where(came_ms < cut_ms, labels, np.float32(np.nan))
        if self.reach:
            labels = labels.copy()
            columns = labels.reshape(len(labels), -1)  # a view
            for column, ahead in enumerate(self.reach):
                columns[max(0, end - ahead) :, column] = np.nan
        observed = None if self.observed is None else self.observed[:end]
        texts = None if self.texts is None else self.texts[:end]
        return replace(
            self, x=self.x[:end], times_ms=self.times_ms[:end], labels=labels, observed=observed,
            texts=texts, label_times_ms=came_ms, documents=self.documents[:end],
            answers=self.answers[:end],
            ends=None if self.ends is None else self.ends[: self.events_before(end)],
        )  # fmt: skip
