"""What a fetch brought, left as bytes: aiokafka's record batches without an object per record.

Owns which records of a fetched record set a reader of committed records sees, as aiokafka 0.14's
PartitionRecords decides it, and where the next fetch begins; the native module reads what is in a
batch (worker/native). Known here and in worker/consumer_thread.py: private names of aiokafka's
fetcher, which tests/worker/test_fetched.py holds beside it. Old message formats, topics of agents
and workers without the native module keep aiokafka's own objects (worker/header_names.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from struct import Struct
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from numpy.typing import NDArray

from keyfold.worker import native
from keyfold.worker.header_names import (
    LENGTH_FROM,
    MAGIC_AT,
    AnyHeaders,
    RememberingRecords,
    length_of,
)
from keyfold.worker.protocol import Record
from keyfold.worker.records import Records
from keyfold.worker.unreadable import Telling

ITEM_BYTES = 1 << 20  # in memory, of one item: what was compressed may be many times its fetch
MAX_ITEMS = 32  # of one poll
ROW_BYTES = 64  # of one record in memory, beside its bytes as they came

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and largest
# timestamp, producer id and epoch, base sequence, number of records
_HEADER = Struct(">qiibIhiqqqhii")
_CRC_FROM = 21
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECODERS: dict[int, Callable[[bytes], bytes]] = {
    1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode,
}  # fmt: skip


@dataclass(slots=True)
class _One:
    """One record, taken out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Raw:
    """N records within one buffer."""

    data: memoryview  # uncompressed records
    offsets: NDArray[np.int64]  # (N,)
    timestamps_ms: NDArray[np.int64]  # (N,)
    places: NDArray[np.int32]  # (4,N) key at, its length, value at, its length; -1: null
    sizes: NDArray[np.int64]  # (N,) bytes in memory, about: headers too, while data is held

    @property
    def total_bytes(self) -> int:
        """Sum of the sizes."""
        return int(self.sizes.sum())

    def key_column(self) -> list[bytes | None]:
        """Return the N keys."""
        return native.cut(self.data, self.places[0], self.places[1])

    def value_column(self) -> list[bytes | None]:
        """Return the N values."""
        return native.cut(self.data, self.places[2], self.places[3])

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        """Return the values of some rows."""
        at, lengths = self.places[2:, rows]
        return native.cut(self.data, at, lengths)

    @property
    def key_bytes(self) -> int:
        """Sum of the keys' lengths."""
        return int(self.places[1].clip(0).sum())

    def find(self, index: dict[bytes, int], slots: NDArray[np.intp]) -> list[int]:
        """Set slots (N,) to what `index` has for the keys; return the rows it has nothing for."""
        return native.find(self.data, self.places[0], self.places[1], index, slots)

    def record(self, row: int) -> Record:
        """Return one record."""
        one = self.cut(row, row + 1)
        return _One(
            int(self.offsets[row]),
            int(self.timestamps_ms[row]),
            one.key_column()[0],
            one.value_column()[0],
        )

    def cut(self, start: int, stop: int) -> Raw:
        """Return rows [start, stop)."""
        rows = slice(start, stop)
        places = np.ascontiguousarray(self.places[:, rows])
        times, sizes = self.timestamps_ms[rows], self.sizes[rows]
        return Raw(self.data, self.offsets[rows], times, places, sizes)

    @property
    def reads_numbers(self) -> bool:
        """Return that this run can read."""
        return True

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> Sequence[int]:
        """Read members of the values into table (N, len(names)); return the rows left out."""
        return native.read_numbers(self.data, self.places[2], self.places[3], names, table)


class RecordSet(RememberingRecords):
    """A record set that came from a broker."""

    def all_of_version_2(self) -> bool:
        """Whether every whole batch has the form that this module reads."""
        at = 0
        while len(self.data) - at > MAGIC_AT:  # an old message may be shorter than a header
            if self.data[at + MAGIC_AT] != 2:
                return False
            length = length_of(self.data, at)
            if length < _HEADER.size - LENGTH_FROM:
                break  # it might lead nowhere, or back; FetchedRecords says what is wrong
            at += LENGTH_FROM + length
        return True


class FetchedRecords:
    """Stands in for aiokafka's PartitionRecords: gives a fetch in few items, each many records."""

    def __init__(
        self, where: str, data: bytes, aborted: Sequence[tuple[int, int]] | None, fetch_offset: int
    ) -> None:
        self._where, self._data = where, memoryview(data)
        self._aborted = sorted(aborted or (), key=lambda transaction: transaction[1])
        self._aborting: set[int] = set()  # producers whose transaction at this place was aborted
        # Read by aiokafka: where the next fetch begins. It moves without records, too.
        self.next_fetch_offset = fetch_offset
        self._rest = self._runs()
        self._damage: CorruptRecordException | None = None  # behind the records read so far

    def __iter__(self) -> Iterator[Records]:
        return self

    def __next__(self) -> Records:
        """Return the next records, up to the batch that makes them ITEM_BYTES or more."""
        runs: list[Raw] = []
        try:
            taken = 0
            for run in self._rest:
                if len(run.offsets):
                    runs.append(run)
                    taken += run.total_bytes
                if taken >= ITEM_BYTES:
                    break
        except CorruptRecordException as error:
            self._damage = error
        if runs:
            return Records(_merged(runs))
        if self._damage is not None:
            raise self._damage  # only now: the position is behind all that was given away
        raise StopIteration

    def _runs(self) -> Iterator[Raw]:
        data, at = self._data, 0
        while len(data) - at >= _HEADER.size:
            header = _HEADER.unpack_from(data, at)
            end = at + LENGTH_FROM + header[1]
            if end > len(data):
                return  # cut off by the fetch's limit; it comes again
            if end < at + _HEADER.size:
                raise CorruptRecordException(f"{self._where}: batch length {header[1]}")
            if native.crc32c(data[at + _CRC_FROM : end]) != header[4]:
                raise CorruptRecordException(f"Invalid CRC - {self._where}")
            run = None
            if self._is_for_readers(header, at, end):
                run = self._read(header, at, end, self.next_fetch_offset)
            self.next_fetch_offset = header[0] + header[6] + 1  # before it is given away
            at = end
            if run is not None:
                yield run

    def _is_for_readers(self, header: tuple[int, ...], at: int, end: int) -> bool:
        """Whether a reader of committed records sees this batch."""
        base, attributes, producer = header[0], header[5], header[9]
        while self._aborted and self._aborted[0][1] <= base:
            self._aborting.add(self._aborted.pop(0)[0])
        if attributes & _CONTROL:
            if self._is_abort_marker(header, at, end):
                self._aborting.discard(producer)
            return False
        return not (attributes & _TRANSACTIONAL and producer in self._aborting)

    def _is_abort_marker(self, header: tuple[int, ...], at: int, end: int) -> bool:
        markers = self._read(header, at, end, from_offset=0)
        key = markers.record(0).key if len(markers.offsets) else None
        return key is not None and ControlRecord.parse(key) == ABORT_MARKER

    def _read(self, header: tuple[int, ...], at: int, end: int, from_offset: int) -> Raw:
        """Read the records of the batch at [at, end) from an offset on."""
        attributes, base_time_ms, newest_ms, count = header[5], header[7], header[8], header[12]
        begin = at + _HEADER.size
        buffer = self._data
        data = self._data[begin:end]
        if attributes & _CODEC:
            begin, data = 0, memoryview(_DECODERS[attributes & _CODEC](data.tobytes()))
            buffer = data
        if not 0 <= count <= len(data):  # before memory is asked for
            raise CorruptRecordException(f"{self._where}: {count} records in {len(data)} bytes")
        offsets, times = np.empty(count, np.int64), np.empty(count, np.int64)
        spans = np.empty((count, 4), np.int32)
        append_ms = newest_ms if attributes & _APPEND_TIME else -1
        try:
            found = native.parse_records(
                data, count, header[0], base_time_ms, append_ms, from_offset, offsets, times, spans
            )
        except ValueError as error:
            raise CorruptRecordException(f"{self._where}: {error}") from error
        places = np.ascontiguousarray(spans[:found].T)
        # From key to key: what lies between is a record's value, headers and what frames them.
        sizes = np.diff(places[0], append=len(data)).astype(np.int64) + ROW_BYTES
        places[::2] += begin
        return Raw(buffer, offsets[:found], times[:found], places, sizes)


def _merged(runs: Sequence[Raw]) -> list[Raw]:
    """Put runs of the same buffer together: a call of the native module for each would show."""
    merged: list[Raw] = []
    for _, group in groupby(runs, key=lambda run: id(run.data)):
        same = list(group)
        if len(same) > 1:
            columns = [(run.offsets, run.timestamps_ms, run.sizes) for run in same]
            offsets, times, sizes = map(np.concatenate, zip(*columns, strict=True))
            places = np.concatenate([run.places for run in same], axis=1)
            same = [Raw(same[0].data, offsets, times, places, sizes)]
        merged += same
    return merged


def read_records(of: Any, topic: str, *, as_bytes: bool) -> None:
    """Have an aiokafka fetcher accept headers of any name, and one topic's records in its own way.

    Its records may be left as bytes, and what cannot be read of it is no error (Unreadable).

    The method that takes a broker's answer is bound once more to this one fetcher, with other names
    for the two classes that it reads records with: every other consumer stays as it is.
    """

    def partition_records(
        tp: Any, records: RecordSet, aborted: Any, fetch_offset: int, *rest: Any
    ) -> Any:
        if as_bytes and tp.topic == topic and records.all_of_version_2():
            where = f"{tp.topic}:{tp.partition}"
            return Telling(FetchedRecords(where, records.data, aborted, fetch_offset))
        reader = AnyHeaders(tp, records, aborted, fetch_offset, *rest)
        return Telling(reader) if tp.topic == topic else reader

    taking = type(of)._proc_fetch_request
    names = {"MemoryRecords": RecordSet, "PartitionRecords": partition_records}
    if not names.keys() <= set(taking.__code__.co_names):
        raise RuntimeError(f"expected an aiokafka that reads records with {', '.join(names)}")
    ours = FunctionType(taking.__code__, {**taking.__globals__, **names}, taking.__name__)
    of._proc_fetch_request = MethodType(ours, of)
