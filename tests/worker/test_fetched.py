"""A fetch left as bytes: the same records, positions and errors as aiokafka's own reading."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
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
from keyfold.worker.fetched import ITEM_BYTES, FetchedRecords, Raw, RecordSet, read_records
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


@pytest.mark.parametrize("length", [-(2**31), -83, -13, -12, -11, 0, 48])
def test_a_length_that_leads_nowhere_or_back_ends_the_look_at_a_fetch(length: int) -> None:
    whole = written([Batch([A, B])])
    data = bytearray(whole + whole)
    data[len(whole) + 8 : len(whole) + 12] = length.to_bytes(4, "big", signed=True)
    with _at_most_s(5):
        assert RecordSet(bytes(data)).all_of_version_2()
    with pytest.raises(CorruptRecordException, match=f"in:3: batch length {length}$"):
        as_bytes(bytes(data))


@contextmanager
def _at_most_s(seconds: float) -> Iterator[None]:
    """End what would go on for ever, by a signal."""

    def end(*_: object) -> None:
        raise TimeoutError(f"expected an end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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


def test_one_fetcher_leaves_one_topic_as_bytes_and_nobody_else_does() -> None:
    mine, other = (_fetched_by(as_bytes) for as_bytes in (True, False))
    assert [type(r) for r in mine("in")] == [Records]
    assert rows(mine("in")[0]) == rows(other("in"))
    for fetch in (mine, other):
        assert [r.key for r in fetch("of-an-agent")] == [b"a", b"b"]


def _fetched_by(as_bytes: bool) -> Callable[[str], list[Any]]:
    """Return what an aiokafka fetcher makes of a broker's answer with two records."""

    def fetch(topic: str) -> list[Any]:
        where = TopicPartition(topic, 0)
        of: Any = object.__new__(fetcher.Fetcher)
        of._client, of._client_rack, of._records = _Answers(topic), None, {}
        of._key_deserializer = of._value_deserializer = None
        of._check_crcs, of._isolation_level, of._prefetch_backoff = True, 1, 0.0
        if as_bytes:
            read_records(of, "in", as_bytes=True)
        _Assigned.position = 0
        request = SimpleNamespace(topics=[(topic, [(0, 0, 1 << 20)])])
        assert asyncio.run(of._proc_fetch_request(_Assigned(), 0, request))
        found: list[Any] = of._records[where].getall()
        return found

    return fetch


class _Answers:
    """As much of a client as a fetch takes."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    async def send(self, node: int, request: object) -> Any:
        part = (0, 0, 2, 2, 0, None, -1, written([Batch([A, B])]))
        return SimpleNamespace(API_VERSION=11, topics=[(self._topic, [part])])


def test_an_aiokafka_that_reads_otherwise_is_refused() -> None:
    class Newer:
        async def _proc_fetch_request(self) -> None: ...

    said = "expected an aiokafka that reads records with MemoryRecords, PartitionRecords"
    with pytest.raises(RuntimeError, match=said):
        read_records(Newer(), "in", as_bytes=True)


@pytest.mark.parametrize("codec", [0, 4])
def test_a_large_fetch_comes_in_items_of_bounded_size(codec: int) -> None:
    batches = [Batch([(b"k", b"v" * 1000)] * 500, codec) for _ in range(9)]  # 0.5 MB each
    data = written(batches)
    found = FetchedRecords("in:3", data, None, 0)
    items, ends = [], []
    for item in found:
        items.append(len(item))
        ends.append(found.next_fetch_offset)
    assert items == [1000, 1000, 1000, 1000, 500] if codec == 4 else sum(items) == 4500
    assert all(count * 1064 <= ITEM_BYTES + 500 * 1064 for count in items)
    assert ends == list(np.cumsum(items))  # the position is never beyond what was given away


def test_a_poll_that_stops_between_items_goes_on_behind_them() -> None:
    data = written([Batch([(b"k", b"v" * 1000)] * 1200, 4) for _ in range(3)])
    _Assigned.position = 0
    result = fetcher.FetchResult(
        TP, assignment=_Assigned(), partition_records=FetchedRecords("", data, None, 0), backoff=0
    )
    offsets: list[int] = []
    for _ in range(3):
        (item,) = result.getall(1)
        offsets += item.offsets.tolist()
        assert _Assigned.position == len(offsets)
        assert result.has_more()
    assert offsets == list(range(3600))
    assert result.getall(1) == []
    assert not result.has_more()


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
    _Assigned.position = 0
    result = fetcher.FetchResult(
        TP, assignment=_Assigned(), partition_records=FetchedRecords("", data, None, 0), backoff=0
    )
    assert next(iter(FetchedRecords("", data, None, 0)))[0].key == b"a"
    ((record,),) = result.getall(500)
    assert (record.key, result.has_more(), _Assigned.position) == (b"a", False, 1)


class _Assigned:
    active, paused, position, has_valid_position = True, False, 0, True
    highwater = lso = timestamp = 0

    def state_value(self, tp: TopicPartition) -> type[_Assigned]:
        return _Assigned

    @classmethod
    def consumed_to(cls, position: int) -> None:
        cls.position = position


def _sealed(data: bytearray) -> bytes:
    data[17:21] = native.crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)
