"""Records that wait: taken in order, by number and by size, whatever they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from memory_log import Rec, event
from native_twins import HEADER, record
from record_sets import Batch, written

from keyfold.export.decode import Decoder
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.worker import native
from keyfold.worker.fetched import FetchedRecords, RecordSet
from keyfold.worker.header_names import AnyHeaders
from keyfold.worker.records import Listed, Records, Run, Waiting, values_of


def listed(first: int, count: int, size: int = 2) -> Listed:
    return Listed.of([Rec(first + i, b"k%d" % (i % 3), b"v" * size) for i in range(count)])


def raw(first: int, count: int, size: int = 2) -> Run:
    """Return the same records as listed(), left as bytes where that can be."""
    if not native.available():
        return listed(first, count, size)
    batch = Batch([(b"k%d" % (i % 3), b"v" * size) for i in range(count)])
    (records,) = FetchedRecords("in:0", written([batch], first), None, first)
    return records.runs[0]


def offsets(records: Sequence[Rec] | Records) -> list[int]:
    return [record.offset for record in records]


def waiting(*runs: Run) -> Waiting:
    made = Waiting()
    made.add(Records(runs))
    return made


@given(st.data())
def test_whatever_is_taken_nothing_is_lost_and_nothing_changes_places(data: st.DataObject) -> None:
    here, count = Waiting(), 0
    for kind in data.draw(st.lists(st.sampled_from([listed, raw]), max_size=5)):
        more = data.draw(st.integers(1, 6))
        here.add(Records([kind(count, more)]))
        count += more
    taken: list[int] = []
    while len(here):
        assert (here.first_offset, here.below(count)) == (len(taken), count - len(taken))
        most = data.draw(st.integers(1, 7))
        some = here.take(most, data.draw(st.integers(1, 2000)))
        assert 1 <= len(some) <= most
        assert some.offsets.tolist() == offsets(some)
        taken += offsets(some)
    assert taken == list(range(count))
    assert (here.bytes, here.first_offset, here.below(count)) == (0, None, 0)


def test_large_records_are_taken_few_at_a_time_but_one_always() -> None:
    here = waiting(listed(0, 3, 10_000), raw(3, 3, 10_000))
    assert offsets(here.take(10, 1)) == [0]
    assert offsets(here.take(10, 15_000)) == [1, 2]  # the one that goes beyond still comes along
    assert offsets(here.take(10, 25_000)) == [3, 4, 5]


def test_bytes_are_counted_while_they_wait() -> None:
    here = waiting(listed(0, 4, 1000))
    whole = here.bytes
    assert whole > 4000
    here.take(1, 10**6)
    assert here.bytes == whole * 3 // 4
    here.clear()
    assert (here.bytes, len(here)) == (0, 0)


def with_headers(as_bytes: bool) -> Run:
    """Return three records, the second of which has headers of 6 KB."""
    headers = [(b"trace", b"x" * 6000), (b"none", None)]
    rows = [record(i, b"k", b"v", 0, headers if i == 1 else []) for i in range(3)]
    data = b"".join(rows)
    head = HEADER.pack(0, HEADER.size - 12 + len(data), 0, 2, 0, 0, 2, 0, 0, -1, -1, -1, 3)
    whole = bytearray(head + data)
    whole[17:21] = calc_crc32c(bytes(whole[21:])).to_bytes(4, "big")
    if as_bytes:
        return next(FetchedRecords("in:0", bytes(whole), None, 0)).runs[0]
    tp = TopicPartition("in", 0)
    return Listed.of(list(AnyHeaders(tp, RecordSet(bytes(whole)), None, 0, None, None, True, 1)))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_headers_count_while_they_wait(as_bytes: bool) -> None:
    if as_bytes and not native.available():
        pytest.skip("the native module is not there: no C++ compiler")
    run = with_headers(as_bytes)
    sizes = run.sizes.tolist()
    assert sizes[0] < 300 > sizes[2]
    assert 6009 < sizes[1] < 6700
    assert run.total_bytes == sum(sizes)
    assert run.cut(1, 3).sizes.tolist() == sizes[1:]
    here = waiting(run)
    here.take(1, 10**6)
    assert here.bytes > 6000
    assert offsets(here.take(2, 5000)) == [1]
    assert here.bytes == sizes[2]


def test_how_many_lie_below_an_offset_is_told_run_by_run() -> None:
    here = waiting(listed(10, 5), raw(20, 5))
    assert [here.below(at) for at in (0, 10, 12, 15, 18, 22, 99)] == [0, 0, 2, 5, 5, 7, 10]


def test_records_are_a_sequence() -> None:
    records = Records([listed(0, 3), raw(3, 3), listed(6, 1)])
    assert (len(records), records[0].offset, records[-1].offset) == (7, 0, 6)
    assert [records[i].offset for i in range(7)] == list(range(7))
    assert offsets(records[2:5]) == [2, 3, 4]
    assert offsets(records[5:]) == [5, 6]
    assert (len(records[7:]), list(records[3:3])) == (0, [])
    assert records.key_column() == [b"k0", b"k1", b"k2"] * 2 + [b"k0"]
    assert records.key_bytes == 14
    for row in (7, -8):
        with pytest.raises(IndexError, match=f"expected a row below 7, got {-1 if row < 0 else 7}"):
            records[row]
    assert Records.of(records) is records
    assert not Records.of([])


@pytest.mark.parametrize("kind", [listed, raw])
def test_keys_are_found_whatever_the_records_are(kind: object) -> None:
    run = kind(0, 5)  # type: ignore[operator]
    assert run.total_bytes == run.sizes.sum()
    found = Records([run]).find({b"k0": 7, b"k2": 1})
    assert found.slots.tolist() == [7, -1, 1, 7, -1]
    assert found.unknown == [1, 4]


def test_values_of_several_partitions_read_numbers_where_they_can() -> None:
    plain = values_of([Records([listed(0, 2)]), Records.of([event(5, b"k")])])
    assert isinstance(plain, list)
    if not native.available():
        pytest.skip("the native module is not there: no C++ compiler")
    texts = [b'{"n": 1}', b"no", b'{"n": 3}']
    (fetched,) = FetchedRecords("in:0", written([Batch([(b"k", t) for t in texts])]), None, 0)
    values = values_of([Records([listed(0, 2)]), fetched])
    table = np.zeros((5, 1))
    assert values.read_numbers((b"n",), table) == [0, 1, 3]  # type: ignore[attr-defined]
    assert table[[2, 4], 0].tolist() == [1, 3]
    assert [*values] == [b"vv", b"vv", *texts]
    assert (values[3], list(values[1:4]), len(values)) == (b"no", [b"vv", *texts[:2]], 5)
    assert values.pick([]) == []  # type: ignore[attr-defined]
    assert values.pick([1, 2, 4]) == [b"vv", texts[0], texts[2]]  # type: ignore[attr-defined]
    assert values.pick([3]) == [b"no"]  # type: ignore[attr-defined]


@pytest.mark.skipif(not native.available(), reason="the native module is not there")
def test_values_that_python_has_to_read_are_taken_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One by one they cost more than everything that the module saves."""
    texts = [b'{"n": %d, "n": 2}' % i if i % 2 else b'{"n": 2}' for i in range(50)]
    runs: list[Run] = []
    for first in (0, 50):
        batch = Batch([(b"k", text) for text in texts])
        runs += next(FetchedRecords("in:0", written([batch], first), None, first)).runs
    cuts: list[int] = []
    cut = native.cut

    def counted(data: memoryview, at: Any, lengths: Any) -> list[bytes | None]:
        cuts.append(len(at))
        return cut(data, at, lengths)

    monkeypatch.setattr(native, "cut", counted)
    decoder = Decoder(EventSpec(), FeatureSpec.numbers("n"))
    decoded = decoder.decode(values_of([Records(runs)]), [0] * 100)
    assert decoded.x[:, 0].tolist() == [2.0] * 100
    assert cuts == [25, 25]
