"""The stored form of a key's state, held by golden bytes: what Redis has must stay readable.

The literal below was written by hand from the layout in the module's docstring (struct, crc32), not
by the codec. Needs nothing but numpy.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_twins import read_back
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Manifest, StateSpec, kept_states
from keyfold.export.events import Anomaly, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.worker import native
from keyfold.worker.redis.packing import Written
from keyfold.worker.state_codec import (
    TOUCHED_AT,
    StateCodec,
    StateCorrupt,
    States,
    WritingStateCodec,
)

KEY = b"engine 7"
GOLDEN = (
    "02" "b718de35" "01" "0300000000000000" "2900000000000000" "7b8ce5cf8b010000"
    "288be5cf8b010000" "0000803f000000c00000003f" "f9ffffffffffffff"
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    tiny = make_tiny_bundle(tmp_path_factory.mktemp("bundle")).manifest
    states = (StateSpec("h", "h_out", (3,)), StateSpec("n", "n_out", (1, 1), "int64"))
    return replace(tiny, states=states)


@pytest.fixture(scope="module")
def codec(manifest: Manifest) -> StateCodec:
    return StateCodec(manifest)


def one() -> States:
    return States(
        np.array([3], np.uint64),
        np.array([41], np.int64),
        np.array([1_700_000_009_339], np.int64),
        np.array([1_700_000_009_000], np.int64),
        np.array([True]),
        {"h": np.array([[1.0, -2.0, 0.5]], np.float32), "n": np.array([[[-7]]], np.int64)},
    )


def test_stored_state_is_held_byte_for_byte(codec: StateCodec) -> None:
    assert codec.pack([KEY], one()) == [bytes.fromhex(GOLDEN)]
    assert codec.bytes_per_state == len(GOLDEN) // 2


@pytest.mark.skipif(not native.available(), reason="the native module is not there: no compiler")
def test_the_native_module_stores_the_same_bytes(manifest: Manifest, codec: StateCodec) -> None:
    states, keys = one(), [KEY]
    written = WritingStateCodec(manifest, prefix=b":").stored(keys, states)
    assert isinstance(written, Written)
    assert read_back(written.data, written.count) == [b":" + KEY, *codec.pack(keys, states)]
    assert codec.stored(keys, states) == codec.pack(keys, states)


def test_golden_bytes_are_what_the_layout_says() -> None:
    times = 1_700_000_009_339, 1_700_000_009_000
    body = struct.pack("<BQqqq3fq", 1, 3, 41, *times, 1.0, -2.0, 0.5, -7)
    value = struct.pack("<BI", 2, crc32(KEY + body)) + body
    assert value == bytes.fromhex(GOLDEN)


def test_golden_bytes_read_back(codec: StateCodec) -> None:
    states = codec.unpack([KEY], [bytes.fromhex(GOLDEN)], 42)
    wanted = one()
    numbers = np.concatenate(
        [states.steps, states.offsets, states.times_ms, states.touched_ms, states.gaps]
    )
    assert numbers.tolist() == [3, 41, 1_700_000_009_339, 1_700_000_009_000, 1]
    for name, tensor in wanted.tensors.items():
        np.testing.assert_array_equal(states.tensors[name], tensor)
        assert states.tensors[name].dtype == tensor.dtype
        states.tensors[name][:] = 0  # writable, a copy


def test_no_states_are_no_values(codec: StateCodec) -> None:
    empty = codec.unpack([], [], 0)
    assert len(empty.steps) == 0
    assert codec.pack([], empty) == []


@settings(max_examples=40)
@given(st.data())
def test_any_states_read_back_as_they_were(codec: StateCodec, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.binary(max_size=6), unique=True, max_size=5))
    count = len(keys)
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    limits = np.iinfo(np.int64)
    states = States(
        random.integers(0, 2**64 - 1, count, np.uint64, endpoint=True),
        random.integers(-1, 10**12, count),
        random.integers(limits.min, limits.max, count),
        random.integers(limits.min, limits.max, count),
        random.random(count) < 0.5,
        {
            "h": random.normal(0, 1e20, (count, 3)).astype(np.float32),
            "n": random.integers(limits.min, limits.max, (count, 1, 1)),
        },
    )
    back = codec.unpack(keys, codec.pack(keys, states), 10**12)
    np.testing.assert_array_equal(back.steps, states.steps)
    np.testing.assert_array_equal(back.offsets, states.offsets)
    np.testing.assert_array_equal(back.times_ms, states.times_ms)
    np.testing.assert_array_equal(back.touched_ms, states.touched_ms)
    np.testing.assert_array_equal(back.gaps, states.gaps)
    for name in ("h", "n"):
        np.testing.assert_array_equal(back.tensors[name], states.tensors[name])


@pytest.mark.parametrize("bit", range(0, len(GOLDEN) * 4, 5))
def test_any_flipped_bit_is_found_out(codec: StateCodec, bit: int) -> None:
    damaged = bytearray(bytes.fromhex(GOLDEN))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StateCorrupt, match="expected version 2 and checksum"):
        codec.unpack([KEY], [bytes(damaged)], 42)


def test_state_of_another_key_is_found_out(codec: StateCodec) -> None:
    with pytest.raises(StateCorrupt, match="checksum"):
        codec.unpack([b"engine 8"], [bytes.fromhex(GOLDEN)], 42)


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_state_of_another_size_is_found_out(codec: StateCodec, cut: int) -> None:
    with pytest.raises(StateCorrupt, match=f"expected {len(GOLDEN) // 2} bytes, got {cut}"):
        codec.unpack([KEY], [bytes.fromhex(GOLDEN)[:cut]], 42)


def test_state_ahead_of_the_watermark_is_found_out(codec: StateCodec) -> None:
    with pytest.raises(StateCorrupt, match="expected events below watermark 41, got offset 41"):
        codec.unpack([KEY], [bytes.fromhex(GOLDEN)], 41)


def test_message_of_a_damaged_state_shows_no_content(codec: StateCodec) -> None:
    with pytest.raises(StateCorrupt) as caught:
        codec.unpack([KEY], [b"hunter2"], 42)
    assert "hunter2" not in str(caught.value)
    assert "engine" not in str(caught.value)


def test_layout_of_a_real_bundle_has_no_padding(tmp_path: Path) -> None:
    tiny = make_tiny_bundle(tmp_path, hidden=3)
    header = 1 + 4 + 1 + 8 + 8 + 8 + 8
    assert StateCodec(tiny.manifest).bytes_per_state == header + tiny.manifest.state_bytes


def test_stream_time_lies_where_the_save_s_scan_reads_it(codec: StateCodec) -> None:
    (value,) = codec.pack([KEY], one())
    assert struct.unpack_from("<q", value, TOUCHED_AT) == (1_700_000_009_000,)


def test_value_of_the_former_layout_is_found_out_and_never_misread(codec: StateCodec) -> None:
    body = struct.pack("<Qqq3fq", 3, 41, 1_700_000_009_339, 1.0, -2.0, 0.5, -7)
    former = struct.pack("<BI", 1, crc32(KEY + body)) + body
    with pytest.raises(StateCorrupt, match=f"expected {len(GOLDEN) // 2} bytes, got"):
        codec.unpack([KEY], [former], 42)
    same_size = b"\x01" + bytes.fromhex(GOLDEN)[1:]
    with pytest.raises(StateCorrupt, match="expected version 2 and checksum"):
        codec.unpack([KEY], [same_size], 42)


def test_what_a_key_keeps_around_the_graph_stands_behind_the_graph_s_tensors(
    tmp_path: Path,
) -> None:
    features = FeatureSpec((Field("a", missing="last"), Field("b", standardise=True)), True)
    outputs = OutputSpec.of_forecast(Forecast(("a", "b")), Anomaly((1.0, 1.0), 1.0, 0.1))
    tiny = make_tiny_bundle(tmp_path, features=features, outputs=outputs, hidden=1).manifest
    codec = StateCodec(tiny)
    tensors = kept_states(tiny, 2)
    tensors["h"][:], tensors["c"][:] = 1, 2
    tensors["front.last"][1], tensors["front.time_ms"][1] = 3, 4
    tensors["front.moments"][1] = [[5], [6], [7]]
    tensors["back.forecast"][1] = [8, np.nan]
    steps, two, three, four = (np.full(2, number) for number in (1, 2, 3, 4))
    states = States(steps.astype(np.uint64), two, three, four, np.full(2, False), tensors)
    values = codec.pack([b"cold", KEY], states)
    nan = b"\0\0\xc0\x7f"
    head = struct.pack("<BQqqq2f", 0, 1, 2, 3, 4, 1, 2)
    cold = head + nan + struct.pack("<q3d", -(2**63), 0, 0, 0) + 2 * nan
    warm = head + struct.pack("<fq3df", 3, 4, 5, 6, 7, 8) + nan
    for key, value, body in ((b"cold", values[0], cold), (KEY, values[1], warm)):
        assert value == struct.pack("<BI", 2, crc32(key + body)) + body
    again = codec.unpack([b"cold", KEY], values, 42).tensors
    assert list(again) == [
        "h",
        "c",
        "front.last",
        "front.time_ms",
        "front.moments",
        "back.forecast",
    ]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
