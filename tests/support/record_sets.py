"""Record sets as a broker sends them: batches of any codec, of transactions, markers between them.

Owns the bytes; aiokafka writes the records, only the headers' transactional fields are set here.
Used by the tests of worker/fetched.py and worker/packed.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack, pack_into

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

KeyValue = tuple[bytes | None, bytes | None]

TRANSACTIONAL, CONTROL, APPEND_TIME = 0x10, 0x20, 0x08


@dataclass(frozen=True, slots=True)
class Batch:
    """One record batch."""

    records: Sequence[KeyValue]  # key and value of each
    codec: int = 0  # gzip 1, snappy 2, lz4 3, zstd 4
    attributes: int = 0  # further ones
    producer: int = -1  # its id
    gap: int = 0  # offsets behind its last record that compaction left empty
    append_ms: int = 0  # the broker's time, with APPEND_TIME


def marker(producer: int, *, abort: bool) -> Batch:
    """Return what ends a transaction."""
    key = pack(">hh", 0, 0 if abort else 1)
    return Batch([(key, b"\0" * 6)], 0, TRANSACTIONAL | CONTROL, producer)


def written(batches: Sequence[Batch], first_offset: int = 0, time_ms: int = 1000) -> bytes:
    """Write batches one after the other; record i has the timestamp time_ms + i."""
    data, offset = b"", first_offset
    for batch in batches:
        builder = DefaultRecordBatchBuilder(2, batch.codec, 0, batch.producer, 0, 0, 1 << 30)
        for i, (key, value) in enumerate(batch.records):
            builder.append(i, time_ms + i, key, value, [])
        one = bytearray(builder.build())
        pack_into(">q", one, 0, offset)
        attributes = int.from_bytes(one[21:23], "big") | batch.attributes
        last = len(batch.records) - 1 + batch.gap
        pack_into(">hi", one, 21, attributes, last)
        if batch.attributes & APPEND_TIME:
            pack_into(">q", one, 35, batch.append_ms)
        pack_into(">I", one, 17, calc_crc32c(bytes(one[21:])))
        data += one
        offset += last + 1
    return data
