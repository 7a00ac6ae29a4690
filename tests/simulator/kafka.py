"""Kafka as the protocol sees it: the input log, the group offset, the transaction coordinator.

Owns what a broker guarantees and no more. Knows nothing of Redis or the phases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from keyfold.worker.protocol import GroupOffset
from simulator.model import History, Lineage, Output, Record


class OutOfRange(Exception):
    """A fetch below the log's start or beyond its end."""


class Fenced(Exception):
    """A newer producer of the same transactional id was opened."""


class Log:
    """One incarnation of the input partition."""

    def __init__(self) -> None:
        self.records: list[Record] = []  # ever appended, in offset order
        self.offsets: list[int] = []  # theirs
        self.gone: set[int] = set()  # taken by compaction
        self.start = 0  # first offset retained
        self.end = 0  # next offset, behind markers and aborted transactions

    def append(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)
        self.offsets.append(record.offset)
        self.end = record.offset + 1

    def skip(self, count: int) -> None:
        """Append what a reader of committed records never sees."""
        self.end += count

    def cut(self, keep: int) -> Log:
        """Return another log that shares the records below `keep`."""
        other = Log()
        for record in self.records:
            if record.offset < keep:
                other.append(record)
        other.start, other.end = min(self.start, keep), keep
        return other

    def at(self, time_ms: int) -> int:
        """Return the offset of the first record as young as this, the log's end when none is."""
        young = (r.offset for r in self.records if r.timestamp >= time_ms)
        return next((offset for offset in young if offset >= self.start), self.end)

    def fetch(self, position: int, most: int) -> tuple[list[Record], int]:
        """Return records from a position on and the next position. Raises OutOfRange."""
        if not self.start <= position <= self.end:
            raise OutOfRange
        index = bisect_left(self.offsets, position)
        found = self.records[index : index + most]
        if len(found) < most:
            position = self.end
        elif found:
            position = found[-1].offset + 1
        if self.gone:
            found = [record for record in found if record.offset not in self.gone]
        return found, position


class Transaction:
    """One transaction."""

    __slots__ = ("lineage", "outputs", "to")

    def __init__(self, to: GroupOffset, lineage: Lineage) -> None:
        self.to, self.lineage = to, lineage
        self.outputs: list[Output] = []


class Coordinator:
    """The transaction coordinator of the partition's transactional id."""

    def __init__(self, decided: Callable[[Transaction], None]) -> None:
        self.epoch = 0
        self.group: GroupOffset | None = None  # C as everybody reads it
        self.of_log: History | None = None  # of whose outputs C tells
        self._open: Transaction | None = None
        self._prepared: Transaction | None = None  # decided; its markers are still being written
        self._decided = decided

    @property
    def unstable(self) -> bool:
        """Whether a transaction under way holds a group offset."""
        return self._open is not None

    def init(self) -> int:
        """Answer InitProducerId: fence older producers and end what they left."""
        self.settle()
        self._open = None
        self.epoch += 1
        return self.epoch

    def begin(self, epoch: int, to: GroupOffset, lineage: Lineage) -> None:
        """Begin a transaction with its group offset. Raises Fenced."""
        self._check(epoch)
        self.settle()
        self._open = Transaction(to, lineage)

    def send(self, epoch: int, outputs: list[Output]) -> None:
        """Add outputs. Raises Fenced."""
        self._check(epoch)
        if self._open is not None:
            self._open.outputs.extend(outputs)

    def end(self, epoch: int) -> None:
        """Answer EndTxn: from here on the transaction's outcome is decided. Raises Fenced."""
        self._check(epoch)
        if self._open is not None:
            self._prepared, self._open = self._open, None
            self._decided(self._prepared)

    def settle(self) -> None:
        """Write the markers of a decided transaction."""
        if self._prepared is not None:
            self.of_log = self._prepared.lineage.log
            self.group, self._prepared = self._prepared.to, None

    def expire(self) -> bool:
        """Abort an open transaction that took too long; its producer is fenced."""
        if self._open is None:
            return False
        self._open = None
        self.epoch += 1
        return True

    def _check(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced
