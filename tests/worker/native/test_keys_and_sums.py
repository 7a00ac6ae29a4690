"""Keys found, bytes summed up, states sealed: as a dict, aiokafka and zlib have it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st
from native_twins import read_back

from keyfold.worker import native

I32, SLOTS = np.zeros(2, np.int32), np.zeros(2, np.intp)


def found(way: str, index: dict[bytes, int], keys: list[bytes | None]) -> tuple[list[int], ...]:
    """Look keys up one way; return their slots and the rows that have none."""
    slots = [-1 if key is None else index.get(key, -1) for key in keys]
    unknown = [row for row, slot in enumerate(slots) if slot < 0]
    if way == "python":
        return slots, unknown
    lengths = np.array([-1 if key is None else len(key) for key in keys], np.int32)
    at = (lengths.clip(0).cumsum() - lengths.clip(0)).astype(np.int32)
    out = np.full(len(keys), -7, np.intp)
    rows = native.find(b"".join(key or b"" for key in keys), at, lengths, index, out)
    return out.tolist(), rows


def test_keys_are_found_and_others_are_named(way: str) -> None:
    index = {b"a": 3, b"": 0, b"ab": 2**40}
    slots, unknown = found(way, index, [b"a", b"b", b"", None, b"ab", b"a"])
    assert slots == [3, -1, 0, -1, 2**40, 3]
    assert unknown == [1, 3]


@given(st.dictionaries(st.binary(max_size=3), st.integers(0, 9)), st.lists(st.binary(max_size=3)))
def test_any_keys_are_found_as_in_a_dict(index: dict[bytes, int], keys: list[bytes]) -> None:
    if native.available():
        assert found("native", index, [*keys]) == found("python", index, [*keys])


@pytest.mark.usefixtures("built")
def test_looking_up_keeps_nothing() -> None:
    key, slot = b"a-key-of-its-own", 10**12
    index = {key: slot}
    before = sys.getrefcount(key), sys.getrefcount(slot), sys.getrefcount(index)
    for _ in range(100):
        found("native", index, [key, b"other"])
    assert (sys.getrefcount(key), sys.getrefcount(slot), sys.getrefcount(index)) == before


@given(st.binary(max_size=300))
def test_crc32c_is_aiokafka_s(data: bytes) -> None:
    if native.available():
        assert native.crc32c(data) == calc_crc32c(data)


@pytest.mark.usefixtures("built")
def test_crc32c_of_the_standard_s_example() -> None:
    assert native.crc32c(bytearray(b"123456789")) == 0xE3069283
    assert native.crc32c(memoryview(b"")) == 0
    assert native.crc32c(bytes(300_000)) == calc_crc32c(bytes(300_000))


def sealed(way: str, rows: bytes, size: int, sum_at: int, keys: list[bytes]) -> list[bytes]:
    """Give states their checksums one way; the native one names them too."""
    if way == "native":
        written = read_back(native.write_states(b":", rows, size, sum_at, keys), 2 * len(keys))
        assert written[::2] == [b":" + key for key in keys]
        return written[1::2]
    out = []
    for key, row in zip(
        keys, (rows[at : at + size] for at in range(0, len(rows), size)), strict=True
    ):
        body = row[sum_at + 4 :]
        out.append(row[:sum_at] + crc32(body, crc32(key)).to_bytes(4, "little") + body)
    return out


def test_state_carries_the_sum_of_its_key_and_body(way: str) -> None:
    rows = b"\2....first!\2....second"
    expected = [
        b"\2" + crc32(b"k1first!").to_bytes(4, "little") + b"first!",
        b"\2" + crc32(b"second").to_bytes(4, "little") + b"second",
    ]
    assert sealed(way, rows, 11, 1, [b"k1", b""]) == expected
    assert sealed(way, b"", 11, 1, []) == []


@pytest.mark.usefixtures("built")
def test_sums_of_every_length_are_zlib_s() -> None:
    rng = np.random.default_rng(3)
    for size in [*range(5, 200), 4096, 4111]:
        rows, key = rng.bytes(3 * size), rng.bytes(size)
        keys = [key, key[:16], b""]
        assert sealed("native", rows, size, 1, keys) == sealed("python", rows, size, 1, keys)


class Cycle:
    """Empties a list when the garbage collector finds it."""

    def __init__(self, goes: list[bytes]) -> None:
        self.me, self.goes = self, goes

    def __del__(self) -> None:
        self.goes.clear()


@pytest.mark.usefixtures("built")
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="collections wait until no function in C runs"
)
def test_keys_that_the_garbage_collector_takes_away_are_not_read() -> None:
    n = 2000
    keys, columns, y = [b"key"] * n, np.zeros(n, np.int64), np.zeros((n, 1), np.float32)
    form = (b"t:0", (), (b"{", b"}"), b"}")
    arguments = (*form, columns, keys, columns, columns, y, None)
    with pytest.raises(ValueError, match=r"^write_predictions: .*expected"):
        _call_while_collecting(native.write_predictions, arguments, keys)


def _call_while_collecting(
    call: Callable[..., object], arguments: tuple[Any, ...], goes: list[bytes]
) -> None:
    """Call a function whose first new object begins a collection."""
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    gc.set_threshold(1)
    Cycle(goes)
    in_use: list[list[int]] = [[] for _ in range(200)]  # none is left to be used again
    try:
        gc.enable()
        call(*arguments)
    finally:
        gc.set_threshold(*before)
        in_use.clear()


SIZES = "write_states: rows, size, sum_at: expected a row of `size` bytes for each key"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n: n.find(b"", I32, I32, [], SLOTS), TypeError, "find: index: expected a dict"),
        (lambda n: n.find(b"", I32, I32, {}, I32), TypeError, "find: slots: expected a C-contig"),
        (lambda n: n.find(b"", I32, I32, {}, SLOTS[:1]), ValueError, "find: at, lengths, slots: "),
        (lambda n: n.find(b"", I32 + 1, I32, {}, SLOTS), ValueError, "find: row 0: expected a "),
        (lambda n: n.find(b"", I32, I32, {b"": "x"}, SLOTS), TypeError, ""),
        (lambda n: n.find(b"", I32, I32, {b"": 2**64}, SLOTS), OverflowError, ""),
        (lambda n: n.crc32c("text"), TypeError, "crc32c: data: expected contiguous bytes"),
        (lambda n: n.write_states(b":", "", 8, 0, []), TypeError, "write_states: rows: expected "),
        (lambda n: n.write_states(b"", bytes(8), 8, 0, ["k"]), TypeError, "write_states: keys: "),
        (lambda n: n.write_states(b"", bytes(8), 8, 0, {b"k"}), TypeError, "write_states: keys: "),
        (lambda n: n.write_states(b"", bytes(8), 8, 0, []), ValueError, SIZES),
        (lambda n: n.write_states(b":", bytes(9), 8, 0, [b"k"]), ValueError, SIZES),
        (lambda n: n.write_states(b"", bytes(8), 8, 5, [b"k"]), ValueError, SIZES),
        (lambda n: n.write_states(b"", bytes(8), 8, -1, [b"k"]), ValueError, SIZES),
        (lambda n: n.write_states(b"", bytes(8), 0, 0, [b"k"]), ValueError, SIZES),
        (lambda n: n.write_states(b":", bytes(3), 3, 0, [b"k"]), ValueError, SIZES),
        (lambda n: n.write_states(":", bytes(8), 8, 0, [b"k"]), TypeError, "write_states: prefix"),
        (lambda n: n.write_states(b"", bytes(8), -(2**63), 0, [b"k"]), ValueError, SIZES),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(
    call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        call(native)
    assert str(refused.value).startswith(message)
