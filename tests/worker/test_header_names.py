"""Headers whose names are no UTF-8 cost nothing: a fetch of them is read, natively or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from struct import pack_into
from typing import Any

import aiokafka
import pytest
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from live_worker import Serving, make_events
from native_twins import HEADER, record
from record_sets import TRANSACTIONAL, Batch, marker, written

from keyfold.worker import native
from keyfold.worker.fetched import FetchedRecords, RecordSet
from keyfold.worker.header_names import AnyHeaders
from keyfold.worker.packed import Packed

TP = TopicPartition("in", 3)
LATIN = "café".encode("latin-1")
CODECS: dict[int, Any] = {
    0: bytes, 1: gzip_encode, 2: snappy_encode, 3: lz4_encode, 4: zstd_encode,
}  # fmt: skip
Row = tuple[int, int, bytes | None, bytes | None]


def batch(
    offset: int, names: Sequence[bytes], codec: int = 0, attributes: int = 0, producer: int = -1
) -> bytes:
    """Write a batch whose records have one header each, of these names."""
    rows = [record(i, b"k%d" % i, b"v", i, [(name, b"x")]) for i, name in enumerate(names)]
    data = CODECS[codec](b"".join(rows))
    count = len(rows)
    head = HEADER.pack(
        offset, HEADER.size - 12 + len(data), 0, 2, 0, codec | attributes, count - 1, 1000, 1000,
        producer, 0, 0, count,
    )  # fmt: skip
    whole = bytearray(head + data)
    pack_into(">I", whole, 17, calc_crc32c(bytes(whole[21:])))
    return bytes(whole)


def by_python(data: bytes, aborted: Any = None, at: int = 0) -> tuple[list[Any], int]:
    found = AnyHeaders(TP, RecordSet(data), aborted, at, None, None, True, 1)
    return list(found), found.next_fetch_offset


def rows(records: Sequence[Any]) -> list[Row]:
    return [(r.offset, r.timestamp, r.key, r.value) for r in records]


def both(data: bytes, aborted: Any = None, at: int = 0) -> list[Row]:
    """Read a fetch by Python and, where it is there, by the native module."""
    records, position = by_python(data, aborted, at)
    if native.available():
        found = FetchedRecords("in:3", data, aborted, at)
        assert [row for some in found for row in rows(some)] == rows(records)
        assert found.next_fetch_offset == position
    return rows(records)


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_s_name_that_is_no_text_costs_no_record(codec: int) -> None:
    before = written([Batch([(b"a", b"1")])])
    data = before + batch(1, [b"n", LATIN, b"n", b"\xff"], codec)
    data += written([Batch([(b"b", b"2")])], 5)
    read = both(data)
    assert [row[0] for row in read] == [0, 1, 2, 3, 4, 5]
    assert read[2] == (2, 1001, b"k1", b"v")
    assert both(data[len(before) :], at=3) == read[3:]
    assert both(data[:-1]) == read[:-1]


def test_aiokafka_alone_refuses_such_names() -> None:
    """When this fails, worker/header_names.py has had its day."""
    alone = PartitionRecords(TP, RecordSet(batch(0, [LATIN])), None, 0, None, None, True, 1)
    with pytest.raises(UnicodeDecodeError):
        list(alone)


def test_an_agent_sees_such_names_with_escapes() -> None:
    records, _ = by_python(batch(0, [b"first", LATIN, "café".encode()]))
    names = [name for one in records for name, _ in one.headers]
    assert names == ["first", "caf\\xe9", "café"]


def test_what_was_known_of_transactions_counts_behind_such_a_name() -> None:
    data = batch(0, [b"n", LATIN], 0, TRANSACTIONAL, 1)  # aborted
    data += batch(2, [LATIN, b"n"], 0, TRANSACTIONAL, 2)  # committed
    data += batch(4, [LATIN], 0, TRANSACTIONAL, 1)  # aborted, like the first one
    data += written([marker(1, abort=True), marker(2, abort=False)], 5)
    data += batch(7, [LATIN, b"n"], 0, TRANSACTIONAL, 1)  # its next one
    assert [row[0] for row in both(data, [(1, 0)])] == [2, 3, 7, 8]
    assert by_python(data, [(1, 0)])[1] == 9


@pytest.mark.usefixtures("real_kafka", "either_way")
def test_a_worker_serves_events_with_such_headers(serving: Serving) -> None:
    events = make_events(300, 10)
    serving.send(events[:100], partition=0)
    asyncio.run(_send_latin(serving, events[100:200]))
    serving.send(events[200:], partition=0)
    with serving.running() as worker:
        serving.wait_saved([worker])
    assert len(serving.records(serving.output)) == 300
    keys = [json.loads(one.value())["key"] for one in serving.records(serving.output)]
    assert keys == [(key or b"").decode() for key, _ in events]


async def _send_latin(serving: Serving, events: Sequence[tuple[Any, Any]]) -> None:
    """Send events to partition 0, each with a header whose name is Latin-1."""
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=serving.kafka.address, enable_idempotence=False
    )
    await producer.start()
    try:
        stand_in = b"caf?"
        builder = producer.create_batch()
        for key, value in events:
            headers = [(stand_in.decode(), b"v")]
            assert builder.append(timestamp=None, key=key, value=value, headers=headers)
        builder.close()
        data = bytearray(builder._build().replace(stand_in, LATIN))
        sending = Packed(data, len(events), transactional=False)
        await (await producer.send_batch(sending, serving.input, partition=0))
    finally:
        await producer.stop()
