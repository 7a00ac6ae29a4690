"""Rows of a log become the histories of its keys: gathered, put in order, cut where one ends.

Owns the order of a key's rows and where its history ends: at an end marker, behind a silence. The
rows are cut once they are in order, as the worker would have been sent them: cut in the order of a
file, an end would part the wrong rows. Knows times and markers, but no values. Called by data.py.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.export.times import unfolded

Piece = tuple[str, NDArray[np.int64]]  # a key; rows of one of its histories, in order


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows, in log order."""

    owners: NDArray[np.int64]  # (N,) number of the key (one more behind each tombstone)
    times_ms: NDArray[np.int64]  # (N,)
    ends: NDArray[np.bool_]  # (N,) whose key begins anew behind them
    learned: NDArray[np.bool_]  # (N,) False: the label is refused; only its end counts


class Histories:
    """Parts rows key by key, and counts what it had to put in order."""

    def __init__(self, reset_after_ms: int | None, zone: str, *, sort: bool) -> None:
        self._reset_after_ms = reset_after_ms
        self._zone = zone  # of times that named none
        self._sort = sort  # False: a topic has its own order, in which the worker serves it
        self.disordered = 0  # rows that stood before an earlier row of their key
        self.doubled = 0  # rows that step back because the clocks did

    def pieces(self, names: Seq[str], rows: Rows) -> list[Piece]:
        """Return key and rows of each history, by the first row in the log; names[owner]: a key."""
        # Stable: log order within a key.
        by_owner = np.argsort(rows.owners, kind="stable")
        counts = np.cumsum(np.bincount(rows.owners, minlength=len(names)))
        found: list[tuple[int, str, NDArray[np.int64]]] = []
        for name, own in zip(names, np.split(by_owner, counts[:-1]), strict=True):
            first = -1
            for part in self._cut(self._in_order(own, rows), rows):
                # What sorting put first is first: a key's pieces stay in their order.
                first = max(first, int(part.min()))
                found.append((first, name, part))
        found.sort(key=lambda piece: piece[0])
        return [(name, part) for _, name, part in found]

    def _in_order(self, own: NDArray[np.int64], rows: Rows) -> NDArray[np.int64]:
        times_ms = rows.times_ms[own]
        if not (np.diff(times_ms) < 0).any():
            return own
        order, learned = unfolded(times_ms, self._zone), rows.learned[own]
        self.doubled += int((order != times_ms)[learned].sum())
        self.disordered += int((np.diff(order[learned]) < 0).sum())
        return own[np.argsort(order, kind="stable")] if self._sort else own

    def _cut(self, own: NDArray[np.int64], rows: Rows) -> list[NDArray[np.int64]]:
        """Part a key's rows, which are in order; what is not learned is left out."""
        anew = rows.ends[own][:-1]
        if self._reset_after_ms is not None:
            anew = anew | (np.diff(rows.times_ms[own]) > self._reset_after_ms)
        parts = np.split(own, np.flatnonzero(anew) + 1)
        return [some for part in parts if len(some := part[rows.learned[part]])]
