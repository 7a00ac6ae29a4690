"""What keyfold-send says of a log's rows beside how many were sent: their order, and broken ones.

Owns the counts and their words; holds the last event time of each key. Called by cli.py, and for
the words by worker/score/cli.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from keyfold.worker.send.event_log import Entry

SHOWN = 5  # broken rows named


def order_warning(disordered: int, first: int, *, is_sorted: bool) -> str:
    """Say that events are earlier than one of their key before them."""
    said = (
        f"{disordered:,} events are earlier than one of their key before them (first: row {first})"
    )
    if is_sorted:
        why = "the time zone has their hour twice, and the second pass comes behind the first"
        return f"{said}: {why}"
    return f"warning: {said}; --sort puts them in order"


class RowReport:
    """Counts rows that go back in time within their key, and rows that were left out."""

    def __init__(self, *, is_sorted: bool = False) -> None:
        self._is_sorted = is_sorted
        self.broken = 0  # rows left out
        self.disordered = 0  # events behind a later one of their key
        self.first_disordered = 0  # row of the first of them
        self._shown: list[str] = []  # the first broken rows: file, row, why
        self._last: dict[bytes, float] = {}  # the latest event time by key

    def note_order(self, row: int, entry: Entry) -> None:
        """Take an event; one without a time (NaN) is in order."""
        if entry.time_ms < self._last.get(entry.key, entry.time_ms):
            self.disordered += 1
            self.first_disordered = self.first_disordered or row
        elif entry.time_ms == entry.time_ms:
            self._last[entry.key] = entry.time_ms

    def note_broken(self, why: str) -> None:
        """Take a row that is left out."""
        self.broken += 1
        if len(self._shown) < SHOWN:
            self._shown.append(why)

    def lines(self) -> Iterator[str]:
        """Say what was odd."""
        if self.disordered:
            yield order_warning(self.disordered, self.first_disordered, is_sorted=self._is_sorted)
        if self.broken:
            yield f"{self.broken:,} broken rows were left out:"
            yield from (f"  {why}" for why in self._shown)
            if self.broken > len(self._shown):
                yield f"  and {self.broken - len(self._shown):,} more"
