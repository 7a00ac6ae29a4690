"""Predictions as bytes: the very ones that PredictionEncoder writes."""

from __future__ import annotations

import sys
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_twins import Predictions, Written

from keyfold.export.events import OutputSpec
from keyfold.worker import native

ONE = Predictions(OutputSpec("regression", ("load",)), "abc", "events")
SOME = Predictions(OutputSpec("regression", ('a "b"', "100%", "ä")), "abc", "events")
LABELS = Predictions(OutputSpec("classification", ("walk", "run", "sit")), "abc", "events")


def write(predictions: Predictions, way: str, *rows: list[float], **more: Any) -> list[bytes]:
    """Write one prediction per row of outputs, one way."""
    n = range(len(rows))
    keys = [b"k%d" % i for i in n]
    y = np.array(rows, np.float32)
    written = Written([40 + i for i in n], keys, [-5 - i for i in n], [1 + i for i in n], y, **more)
    return predictions.native(3, written) if way == "native" else predictions.python(3, written)


def test_regression(way: str) -> None:
    assert write(ONE, way, [0.1], [-2.0]) == [
        b'{"id":"events:3:40:0","about":"events:3:40","key":"k0","time":-5,"output":{"load":0.1},'
        b'"steps":1,"cold":true,"bundle":"abc"}',
        b'{"id":"events:3:41:0","about":"events:3:41","key":"k1","time":-6,"output":{"load":-2.0},'
        b'"steps":2,"cold":false,"bundle":"abc"}',
    ]


def test_regression_of_several_outputs(way: str) -> None:
    [payload] = write(SOME, way, [1, 2, 3])
    assert '"output":{"a \\"b\\"":1.0,"100%":2.0,"ä":3.0},'.encode() in payload


def test_classification(way: str) -> None:
    [payload] = write(LABELS, way, [0.25, 0.5, 0.25])
    assert b'"output":{"label":"run","probabilities":[0.25,0.5,0.25]},' in payload


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([3, 2, 1], "walk"),
        ([1, 2, 3], "sit"),
        ([2, 2, 1], "walk"),
        ([0.0, -0.0, 0.0], "walk"),
        ([-0.0, 0.0, -1], "walk"),
        ([1, np.nan, 5], "run"),
        ([np.nan, np.nan, 5], "walk"),
        ([1, np.inf, np.nan], "sit"),
        ([-np.inf, -np.inf, -np.inf], "walk"),
    ],
)
def test_label_is_the_first_of_the_largest_as_numpy_has_it(
    way: str, row: list[float], label: str
) -> None:
    [payload] = write(LABELS, way, row)
    assert b'"label":"%b"' % label.encode() in payload


def test_gap_is_marked_where_there_is_one(way: str) -> None:
    without, marked = write(ONE, way, [1], [1], gaps=[False, True])
    assert without.endswith(b',"bundle":"abc"}')
    assert marked.endswith(b',"bundle":"abc","gap":true}')


def test_no_rows_are_no_predictions(way: str) -> None:
    none = Written([], [], [], [], np.empty((0, 1), np.float32))
    assert (ONE.native if way == "native" else ONE.python)(3, none) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, b"0.0"), (-0.0, b"-0.0"), (1e5, b"100000.0"), (123456.5, b"123456.5"),
        (9.999999e12, b"9999999000000.0"), (1e13, b"1e+13"), (1.5e13, b"1.5e+13"),
        (1e-6, b"0.000001"), (1.25e-6, b"0.00000125"), (9.5e-7, b"9.5e-7"), (1e-45, b"1e-45"),
        (3.4028235e38, b"3.4028235e+38"), (16777216, b"16777216.0"), (np.nan, b"null"),
        (np.inf, b"null"), (-np.inf, b"null"), (0.3, b"0.3"), (1.17549435e-38, b"1.1754944e-38"),
    ],
)  # fmt: skip
def test_outputs_have_the_shortest_text_of_their_float32(
    way: str, number: float, text: bytes
) -> None:
    [payload] = write(ONE, way, [number])
    assert b'"output":{"load":%b},' % text in payload


def written_by_both(y: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[bytes, bytes]:
    """Write floats as orjson does, and natively: with nothing around them."""
    zero, pieces = np.zeros(1, np.int64), (b"[", *[b","] * (len(y) - 1), b"]")
    [payload], _ = native.write_predictions(
        b"", (), pieces, b"}", zero, [b""], zero, zero, y.reshape(1, -1), None
    )
    output = payload[payload.index(b"[") : payload.index(b"]") + 1]
    return orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY), output


@pytest.mark.usefixtures("built")
def test_floats_of_every_exponent_are_written_as_orjson_does() -> None:
    rng = np.random.default_rng(1)
    for high in range(512):  # sign and exponent
        edges = np.r_[0:9, 2**23 - 9 : 2**23, rng.integers(0, 2**23, 300)]
        expected, got = written_by_both((high << 23 | edges).astype(np.uint32).view(np.float32))
        assert got == expected


@pytest.mark.usefixtures("built")
def test_floats_around_powers_of_ten_are_written_as_orjson_does() -> None:
    for power in range(-44, 39):
        around = int(np.float32(10.0**power).view(np.uint32)) + np.arange(-50, 51)
        expected, got = written_by_both(around.astype(np.uint32).view(np.float32))
        assert got == expected


@pytest.mark.usefixtures("built")
@given(
    st.sampled_from([ONE, SOME, LABELS]),
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1),
            st.integers(-(2**63), 2**63 - 1),
            st.one_of(st.from_regex(rb"[ -~]{0,300}", fullmatch=True), st.binary(max_size=300)),
            st.booleans(),
            st.lists(st.floats(width=32), min_size=3, max_size=3),
        ),
        max_size=5,
    ),
)  # fmt: skip
def test_any_prediction_is_written_as_by_python(
    predictions: Predictions, rows: list[tuple[int, int, int, bytes, bool, list[float]]]
) -> None:
    width = 1 if predictions is ONE else 3
    y = np.array([row[5][:width] for row in rows], np.float32).reshape(len(rows), width)
    keys = [row[3] for row in rows]
    offsets, times_ms = [row[0] for row in rows], [row[1] for row in rows]
    written = Written(
        offsets, keys, times_ms, [row[2] for row in rows], y, [row[4] for row in rows]
    )
    assert predictions.native(3, written) == predictions.python(3, written)


ODD = (b'"', b"\\", b"\x1f", b"\n", b"\x7f", "é".encode(), b"\xff", b"plain\0")


def test_keys_that_json_does_not_show_as_they_stand_are_written_among_others(way: str) -> None:
    keys = [b"first", *ODD, b"last"]
    n, zero = len(keys), [0] * len(keys)
    gaps = [number % 3 == 0 for number in range(n)]
    written = Written(list(range(n)), keys, zero, zero, np.arange(n, dtype="f4")[:, None], gaps)
    payloads = (ONE.native if way == "native" else ONE.python)(3, written)
    for number, (key, payload) in enumerate(zip(keys, payloads, strict=True)):
        members = orjson.loads(payload)
        shown = members["key"].encode() if "key" in members else b64decode(members["key_b64"])
        assert (shown, members["output"]["load"]) == (key, number)
        assert ("gap" in members) == gaps[number]


@pytest.mark.usefixtures("built")
def test_odd_keys_are_left_to_python() -> None:
    keys = [b"first", *ODD, b"last"]
    zero = np.zeros(len(keys), np.int64)
    y = np.zeros((len(keys), 1), np.float32)
    payloads, declined = native.write_predictions(
        b"t:0", (), (b"{", b"}"), b"}", zero, keys, zero, zero, y, None
    )
    assert declined == [*range(1, len(keys) - 1)]
    assert [payload is None for payload in payloads] == [key in ODD for key in keys]


@pytest.mark.usefixtures("built")
def test_keys_and_predictions_are_counted_right() -> None:
    keys = [b"key %d" % number for number in range(3)]
    before = [sys.getrefcount(key) for key in keys]
    [first, *_] = ONE.native(3, Written([1, 2, 3], keys, [0] * 3, [0] * 3, np.zeros((3, 1), "f4")))
    assert [sys.getrefcount(key) for key in keys] == before
    assert sys.getrefcount(first) == 2  # ours, and the argument's


ONES, Y = np.ones(1, np.int64), np.zeros((1, 1), np.float32)


def calling(**changed: Any) -> Callable[[], Any]:
    """Write one prediction, with some arguments changed."""
    arguments: dict[str, Any] = {
        "place": b"t:0", "heads": (), "pieces": (b"{", b"}"), "tail": b"}", "offsets": ONES,
        "keys": [b"k"], "times_ms": ONES, "steps": ONES, "y": Y, "gaps": None,
    }  # fmt: skip
    return lambda: native.write_predictions(**(arguments | changed))


BYTES = "place, heads, pieces, tail: expected bytes, two tuples of bytes, bytes"
TUPLE = "place, heads, pieces, tail: expected a tuple of bytes"
SIZES = "place, heads, pieces, tail: expected a tail, a piece more than outputs, a head for each"
ROWS = "offsets, keys, times, steps, y, gaps: expected as many rows in all, and outputs one fewer"


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (calling(place="t:0"), TypeError, BYTES),
        (calling(tail=None), TypeError, BYTES),
        (calling(heads=[]), TypeError, TUPLE),
        (calling(pieces=(1, 2)), TypeError, TUPLE),
        (calling(pieces=(b"{",)), ValueError, SIZES),
        (calling(tail=b""), ValueError, SIZES),
        (calling(heads=(b"", b"")), ValueError, SIZES),
        (calling(keys=(key for key in [b"k"])), TypeError, "keys: expected a list or a tuple"),
        (calling(keys=["k"]), TypeError, "keys: expected bytes only"),
        (calling(keys=[]), ValueError, ROWS),
        (calling(offsets=np.ones(2, np.int64)), ValueError, ROWS),
        (calling(times_ms=np.ones(0, np.int64)), ValueError, ROWS),
        (calling(steps=np.ones(2, np.int64)), ValueError, ROWS),
        (calling(y=np.zeros((1, 2), np.float32)), ValueError, ROWS),
        (calling(y=np.zeros((2, 1), np.float32)), ValueError, ROWS),
        (calling(gaps=np.zeros(2, np.bool_)), ValueError, ROWS),
        (calling(y=np.zeros((1, 1))), TypeError, "y: expected a C-contiguous, aligned array of "),
        (calling(y=np.zeros((2, 2), np.float32)[:, 1:]), TypeError, "y: expected a C-contiguous"),
        (calling(gaps=np.zeros(1, np.uint8)), TypeError, "gaps: expected a C-contiguous, aligned "),
        (calling(steps=np.ones(1, np.int32)), TypeError, "steps: expected a C-contiguous, aligned"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        call()
    assert str(refused.value).startswith(f"write_predictions: {message}")
