"""The native module's functions beside their twins in Python, and inputs for both.

Owns what counts as the same result. A twin is what the worker does without the module: aiokafka
reads and writes record batches, keyfold.export decodes numbers and writes predictions. Called by
tests/worker/native, by tests/bench/native.py and by the fuzz that `make native-fuzz` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct

import hiredis
import numpy as np
from aiokafka.producer.message_accumulator import BatchBuilder
from numpy.typing import NDArray

from keyfold.export.decode import _Numbers
from keyfold.export.events import Caused, EventSpec, OutputSpec, PredictionEncoder
from keyfold.export.features import FeatureSpec
from keyfold.export.formats import JSON
from keyfold.worker import native
from keyfold.worker.encoder import encoder_of
from keyfold.worker.header_names import AnyNamesBatch

HEADER = Struct(">qiibIhiqqqhii")
INT64 = range(-(2**63), 2**63)

Row = tuple[int, int, bytes | None, bytes | None]  # offset, time, key, value
Message = tuple[bytes | None, bytes | None]  # key, value


@dataclass(frozen=True, slots=True)
class Section:
    """The records section of one batch, and what its header says."""

    data: bytes  # uncompressed
    count: int  # of its records
    base_offset: int = 0  # of the batch
    base_time_ms: int = 0  # of the batch
    append_time_ms: int = -1  # of all records; below 0: each has its own
    from_offset: int = 0  # the first that is wanted


def exact(data: bytes) -> memoryview:
    """Return a copy behind which nothing is allocated: sanitizers see a look beyond its end."""
    return np.frombuffer(data, np.uint8).copy().data


# -- records in ------------------------------------------------------------------------------------


def parse_native(section: Section) -> list[Row]:
    """Read records as the module does."""
    rows = max(min(section.count, len(section.data)), 0)
    offsets, times_ms = np.empty(rows, np.int64), np.empty(rows, np.int64)
    spans = np.empty((rows, 4), np.int32)
    data = exact(section.data)
    found = native.parse_records(
        data, section.count, section.base_offset, section.base_time_ms,
        section.append_time_ms, section.from_offset, offsets, times_ms, spans,
    )  # fmt: skip
    keys = native.cut(data, spans[:found, 0], spans[:found, 1])
    values = native.cut(data, spans[:found, 2], spans[:found, 3])
    columns = (offsets[:found].tolist(), times_ms[:found].tolist(), keys, values)
    return list(zip(*columns, strict=True))


def parse_python(section: Section) -> list[Row]:
    """Read records as aiokafka does, whatever headers' names are. Raises ValueError if it fails."""
    appended = section.append_time_ms >= 0
    header = HEADER.pack(
        section.base_offset, 0, -1, 2, 0, 8 if appended else 0, 0, section.base_time_ms,
        section.append_time_ms, -1, -1, -1, 0,
    )  # fmt: skip
    # The reader in Python: the one in C looks beyond the end of a batch cut short.
    batch = AnyNamesBatch(header + section.data)
    batch._maybe_uncompress()
    rows: list[Row] = []
    try:
        for _ in range(section.count):
            record = batch._read_msg(_strict_varint)
            if record.offset not in INT64 or record.timestamp not in INT64:
                raise ValueError("beyond 64 bits")
            rows.append((record.offset, record.timestamp, record.key, record.value))
        list(batch)  # nothing may follow
    except Exception as error:
        raise ValueError(f"record batch at offset {section.base_offset}: {error}") from error
    return [row for row in rows if row[0] >= section.from_offset]


def _strict_varint(buffer: bytearray, at: int = 0) -> tuple[int, int]:
    """Read a varint of at most 64 bits, which aiokafka takes longer ones for."""
    value = 0
    for shift in range(0, 70, 7):
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    if value >= 2**64 or byte & 0x80:
        raise ValueError("beyond 64 bits")
    return (value >> 1) ^ -(value & 1), at


def varint(value: int) -> bytes:
    """Write a zigzag varint."""
    bits = (value << 1) ^ (value >> 63)
    out = bytearray()
    while bits > 0x7F:
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    out.append(bits)
    return bytes(out)


def nullable(text: bytes | None) -> bytes:
    """Write a length and as many bytes; null is the length -1."""
    return varint(-1) if text is None else varint(len(text)) + text


def record(
    delta: int,
    key: bytes | None,
    value: bytes | None,
    time_delta: int = 0,
    headers: Sequence[tuple[bytes, bytes | None]] = (),
) -> bytes:
    """Write one record as a broker stores it."""
    named = b"".join(nullable(name) + nullable(text) for name, text in headers)
    body = b"\0" + varint(time_delta) + varint(delta) + nullable(key) + nullable(value)
    body += varint(len(headers)) + named
    return varint(len(body)) + body


def cut_python(data: bytes, at: Sequence[int], lengths: Sequence[int]) -> list[bytes | None]:
    """Cut parts out as the module does."""
    parts: list[bytes | None] = []
    for begin, length in zip(at, lengths, strict=True):
        if length != -1 and not (0 <= begin <= begin + length <= len(data)):
            raise ValueError(f"cut: row {len(parts)}: expected a part of the data, or length -1")
        parts.append(None if length == -1 else data[begin : begin + length])
    return parts


# -- records out -----------------------------------------------------------------------------------


def pack_native(messages: Sequence[Message], time_ms: int, limit: int) -> list[tuple[bytes, int]]:
    """Write batches as the module does."""
    keys, values = [key for key, _ in messages], [value for _, value in messages]
    packed = native.pack_records(keys, values, time_ms, limit)
    return [(bytes(batch), count) for batch, count in packed]


def pack_python(messages: Sequence[Message], time_ms: int, limit: int) -> list[tuple[bytes, int]]:
    """Write batches as aiokafka does, the fields that are the caller's blanked."""
    batches: list[tuple[bytes, int]] = []
    builder = BatchBuilder(limit, 0)
    for key, value in messages:
        if builder.append(timestamp=time_ms, key=key, value=value) is None:
            batches.append(_built(builder))
            builder = BatchBuilder(limit, 0)
            builder.append(timestamp=time_ms, key=key, value=value)
    return [*batches, _built(builder)] if builder.record_count() else batches


def _built(builder: BatchBuilder) -> tuple[bytes, int]:
    count = builder.record_count()
    batch = bytearray(builder._build())
    batch[17:21] = bytes(4)  # checksum
    batch[43:57] = b"\xff" * 14  # producer id, epoch, sequence
    return bytes(batch), count


# -- numbers ---------------------------------------------------------------------------------------


class Numbers:
    """Reads members of JSON objects both ways."""

    def __init__(self, names: Sequence[str]) -> None:
        self._twin = _Numbers(EventSpec(), FeatureSpec.numbers(*names), (), JSON)
        self._names = tuple(name.encode() for name in names)

    def native(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.float64], list[int]]:
        """Return the table (N,D) and the rows that Python must read."""
        lengths = np.array([-1 if v is None else len(v) for v in values], np.int32)
        at = (np.cumsum(lengths.clip(0)) - lengths.clip(0)).astype(np.int32)
        table = np.zeros((len(values), len(self._names)))
        data = exact(b"".join(value or b"" for value in values))
        return table, native.read_numbers(data, at, lengths, self._names, table)

    def python(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Return the table (N,D) and why rows are rejected."""
        rows, rejects = self._twin._rows(values)
        return np.array(rows, np.float64).reshape(len(values), len(self._names)), rejects

    def check(self, values: Sequence[bytes | None]) -> list[int]:
        """Hold both beside each other; return the rows that the module declined."""
        table, declined = self.native(values)
        expected, rejects = self.python(values)
        for row in set(range(len(values))) - set(declined):
            assert row not in rejects, f"accepted {values[row]!r}: {rejects[row]}"
            same = table[row].view(np.int64) == expected[row].view(np.int64)
            assert same.all(), f"{values[row]!r}: expected {expected[row]}, got {table[row]}"
        return declined


# -- predictions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What predictions are written from."""

    offsets: Sequence[int]  # of the records
    keys: Sequence[bytes]  # of the records
    times_ms: Sequence[int]  # of the events
    steps: Sequence[int]  # of the keys
    y: NDArray[np.float32]  # (N,O)
    gaps: Sequence[bool] | None = None  # of the keys


class Predictions:
    """Writes predictions of one bundle both ways."""

    def __init__(self, outputs: OutputSpec, bundle: str, topic: str) -> None:
        self._native = encoder_of(outputs, bundle, topic, use_native=True)
        self._twin = PredictionEncoder(outputs, bundle, topic)

    def native(self, partition: int, written: Written) -> list[bytes]:
        """Write as the module does."""
        return self._native.encode(partition, self._caused(written), written.y)

    def python(self, partition: int, written: Written) -> list[bytes]:
        """Write as Python does."""
        return self._twin.encode(partition, self._caused(written), written.y)

    def _caused(self, written: Written) -> Caused:
        return Caused(written.offsets, written.keys, written.times_ms, written.steps, written.gaps)


def outcome(function: Callable[[Section], list[Row]], section: Section) -> list[Row] | str:
    """Return what a function returns, or the beginning of its refusal."""
    try:
        return function(section)
    except ValueError as error:
        return str(error)[: len(f"record batch at offset {section.base_offset}: ")]


def read_back(arguments: bytes, count: int) -> list[bytes]:
    """Read `count` arguments of a Redis command as a server would."""
    reader = hiredis.Reader()
    reader.feed(b"*%d\r\n" % count + arguments)
    read = reader.gets()
    assert isinstance(read, list)
    assert len(read) == count
    assert reader.gets() is False  # and nothing more
    return read
