"""A partition's records in offset order, as columns: a list of them, or bytes not cut up yet.

Owns how records wait to be applied, are taken and are looked at: one by one where something is odd,
column by column on the path. Knows bytes and numbers, nothing of events. Made by worker/intake.py
(worker/fetched.py where the native module is active) and by whoever has a list of records; read by
worker/owner.py, worker/share.py and the pipeline.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from keyfold.worker.protocol import Record

OVERHEAD_BYTES = 200  # of one record that is an object, beside key, value and headers
HEADER_BYTES = 150  # of one header that is objects, beside name and value


class Run(Protocol):
    """N records that lie together."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets (N,), rising."""

    @property
    def timestamps_ms(self) -> NDArray[np.int64]:
        """The records' own timestamps (N,)."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes in memory (N,), about."""

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes."""

    def key_column(self) -> list[bytes | None]:
        """Return the N keys."""

    def value_column(self) -> list[bytes | None]:
        """Return the N values."""

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        """Return the values of some rows."""

    @property
    def key_bytes(self) -> int:
        """Sum of the keys' lengths."""

    def record(self, row: int) -> Record:
        """Return one record."""

    def find(self, index: dict[bytes, int], slots: NDArray[np.intp]) -> list[int]:
        """Set slots (N,) to what `index` has for the keys; return the rows it has nothing for.

        Those become -1.
        """

    def cut(self, start: int, stop: int) -> Run:
        """Return rows [start, stop)."""

    @property
    def reads_numbers(self) -> bool:
        """Whether read_numbers() can read any."""

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> Sequence[int]:
        """Read members of the values (JSON objects) into table (N, len(names)).

        Returns the rows that were left out.
        """


@dataclass(frozen=True, slots=True)
class Listed:
    """Records that are objects."""

    records: Sequence[Record]  # in offset order
    offsets: NDArray[np.int64]  # (N,)
    timestamps_ms: NDArray[np.int64]  # (N,)
    sizes: NDArray[np.int64]  # (N,)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Listed:
        """Take records in offset order."""
        count = len(records)
        return cls(
            records,
            np.fromiter((record.offset for record in records), np.int64, count),
            np.fromiter((record.timestamp for record in records), np.int64, count),
            np.fromiter(map(_size_of, records), np.int64, count),
        )

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes."""
        return int(self.sizes.sum())

    def key_column(self) -> list[bytes | None]:
        """Return the N keys."""
        return [record.key for record in self.records]

    def value_column(self) -> list[bytes | None]:
        """Return the N values."""
        return [record.value for record in self.records]

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        """Return the values of some rows."""
        return [self.records[row].value for row in rows]

    @property
    def key_bytes(self) -> int:
        """Sum of the keys' lengths."""
        return sum(len(record.key or b"") for record in self.records)

    def find(self, index: dict[bytes, int], slots: NDArray[np.intp]) -> list[int]:
        """Set slots (N,) to what `index` has for the keys; return the rows it has nothing for."""
        keys: list[Any] = self.key_column()
        found = list(map(index.get, keys, repeat(-1)))
        slots[:] = found
        return np.flatnonzero(slots < 0).tolist() if -1 in found else []

    def record(self, row: int) -> Record:
        """Return one record."""
        return self.records[row]

    def cut(self, start: int, stop: int) -> Listed:
        """Return rows [start, stop)."""
        rows = slice(start, stop)
        return Listed(
            self.records[rows], self.offsets[rows], self.timestamps_ms[rows], self.sizes[rows]
        )

    @property
    def reads_numbers(self) -> bool:
        """Leave all rows to the decoder."""
        return False

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> Sequence[int]:
        """Leave all rows to the decoder."""
        return range(len(self.records))


def _size_of(record: Record) -> int:
    size = OVERHEAD_BYTES + len(record.value or b"") + len(record.key or b"")
    # Nobody here reads them, yet they stay in memory with their record, where it has any.
    for name, text in getattr(record, "headers", ()):
        size += HEADER_BYTES + len(name) + len(text or b"")
    return size


@dataclass(frozen=True, slots=True)
class Found:
    """Where the keys of N records have their slots."""

    slots: NDArray[np.intp]  # (N,) -1: nowhere
    unknown: list[int]  # rows of those: keys without a slot, and what can be no key


class Records(Sequence[Record]):
    """Records of one partition in offset order, run after run."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(runs)
        self._ends = list(accumulate(len(run.offsets) for run in self.runs))

    @classmethod
    def of(cls, records: Sequence[Record]) -> Records:
        """Take records in offset order, objects or not."""
        if isinstance(records, Records):
            return records
        return cls([Listed.of(records)] if records else [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Record]:
        for run in self.runs:
            for row in range(len(run.offsets)):
                yield run.record(row)

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> Records: ...
    def __getitem__(self, row: int | slice) -> Record | Records:
        """Return one record, or the records of a slice without a step."""
        if isinstance(row, slice):
            return self._cut(*row.indices(len(self))[:2])
        row += len(self) if row < 0 else 0
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {row}")
        at = bisect_right(self._ends, row)
        return self.runs[at].record(row - (self._ends[at - 1] if at else 0))

    def _cut(self, start: int, stop: int) -> Records:
        cut, begin = [], 0
        for run, end in zip(self.runs, self._ends, strict=True):
            if begin < stop and start < end:
                cut.append(run.cut(max(start - begin, 0), min(stop, end) - begin))
            begin = end
        return Records(cut)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Return the offsets (N,)."""
        return _joined([run.offsets for run in self.runs])

    @property
    def timestamps_ms(self) -> NDArray[np.int64]:
        """Return the records' own timestamps (N,)."""
        return _joined([run.timestamps_ms for run in self.runs])

    @property
    def key_bytes(self) -> int:
        """Sum of the keys' lengths."""
        return sum(run.key_bytes for run in self.runs)

    def find(self, index: dict[bytes, int]) -> Found:
        """Look all keys up."""
        slots, unknown, begin = np.empty(len(self), np.intp), [], 0
        for run in self.runs:
            end = begin + len(run.offsets)
            unknown += [begin + row for row in run.find(index, slots[begin:end])]
            begin = end
        return Found(slots, unknown)

    def value_column(self) -> list[bytes | None]:
        """Return the values."""
        return [value for run in self.runs for value in run.value_column()]

    def key_column(self) -> list[bytes | None]:
        """Return the keys."""
        return [key for run in self.runs for key in run.key_column()]


def values_of(shares: Iterable[Records]) -> Sequence[bytes | None]:
    """Return several partitions' values, row after row, as the decoder takes them."""
    runs = [run for records in shares for run in records.runs]
    if any(run.reads_numbers for run in runs):
        return _Values(runs)
    return [value for run in runs for value in run.value_column()]


class _Values(Sequence[bytes | None]):
    """Values that can read numbers out of themselves, most of them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._records = Records(runs)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[bytes | None]:
        for run in self._records.runs:
            yield from run.value_column()

    @overload
    def __getitem__(self, row: int) -> bytes | None: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes | None]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes | None] | None:
        """Return one value, or those of a slice."""
        if isinstance(row, slice):
            return [record.value for record in self._records[row]]
        return self._records[row].value

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> list[int]:
        """Read members into table (N, len(names)); return the rows that were left out."""
        left: list[int] = []
        begin = 0
        for run in self._records.runs:
            end = begin + len(run.offsets)
            left += [begin + row for row in run.read_numbers(names, table[begin:end])]
            begin = end
        return left

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        """Return the values of some rows, which rise."""
        picked: list[bytes | None] = []
        first = at = 0
        for run in self._records.runs:
            end = bisect_left(rows, first + len(run.offsets), at)
            if at < end:
                picked += run.pick([row - first for row in rows[at:end]])
            first, at = first + len(run.offsets), end
        return picked


class Waiting:
    """Records of one partition that were fetched and not taken yet."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque()
        self._count = 0
        self.bytes = 0  # of all of them, about

    def __len__(self) -> int:
        return self._count

    @property
    def first_offset(self) -> int | None:
        """Return the first record's offset; None: nothing waits."""
        return int(self._runs[0].offsets[0]) if self._runs else None

    def below(self, offset: int) -> int:
        """Return how many of them lie below an offset."""
        count = 0
        for run in self._runs:
            here = int(np.searchsorted(run.offsets, offset))
            count += here
            if here < len(run.offsets):
                break
        return count

    def add(self, records: Records) -> None:
        """Have further records wait."""
        for run in records.runs:
            if len(run.offsets):
                self._runs.append(run)
                self._count += len(run.offsets)
                self.bytes += run.total_bytes

    def take(self, most: int, most_bytes: int) -> Records:
        """Take the first `most` records, less where they are large, at least one."""
        taken: list[Run] = []
        left_bytes = most_bytes
        while most and self._runs and (left_bytes > 0 or not taken):
            run = self._runs.popleft()
            count, spent = len(run.offsets), run.total_bytes
            if count > most or spent > left_bytes:
                count, spent = _fitting(run, most, left_bytes)
                if count < len(run.offsets):
                    self._runs.appendleft(run.cut(count, len(run.offsets)))
                    run = run.cut(0, count)
            taken.append(run)
            most, left_bytes, self.bytes = most - count, left_bytes - spent, self.bytes - spent
            self._count -= count
        return Records(taken)

    def clear(self) -> None:
        """Forget them."""
        self._runs.clear()
        self._count = self.bytes = 0


def _fitting(run: Run, most: int, most_bytes: int) -> tuple[int, int]:
    """Return how many records to take, and their bytes."""
    sizes = np.cumsum(run.sizes[:most])
    # The one that goes beyond the limit still comes along.
    count = min(int(np.searchsorted(sizes, most_bytes, side="right")) + 1, len(sizes))
    return count, int(sizes[count - 1])


def _joined(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(columns) == 1:
        return columns[0]
    return np.concatenate(columns) if columns else np.empty(0, np.int64)
