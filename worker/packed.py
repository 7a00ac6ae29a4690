"""Producer requests whose records the native module has written already.

Owns what aiokafka 0.14's producer asks of a BatchBuilder that it is handed: the header's fields
that only the producer knows, and the checksum behind them. A private interface, held by
tests/worker/test_packed.py. Called by worker/emit.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any

from keyfold.worker import native

_ATTRIBUTES = Struct(">h")
_ATTRIBUTES_AT = 21
_CRC = Struct(">I")
_CRC_AT = 17
_PRODUCER = Struct(">qhi")  # id, epoch, base sequence
_PRODUCER_AT = 43
_TRANSACTIONAL = 0x10


class Packed:
    """One record batch, closed."""

    def __init__(self, data: bytearray, count: int, *, transactional: bool) -> None:
        self._data, self._count = data, count
        _ATTRIBUTES.pack_into(data, _ATTRIBUTES_AT, _TRANSACTIONAL if transactional else 0)
        self._set_producer_state(-1, -1, 0)  # without idempotence nobody sets them

    def close(self) -> None:
        """Nothing can be added anyway."""

    def closed(self) -> bool:
        """Return that nothing can be added."""
        return True

    def size(self) -> int:
        """Return its bytes."""
        return len(self._data)

    def record_count(self) -> int:
        """Return its number of records."""
        return self._count

    def _set_producer_state(self, producer_id: int, epoch: int, base_sequence: int) -> None:
        _PRODUCER.pack_into(self._data, _PRODUCER_AT, producer_id, epoch, base_sequence)

    def _build(self) -> bytearray:
        crc = native.crc32c(memoryview(self._data)[_ATTRIBUTES_AT:])
        _CRC.pack_into(self._data, _CRC_AT, crc)
        return self._data


def packed(
    producer: Any,
    keys: Sequence[bytes],
    payloads: Sequence[bytes],
    now_ms: int,
    limit: int,
) -> Iterator[Packed]:
    """Write messages without headers into requests of at most `limit` bytes each, in order."""
    transactions = producer._txn_manager
    transactional = transactions is not None and transactions.transactional_id is not None
    for data, count in native.pack_records(keys, payloads, now_ms, limit):
        yield Packed(data, count, transactional=transactional)
