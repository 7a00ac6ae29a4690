"""A fetch left as bytes: the same records, positions and errors as aiokafka's own reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiokafka.consumer.fetcher as fetcher
import numpy as np
import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from record_sets import APPEND_TIME, TRANSACTIONAL, Batch, marker, written

from keyfold.worker import native
from keyfold.worker.fetched import FetchedRecords, Raw, RecordSet, leave_as_bytes
from keyfold.worker.records import Records

pytestmark = pytest.mark.skipif(
    not native.available(), reason="the native module is not there: no C++ compiler"
)

TP = TopicPartition("in", 3)
Row = tuple[int, int, bytes | None, bytes | None]
Read = tuple[list[Row], int]


def rows(records: Sequence[Any]) -> list[Row]:
    return [(r.offset, r.timestamp, r.key, r.value) for r in records]


def by_aiokafka(data: bytes, aborted: Any = None, at: int = 0) -> Read:
    found = PartitionRecords(TP, MemoryRecords(data), aborted, at, None, None, True, 1)
    return rows(list(found)), found.next_fetch_offset


def as_bytes(data: bytes, aborted: Any = None, at: int = 0) -> Read:
    found = FetchedRecords("in:3", data, aborted, at)
    return [row for records in found for row in rows(records)], found.next_fetch_offset


def same(data: bytes, aborted: Any = None, at: int = 0) -> list[Row]:
    read = as_bytes(data, aborted, at)
    assert read == by_aiokafka(data, aborted, at)
    return read[0]


A, B, C = (b"a", b"1"), (b"b", None), (None, b"3")


@pytest.mark.parametrize("codec", range(5))
def test_every_codec_is_read(codec: int) -> None:
    data = written([Batch([A, B], codec), Batch([C] * 40, codec)], first_offset=7)
    assert len(same(data, at=7)) == 42


def test_a_fetch_may_begin_within_a_batch_and_end_within_another() -> None:
    data = written([Batch([A, B, C]), Batch([A, B])])
    assert [row[0] for row in same(data, at=1)] == [1, 2, 3, 4]
    assert [row[0] for row in same(data[:-1], at=1)] == [1, 2]
    assert same(data[:60]) == []


def test_the_next_fetch_begins_behind_what_compaction_left_empty() -> None:
    data = written([Batch([A], gap=9), Batch([], gap=4)])
    assert as_bytes(data) == ([(0, 1000, b"a", b"1")], 14)
    same(data)


def test_the_broker_s_own_time_counts_where_the_topic_says_so() -> None:
    assert same(written([Batch([A, B], 0, APPEND_TIME, append_ms=77)]))[1][1] == 77


def test_aborted_transactions_and_markers_are_passed_over() -> None:
    data = written(
        [
            Batch([A], 0, TRANSACTIONAL, 1),  # 0: aborted
            Batch([B], 0, TRANSACTIONAL, 2),  # 1: committed
            Batch([C]),  # 2: no transaction
            marker(1, abort=True),  # 3
            Batch([A], 0, TRANSACTIONAL, 1),  # 4: the same producer's next one, committed
            marker(2, abort=False),
            marker(1, abort=False),
        ]
    )
    assert [row[0] for row in same(data, [(1, 0)])] == [1, 2, 4]
    assert as_bytes(data, [(1, 0)])[1] == 7


def test_a_fetch_of_nothing_but_markers_moves_the_position() -> None:
    assert as_bytes(written([marker(1, abort=False)])) == ([], 1)


@given(st.data())
def test_any_log_reads_as_aiokafka_reads_it(data: st.DataObject) -> None:
    text = st.none() | st.binary(max_size=40)
    batch = st.builds(
        Batch,
        st.lists(st.tuples(text, text), min_size=1, max_size=6),
        st.sampled_from([0, 0, 1, 3]),
        st.sampled_from([0, TRANSACTIONAL, APPEND_TIME]),
        st.integers(-1, 2),
        st.integers(0, 3),
        st.integers(0, 10**13),
    )
    markers = st.builds(marker, st.integers(0, 2), abort=st.booleans())
    log = written(data.draw(st.lists(batch | markers, max_size=8)), 100)
    aborted = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(100, 140)), max_size=3))
    cut = data.draw(st.integers(0, 120))
    same(log[: len(log) - cut], aborted, data.draw(st.integers(100, 130)))


@pytest.mark.parametrize(
    ("at", "to", "said"),
    [
        (70, 255, "Invalid CRC - in:3"),  # a record
        (20, 1, "Invalid CRC - in:3"),  # the checksum itself
    ],
)
def test_a_damaged_batch_is_not_read(at: int, to: int, said: str) -> None:
    data = bytearray(written([Batch([A, B])]))
    data[at] ^= to
    with pytest.raises(CorruptRecordException, match=said):
        as_bytes(bytes(data))
    with pytest.raises(CorruptRecordException):
        by_aiokafka(bytes(data))


def test_without_the_checksum_a_damaged_record_would_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytearray(written([Batch([A, B])]))
    data[-3] ^= 1  # the last key
    monkeypatch.setattr(native, "crc32c", lambda _: int.from_bytes(data[17:21], "big"))
    assert as_bytes(bytes(data))[0][1][2] != b"b"


@pytest.mark.parametrize("count", [-1, 3, 2**31 - 1])
def test_a_wrong_count_of_records_is_an_error_and_no_allocation(count: int) -> None:
    data = bytearray(written([Batch([A, B])]))
    data[57:61] = count.to_bytes(4, "big", signed=True)
    with pytest.raises(CorruptRecordException, match="in:3: "):
        as_bytes(_sealed(data))


def test_a_batch_length_below_the_header_s_is_an_error() -> None:
    data = bytearray(written([Batch([A, B])]))
    data[8:12] = (40).to_bytes(4, "big")
    with pytest.raises(CorruptRecordException, match="in:3: batch length 40"):
        as_bytes(bytes(data))


def test_records_of_a_fetch_are_one_run_where_they_share_a_buffer() -> None:
    (records,) = FetchedRecords("in:3", written([Batch([A, B]), Batch([C])]), None, 0)
    assert len(records.runs) == 1
    (mixed,) = FetchedRecords("in:3", written([Batch([A]), Batch([B], 1), Batch([C])]), None, 0)
    assert [len(run.offsets) for run in mixed.runs] == [1, 1, 1]
    assert [row[2:] for row in rows(mixed)] == [A, B, C]


def test_a_run_answers_column_by_column() -> None:
    (records,) = FetchedRecords("in:3", written([Batch([A, B, C, (b"d", b'{"n": 2}')])]), None, 0)
    (run,) = records.runs
    assert isinstance(run, Raw)
    assert run.key_column() == [b"a", b"b", None, b"d"]
    assert run.value_column() == [b"1", None, b"3", b'{"n": 2}']
    assert (run.key_bytes, run.timestamps_ms.tolist()) == (3, [1000, 1001, 1002, 1003])
    slots = np.empty(4, np.intp)
    assert run.find({b"d": 5, b"b": 0}, slots) == [0, 2]
    assert slots.tolist() == [-1, 0, -1, 5]
    table = np.zeros((4, 1))
    assert list(run.read_numbers((b"n",), table)) == [0, 1, 2]
    assert table[3] == 2


def test_only_the_topics_that_were_named_are_left_as_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MemoryRecords", "PartitionRecords"):
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))
    leave_as_bytes("in")
    leave_as_bytes("in")
    data = written([Batch([A, B])])

    def read(topic: str, data: bytes) -> list[Any]:
        records = fetcher.MemoryRecords(data)
        where = TopicPartition(topic, 0)
        return list(fetcher.PartitionRecords(where, records, None, 0, None, None, True, 1))

    (whole,) = read("in", data)
    assert isinstance(whole, Records)
    assert rows(read("of-an-agent", data)) == rows(whole)


def test_messages_of_the_old_format_stay_aiokafka_s() -> None:
    old = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    old.append(0, 5, b"k", b"v")
    data = bytes(old.build())
    assert not RecordSet(data).all_of_version_2()
    assert not RecordSet(written([Batch([A])]) + data + b"\0" * 61).all_of_version_2()
    assert RecordSet(written([Batch([A])])).all_of_version_2()


def test_what_aiokafka_asks_of_its_reader_is_there() -> None:
    """A new aiokafka must fail here, not in service: these are private names."""
    data = written([Batch([A])])
    assert RecordSet(data).has_next()
    assert RecordSet(data[:20]).size_in_bytes() == 20
    assert not RecordSet(data[:20]).has_next()
    result = fetcher.FetchResult(
        TP, assignment=_Assigned(), partition_records=FetchedRecords("", data, None, 0), backoff=0
    )
    ((record,),) = result.getall(500)
    assert (record.key, result.has_more(), _Assigned.position) == (b"a", False, 1)


class _Assigned:
    active, paused, position = True, False, 0

    def state_value(self, tp: TopicPartition) -> type[_Assigned]:
        return _Assigned

    @classmethod
    def consumed_to(cls, position: int) -> None:
        cls.position = position


def _sealed(data: bytearray) -> bytes:
    data[17:21] = native.crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)
