"""Members of JSON objects as doubles: the very ones that Python reads, or none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_twins import Numbers

from keyfold.worker import native

AB = Numbers(("a", "b"))
MAX = 1.7976931348623157e308

# The texts of a number, its double, and whether the module reads it itself: it leaves what is rare.
NUMBERS = [
    (b"0", 0.0, True), (b"7", 7.0, True), (b"-7", -7.0, True), (b"12345678", 12345678.0, True),
    (b"123456789", 123456789.0, True), (b"999999999999999999", 1e18, True),
    (b"9007199254740993", 9007199254740992.0, True), (b"-0.0", -0.0, True), (b"-0e5", -0.0, True),
    (b"0.1", 0.1, True), (b"-12.25", -12.25, True), (b"1e5", 1e5, True), (b"1E+5", 1e5, True),
    (b"1e-5", 1e-5, True), (b"1.5e0003", 1500.0, True), (b"0e999", 0.0, True),
    (b"1e22", 1e22, True), (b"1e23", 1e23, True), (b"12345678901234.567", 12345678901234.567, True),
    (b"0.30000000000000004", 0.30000000000000004, True), (b"5e-324", 5e-324, True),
    (b"9007199254740993.0", 9007199254740992.0, True), (b"1.7976931348623157e308", MAX, True),
    (b"18446744073709551616.5", 18446744073709551616.0, True),
    (b"-0", 0.0, False), (b"1e00005", 1e5, False), (b"1000000000000000000", 1e18, False),
    (b"2.4e-324", 0.0, False), (b"1e-400", 0.0, False), (b"0." + b"0" * 63 + b"1", 1e-64, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number", "is_plain"), NUMBERS)
def test_numbers_are_the_nearest_doubles(
    way: str, text: bytes, number: float, is_plain: bool
) -> None:
    for end in (b"}", b" }", b',"c":1}', b"}" + b" " * 30):
        value = b'{"b":1,"a":%b%b' % (text, end)
        if way == "python":
            table, rejects = AB.python([value])
            assert not rejects
        else:
            table, declined = AB.native([value])
            assert declined == ([] if is_plain else [0])
        if way == "python" or is_plain:
            assert table.tobytes() == np.array([[number, 1.0]]).tobytes()


PLAIN = [
    b'{"a":1,"b":2}', b'{"b":2,"a":1}', b' \t\r\n{ "a" : 1 , "b" : 2 } \n', b'{"a":1,"b":2,"c":3}',
    b'{"":0,"a":1,"aa":5,"b":2}', b'{"c":null,"a":1,"d":true,"e":false,"b":2}',
    b'{"a":1,"c":"text","b":2}', b'{"a":1,"c":"","b":2}', b'{"a":1,"c":"\x7f {}[]:,","b":2}',
    b'{"a":1,"c":[],"b":2}', b'{"a":1,"c":{},"b":2}', b'{"a":1,"c":[1,"x",{"a":[null]}],"b":2}',
    b'{"a":1,"c":{"a":3,"a":4, "b" : [ ] },"b":2}', b'{"c":1,"a":1,"c":2,"b":2}',
    b'{"a":1,"c":1234567890123456789012345678901234567890,"b":2}', b'{"a":1,"c":-1.5e-90,"b":2}',
    b'{"a":1,"c":%b%b,"b":2}' % (b"[" * 16, b"]" * 16), b'{"a":1,"c":"%b","b":2}' % (b"x" * 999),
    # A unit, a name, an emoji: as json.dumps() writes them with ensure_ascii and without.
    b'{"a":1,"unit":"\xc2\xb0C","b":2}', b'{"a":1,"unit":"\\u00b0C","b":2}',
    b'{"a":1,"c":"%b","b":2}' % ("é€😀 und weiter" * 9).encode(),
    b'{"a":1,"c":"\\ud83d\\ude00\\uD800\\uDFFF\\udbff\\udc00","b":2}',
    b'{"a":1,"c":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001F\\ud7ff\\ue000\\uffff","b":2}',
    b'{"a":1,"c":"1234567\\"{,","b":2}', b'{"a":1,"c":"C:\\\\","b":2}',
    b'{"a":1,"c":{"\\u0061\xc3\xa9":"\\t"},"b":2}', b'{"a":1,"b":2,"\xc3\xa9":3}',
    b'{"a":1,"c":"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\xf0\x90\x80\x80\xe0\xa0\x80","b":2}',
]  # fmt: skip
# Fit to be an event, but left to Python.
UNUSUAL = [
    b'{"a":1,"a":1,"b":2}', b'{"\\u0061":1,"b":2}', b'{"a":1,"b":2,"\\u0063":3}',
    b'{"a":1,"c":1e999,"b":2}',
    b'{"a":1,"c":"\xff","b":2}', b'{"a":1,"c":"\xed\xa0\x80","b":2}', b'{"a":1,"c":"\xc3","b":2}',
    b'{"a":1,"c":%b%b,"b":2}' % (b"[" * 17, b"]" * 17), b'{"a":1,"c":1e00005,"b":2}',
    b'{"a":1,"c":%b,"b":2}' % (b"1" * 41),
]  # fmt: skip
# No events to anybody.
REJECTS = [
    b"", b" ", b"{", b"{}", b"[1,2]", b"1", b"null", b'{"a":1}', b'{"a":1,"b":2', b'{"a":1,"b":2}}',
    b'{"a":1,"b":2}x', b'{"a":1,"b":2,}', b'{,"a":1,"b":2}', b'{"a":1 "b":2}', b'{"a" 1,"b":2}',
    b'{"a":1,"b":2,"c"}', b'{"a":1,"b":2,"c":}', b'{a:1,"b":2}', b"{'a':1,'b':2}", b'{"a:1,"b":2}',
    b'{"a":null,"b":2}', b'{"a":true,"b":2}', b'{"a":"1","b":2}', b'{"a":[1],"b":2}',
    b'{"a":{},"b":2}', b'{"a":NaN,"b":2}', b'{"a":Infinity,"b":2}', b'{"a":1e999,"b":2}',
    b'{"a":01,"b":2}', b'{"a":1.,"b":2}', b'{"a":.5,"b":2}', b'{"a":+1,"b":2}', b'{"a":-,"b":2}',
    b'{"a":1e,"b":2}', b'{"a":1e+,"b":2}', b'{"a":--1,"b":2}', b'{"a":0x1,"b":2}',
    b'{"a":1_0,"b":2}',
    b'{"a":1,"b":2,"c":[1,]}', b'{"a":1,"b":2,"c":[,1]}', b'{"a":1,"b":2,"c":[1 2]}',
    b'{"a":1,"b":2,"c":{"d"}}', b'{"a":1,"b":2,"c":{"d":1,}}', b'{"a":1,"b":2,"c":[}',
    b'{"a":1,"b":2,"c":[1}', b'{"a":1,"b":2,"c":tru}', b'{"a":1,"b":2,"c":nullx}',
    b'{"a":1,"b":2,"c":01}', b'{"a":1,"b":2,"c":-}', b'{"a":1,"b":2,"c":"\x1f"}',
    b'{"a":1,"b":2,"c":"}', b'{"a":1,"b":2,"c":"\\"}', b'{"a":1,"c":"\\x41","b":2}',
    b'{"a":1,"c":"\\u12g4","b":2}', b'{"a":1,"c":"\\u12","b":2}', b'{"a":1,"c":"\\ud800","b":2}',
    b'{"a":1,"c":"\\udc00","b":2}', b'{"a":1,"c":"\\ud800\\u0041","b":2}',
    b'{"a":1,"c":"\\ud800\\ud800","b":2}', b'{"a":1,"c":"\\ud800x","b":2}',
    b'{"a":1,"c":"\\\x00","b":2}', b'{"a":1,"c":"\\u00 0","b":2}', b'{"a":1,"c":"\\U0041","b":2}',
    b'{"a":1,"b":2}\x00', b'\xef\xbb\xbf{"a":1,"b":2}', b'{"a":1,"b":2,"c":/**/1}',
    b'{"a":1;"b":2}', b'{"A":1,"b":2}', b'{"a":1,"b\x00":2}',
]  # fmt: skip


def test_plain_objects_are_read(way: str) -> None:
    table = AB.python(PLAIN)[0]
    if way == "native":
        table, declined = AB.native(PLAIN)
        assert declined == []
    assert table.tolist() == [[1.0, 2.0]] * len(PLAIN)


def test_unusual_objects_are_left_to_python(way: str) -> None:
    if way == "native":
        assert AB.native(UNUSUAL)[1] == list(range(len(UNUSUAL)))
    else:
        assert AB.python(UNUSUAL)[0].tolist() == [[1.0, 2.0]] * len(UNUSUAL)


def test_what_is_no_event_is_accepted_by_neither(way: str) -> None:
    everything = [*REJECTS, None]
    no = AB.native(everything)[1] if way == "native" else sorted(AB.python(everything)[1])
    assert no == list(range(len(everything)))


@pytest.mark.usefixtures("built")
def test_rows_are_read_around_those_left_out() -> None:
    table, declined = AB.native([PLAIN[0], None, REJECTS[5], b'{"b":4,"a":3}', UNUSUAL[0]])
    assert declined == [1, 2, 4]
    assert table[[0, 3]].tolist() == [[1, 2], [3, 4]]


def test_no_cut_off_object_is_accepted(way: str) -> None:
    whole = b'{"c":["x",{"y":null}],"a":-1.25e+10 , "d":true,"b":2}'
    cut_off = [whole[:size] for size in range(len(whole))]
    no = AB.native(cut_off)[1] if way == "native" else sorted(AB.python(cut_off)[1])
    assert no == list(range(len(whole)))


names = st.text(
    st.characters(codec="ascii", exclude_characters='"\\', min_codepoint=32, max_codepoint=126),
    max_size=30,
)
events = st.dictionaries(
    names.filter(lambda name: "." not in name),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18) + 1, 10**18 - 1),
    min_size=1,
    max_size=12,
)


@pytest.mark.usefixtures("built")
@settings(max_examples=50)
@given(st.lists(events, min_size=1, max_size=4), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_finite_numbers_under_any_name_are_read(
    some: list[dict[str, float]], separators: tuple[str, str]
) -> None:
    first = some[0]
    alike = [{name: event.get(name, first[name]) for name in first} for event in some]
    written = [json.dumps(event, separators=separators).encode() for event in alike]
    assert Numbers(list(first)).check(written) == []


@pytest.mark.usefixtures("built")
@given(st.lists(st.sampled_from([*PLAIN, *UNUSUAL, *REJECTS]), max_size=6))
def test_the_order_of_one_event_s_members_misleads_no_other(values: list[bytes]) -> None:
    declined = AB.check(values)
    assert declined == [row for row, value in enumerate(values) if value not in PLAIN]


@pytest.mark.usefixtures("built")
def test_every_finite_double_of_any_length_is_the_nearest() -> None:
    rng = np.random.default_rng(5)
    doubles = rng.integers(0, 2**64, 20_000, np.uint64, endpoint=False).view(np.float64)
    doubles = doubles[np.isfinite(doubles)].tolist()
    texts = [form % double for double in doubles for form in ("%r", "%.17e", "%.3e", "%.6g")]
    texts += [f"{number:.{places}f}" for number in rng.normal(0, 1e4, 500) for places in range(20)]
    declined = Numbers(("a",)).check([b'{"a":%b}' % text.encode() for text in texts])
    assert len(declined) < len(texts) / 50  # subnormal ones, integers of many digits


@pytest.mark.usefixtures("built")
def test_threads_read_side_by_side() -> None:
    values = [b'{"a":%d,"b":2}' % number for number in range(5000)]
    found = []

    def read() -> None:
        found.append(AB.native(values))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for table, declined in found:
        assert declined == []
        assert table[:, 0].tolist() == list(range(5000))


I32, TABLE = np.zeros(2, np.int32), np.zeros((2, 1))
FLOATS = "table: expected a C-contiguous, aligned, writable array of float64 in 2 dimension(s)"


def read(
    names: Any = (b"a",), table: Any = TABLE, at: Any = I32, lengths: Any = I32
) -> Callable[[], Any]:
    """Read two empty values, with some arguments changed."""
    return lambda: native.read_numbers(b"", at, lengths, names, table)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (read(names=[b"a"]), TypeError, "names: expected a tuple of bytes"),
        (read(names=("a",)), TypeError, "names: expected a tuple of bytes"),
        (read(names=(b"a", b"a"), table=np.zeros((2, 2))), ValueError,
         "names: expected at least one, and each only once"),
        (read(names=(), table=np.zeros((2, 0))), ValueError, "names: expected at least one, and"),
        (read(table=TABLE.astype(np.float32)), TypeError, FLOATS),
        (read(table=np.zeros((2, 2)).T), TypeError, FLOATS),
        (read(table=np.zeros((3, 1))), ValueError, "at, lengths, table: expected as many rows in "),
        (read(table=np.zeros((2, 2))), ValueError, "at, lengths, table: expected as many rows in "),
        (read(lengths=I32[:1]), ValueError, "at, lengths, table: expected as many rows in all, "),
        (read(at=I32 + 1), ValueError, "row 0: expected a part of the data, or length -1"),
        (read(lengths=I32 + 1), ValueError, "row 0: expected a part of the data, or length -1"),
        (read(lengths=np.array([0, -2], np.int32)), ValueError, "row 1: expected a part of the "),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        call()
    assert str(refused.value).startswith(f"read_numbers: {message}")
