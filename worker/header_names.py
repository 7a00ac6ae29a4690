"""Records whose headers have names that are no UTF-8: Kafka keeps them, aiokafka 0.14 refuses them.

Owns the second reading of a fetch at which aiokafka's own reader failed, by its reader in Python,
with such names spelt with escapes: the worker has no use for headers, an agent may look at them.
Knows nothing of topics. Known here: private names of aiokafka's records, which
tests/worker/test_header_names.py holds. Used by worker/fetched.py; to be deleted when aiokafka
gives such names away.
"""

from __future__ import annotations

from typing import Any

from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

_LENGTH_AT, LENGTH_FROM, MAGIC_AT = 8, 12, 16  # of a batch, in every format


def length_of(data: bytes, at: int) -> int:
    """Return what the batch at `at` says of its length, counted from LENGTH_FROM on."""
    return int.from_bytes(data[at + _LENGTH_AT : at + LENGTH_FROM], "big", signed=True)


class RememberingRecords(MemoryRecords):  # type: ignore[misc]
    """aiokafka's record set, which keeps its bytes within reach."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data
        self._at = self._end = 0  # of the batch that was given away last

    def next_batch(self) -> Any:
        """Return the next batch."""
        batch = super().next_batch()
        self._at = self._end
        self._end += LENGTH_FROM + length_of(self.data, self._at)
        return batch

    @property
    def from_last(self) -> bytes:
        """The batch that was given away last, and those behind it."""
        return self.data[self._at :]


class AnyHeaders(PartitionRecords):  # type: ignore[misc]
    """aiokafka's reading of a RememberingRecords, slower from a header on that has no text's name.

    Which transactions were aborted and which offset is next stands in this object: it goes on
    within the batch at which it failed.
    """

    _records: Any  # aiokafka ships no types
    _records_iterator: Any

    def __next__(self) -> Any:
        """Return the next record."""
        try:
            return super().__next__()
        except UnicodeDecodeError:
            self._records = _AnyNames(self._records.from_last)
            self._records_iterator = self._unpack_records()
            return super().__next__()


class _AnyNames(_MemoryRecordsPy):  # type: ignore[misc]
    def next_batch(self) -> Any:
        """Return the next batch, to be read here where its format has headers."""
        data = self._next_slice
        batch = super().next_batch()
        return AnyNamesBatch(data) if data is not None and data[MAGIC_AT] >= 2 else batch


class AnyNamesBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's reader of a batch in Python, which takes any bytes for a header's name."""

    _buffer: Any  # aiokafka ships no types

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Escaping(self._buffer)


class _Escaping(bytearray):
    """Bytes whose parts are text in any case."""

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return part if isinstance(part, int) else _Escaping(part)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")
