"""Record batches, read and written: as aiokafka does it, byte for byte."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_twins import (
    Message,
    Row,
    Section,
    cut_python,
    pack_native,
    pack_python,
    parse_native,
    parse_python,
    record,
    varint,
)

from keyfold.worker import native

PARSE = {"native": parse_native, "python": parse_python}
PACK = {"native": pack_native, "python": pack_python}
HEADER_BYTES = 61

texts = st.none() | st.binary(max_size=200)
messages = st.lists(st.tuples(texts, texts), max_size=30)


# -- in --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=30), st.integers(0, 2**62))
def test_what_aiokafka_writes_is_read_back(way: str, sent: list[Message], time_ms: int) -> None:
    [(batch, count)] = pack_python(sent, time_ms, 10**6)
    section = Section(batch[HEADER_BYTES:], count, 1000, time_ms, from_offset=1000)
    expected = [(1000 + i, time_ms, key, value) for i, (key, value) in enumerate(sent)]
    assert PARSE[way](section) == expected


TWO = Section(record(3, b"a", b"1", 7) + record(5, None, None, -2), 2, 100, 1000)
A: Row = (103, 1007, b"a", b"1")
B: Row = (105, 998, None, None)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (TWO, [A, B]),
        (replace(TWO, from_offset=103), [A, B]),
        (replace(TWO, from_offset=104), [B]),
        (replace(TWO, from_offset=106), []),
        (replace(TWO, append_time_ms=5), [(103, 5, b"a", b"1"), (105, 5, None, None)]),
        (replace(TWO, append_time_ms=0), [(103, 0, b"a", b"1"), (105, 0, None, None)]),
        (Section(b"", 0), []),
        (Section(record(0, b"", b""), 1), [(0, 0, b"", b"")]),
        (Section(record(0, b"k", None, 0, [(b"name", b"x"), ("ä€😀".encode(), None)]), 1),
         [(0, 0, b"k", None)]),
        (Section(record(0, b"k", b"v", 0, [(b"caf\xe9", b"x"), (b"\xed\xa0\x80", None)]), 1),
         [(0, 0, b"k", b"v")]),  # names that are no text
        (Section(record(-4, b"k", b"v", -(2**62)), 1, 10), [(6, -(2**62), b"k", b"v")]),
        (Section(record(0, b"k" * 70_000, b"v" * 9000), 1), [(0, 0, b"k" * 70_000, b"v" * 9000)]),
    ],
)  # fmt: skip
def test_records_have_their_offset_time_key_and_value(
    way: str, section: Section, expected: list[Row]
) -> None:
    assert PARSE[way](section) == expected


WHOLE = record(0, b"key", b"value", 0, [(b"name", b"text")])
MALFORMED, FOLLOW = "a record is malformed", "bytes follow its last record"
SHORT, BEYOND = "it is too short for its count of records", "offset or time is beyond 64 bits"


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (Section(WHOLE, 2), MALFORMED),
        (Section(WHOLE + WHOLE, 1), FOLLOW),
        (Section(WHOLE, 0), FOLLOW),
        (Section(b"", 1), SHORT),
        (Section(b"\0" * 13, 2), SHORT),
        (Section(WHOLE, 2**31 - 1), SHORT),
        (Section(varint(len(WHOLE)) + WHOLE[1:], 1), MALFORMED),  # longer than it is
        (Section(varint(5) + WHOLE[1:], 1), MALFORMED),  # shorter than it is
        (Section(varint(-1) + WHOLE[1:], 1), MALFORMED),
        (Section(varint(7) + b"\0\0\0" + b"\1\1" + varint(-1) + b"\0", 1), MALFORMED),  # headers
        (Section(varint(16) + b"\0" + b"\x80" * 9 + b"\2" + b"\0\1\1\0\0", 1), MALFORMED),
        (Section(varint(16) + b"\0" + b"\x80" * 10 + b"\0\1\1\0\0", 1), MALFORMED),
        (Section(record(1, b"k", b"v"), 1, 2**63 - 1), BEYOND),
        (Section(record(0, b"k", b"v", 1), 1, 0, 2**63 - 1), BEYOND),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(way: str, section: Section, why: str) -> None:
    section = replace(section, base_offset=section.base_offset or 77)
    with pytest.raises(ValueError, match=f"^record batch at offset {section.base_offset}: ") as no:
        PARSE[way](section)
    if way == "native":
        assert str(no.value).endswith(why)


def test_every_cut_off_batch_is_refused(way: str) -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(ValueError, match="record batch at offset 0: "):
            PARSE[way](Section(WHOLE[:size], 1))


def test_a_time_beyond_64_bits_does_not_count_where_the_broker_set_one(way: str) -> None:
    section = Section(record(0, b"k", b"v", 1), 1, 0, 2**63 - 1, append_time_ms=9)
    assert PARSE[way](section) == [(0, 9, b"k", b"v")]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("count", [-1, -(2**31)])
def test_a_count_below_zero_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="record batch at offset 0: it is too short for its count"):
        parse_native(Section(b"", count))


def test_parts_are_cut_out_and_null_is_none(way: str) -> None:
    at, lengths = [0, 3, 6, -9, 2], [3, 0, 0, -1, 4]
    expected = [b"abc", b"", b"", None, b"cdef"]
    if way == "python":
        assert cut_python(b"abcdef", at, lengths) == expected
        return
    spans = np.array([at, lengths], np.int32)
    assert native.cut(b"abcdef", spans[0], spans[1]) == expected
    columns = np.ascontiguousarray(spans.T)  # with a stride
    assert native.cut(memoryview(b"abcdef"), columns[:, 0], columns[:, 1]) == expected


@pytest.mark.parametrize(
    ("at", "length"),
    [(7, 0), (0, 7), (6, 1), (-1, 1), (0, -2), (2**31 - 1, 2**31 - 1), (-(2**31), -(2**31))],
)
def test_a_part_outside_the_data_is_refused(way: str, at: int, length: int) -> None:
    cut: Callable[..., Any] = cut_python if way == "python" else native.cut
    spans = np.array([[0, at], [0, length]], np.int32)
    with pytest.raises(ValueError, match="cut: row 1: expected a part of the data, or length -1"):
        cut(b"abcdef", *(spans.tolist() if way == "python" else spans))


# -- out -------------------------------------------------------------------------------------------


@given(messages, st.integers(0, 2**63 - 1), st.integers(0, 2000))
def test_batches_are_those_of_aiokafka(sent: list[Message], time_ms: int, limit: int) -> None:
    if native.available():
        assert pack_native(sent, time_ms, limit) == pack_python(sent, time_ms, limit)


def test_batches_end_below_their_limit(way: str) -> None:
    sent = [(b"k" * 4, b"v" * 100)] * 7
    one = len(record(0, *sent[0]))
    for over, counts in ((0, [2, 2, 2, 1]), (1, [3, 3, 1])):
        packed = PACK[way](sent, 5, HEADER_BYTES + 3 * one + over)
        assert [count for _, count in packed] == counts


def test_a_message_larger_than_the_limit_is_alone(way: str) -> None:
    sent = [(b"k", b"v"), (b"k", b"v" * 500), (b"k", b"v"), (b"k", None)]
    packed = PACK[way](sent, 5, 200)
    assert [count for _, count in packed] == [1, 1, 2]
    assert len(packed[1][0]) > 500


def test_no_messages_are_no_batch(way: str) -> None:
    assert PACK[way]([], 5, 200) == []


@pytest.mark.usefixtures("built")
def test_batches_are_one_s_own_to_change() -> None:
    [(batch, count)] = native.pack_records((b"k",), [b"v"], 5, 1000)
    assert (type(batch), count) == (bytearray, 1)
    assert sys.getrefcount(batch) == 2  # ours, and the argument's
    batch += b"more"


# -- arguments -------------------------------------------------------------------------------------

I64, I32 = np.zeros(2, np.int64), np.zeros(2, np.int32)
SPANS = np.zeros((2, 4), np.int32)
KEYS = [b"k"]
loose: Any = native  # called as nobody should


def parse(*changed: tuple[int, Any]) -> int:
    """Read no records, with some arguments changed."""
    arguments: list[Any] = [b"", 0, 0, 0, -1, 0, I64, I64.copy(), SPANS]
    for place, value in changed:
        arguments[place] = value
    return native.parse_records(*arguments)


OFFSETS = (
    "parse_records: offsets: expected a C-contiguous, aligned, writable array of int64 in 1 dim"
)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse((0, "text")), "parse_records: data: expected contiguous bytes"),
        (lambda: parse((0, memoryview(b"abcd")[::2])), "parse_records: data: expected contiguous"),
        (lambda: parse((1, 1.0)), "parse_records: count: expected an int"),
        (lambda: parse((6, [1])), OFFSETS),
        (lambda: parse((6, np.zeros(2, ">i8"))), OFFSETS),
        (lambda: parse((6, np.zeros(2, np.uint64))), OFFSETS),
        (lambda: parse((6, np.zeros(2, "M8[ms]"))), OFFSETS),
        (lambda: parse((6, np.zeros(4, np.int64)[::2])), OFFSETS),
        (lambda: parse((6, np.frombuffer(bytes(16), np.int64))), OFFSETS),
        (lambda: parse((6, np.frombuffer(bytearray(17), np.int64, 2, 1))), OFFSETS),
        (lambda: parse((7, SPANS)), OFFSETS.replace("offsets", "times")),
        (lambda: parse((8, I32)), "parse_records: spans: expected a C-contiguous, aligned"),
        (lambda: loose.cut(b"", I64, I32), "cut: at: expected an aligned array of int32 in 1 dim"),
        (lambda: loose.cut(b"", I32, SPANS), "cut: lengths: expected an aligned array of int32"),
        (lambda: loose.pack_records(1, KEYS, 0, 0), "pack_records: keys: expected a list or a "),
        (lambda: loose.pack_records(KEYS, ["v"], 0, 0), "pack_records: values: expected bytes"),
        (lambda: loose.pack_records(KEYS, KEYS, 1.0, 0), "pack_records: time_ms: expected an int"),
        (lambda: loose._codec.cut(b""), "cut: expected 3 arguments, got 1"),
        (lambda: loose._codec.cut(b"", I32, I32, 0), "cut: expected 3 arguments, got 4"),
    ],
)  # fmt: skip
def test_arguments_of_other_types_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as refused:
        call()
    assert str(refused.value).startswith(message)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse((1, 2**63)), "parse_records: count: expected an int of 64 bits"),
        (lambda: parse((0, bytes(21)), (1, 3)), "parse_records: offsets, times, spans: expected "
         "room for 3 rows, spans of 4"),
        (lambda: parse((8, np.zeros((2, 5), np.int32))), "parse_records: offsets, times, spans: "
         "expected room for 0 rows, spans of 4"),
        (lambda: loose.cut(b"", I32, I32[:1]), "cut: at, lengths: expected as many rows in both"),
        (lambda: loose.pack_records(KEYS, [], 0, 0), "pack_records: keys, values: expected as "),
    ],
)  # fmt: skip
def test_arguments_of_other_sizes_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        call()
    assert str(refused.value).startswith(message)
