"""The optional native module: record sets, JSON numbers and predictions as bytes, in C++.

Owns what it can be asked for. Each function is pure over its buffers and has a twin in Python whose
results it shares to the bit (tests/worker/native holds them side by side), and bytes from anywhere
are refused or declined, never trusted. Nothing is kept between calls. It knows no topics, bundles
or partitions. Called by worker/fetched.py, packed.py, encoder.py and app.py where available() says
so; a program without it does the same in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import orjson
from numpy.typing import NDArray

NOT_BUILT = "it was not built"

_missing = ""  # why there is no module
try:
    import keyfold.worker.native._codec as _codec
except ModuleNotFoundError:
    _codec, _missing = None, NOT_BUILT  # type: ignore[assignment]
except ImportError as _error:
    _codec, _missing = None, f"it does not load: {_error}"  # type: ignore[assignment]


@cache
def available() -> bool:
    """Whether the module was built, and writes numbers as the installed orjson does."""
    return _codec is not None and _writes_like_orjson()


def missing() -> str:
    """Return why the module is not available, "" where it is."""
    if available():
        return ""
    return _missing or "it writes numbers otherwise than the installed orjson"


def broken() -> bool:
    """Whether the module is there and cannot be used: somebody meant it to be."""
    return not available() and _missing != NOT_BUILT


def parse_records(  # noqa: PLR0913 - buffers stay apart: nothing is built per call
    data: bytes | memoryview,
    count: int,
    base_offset: int,
    base_time_ms: int,
    append_time_ms: int,
    from_offset: int,
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    spans: NDArray[np.int32],
) -> int:
    """Read the uncompressed records section of one Kafka v2 batch; return how many rows were set.

    offsets (N,), times_ms (N,) and spans (N,4) must have room for `count` rows; records below
    `from_offset` are left out. A span is: key at, key length, value at, value length; a length of
    -1 is a null. Each record has the time `append_time_ms` unless that is below 0. Raises
    ValueError "record batch at offset N: ..." for what is no batch.
    """
    return _codec.parse_records(
        data,
        count,
        base_offset,
        base_time_ms,
        append_time_ms,
        from_offset,
        offsets,
        times_ms,
        spans,
    )


def cut(
    data: bytes | memoryview, at: NDArray[np.int32], lengths: NDArray[np.int32]
) -> list[bytes | None]:
    """Return the N parts of data at `at` (N,) with `lengths` (N,); -1: None."""
    return _codec.cut(data, at, lengths)


def read_numbers(
    data: bytes | memoryview,
    at: NDArray[np.int32],
    lengths: NDArray[np.int32],
    names: tuple[bytes, ...],
    table: NDArray[np.float64],
) -> list[int]:
    """Read the members `names` of N JSON objects into table (N,D); return the rows declined.

    Declined is all that is not plainly an object with each member once as a finite number, and
    whatever is unusual; Python reads these. Their rows of the table mean nothing.
    """
    return _codec.read_numbers(data, at, lengths, names, table)


def write_predictions(  # noqa: PLR0913 - columns stay apart: nothing is built per call
    place: bytes,
    heads: tuple[bytes, ...],
    pieces: tuple[bytes, ...],
    tail: bytes,
    offsets: NDArray[np.int64],
    keys: Sequence[bytes],
    times_ms: NDArray[np.int64],
    steps: NDArray[np.int64],
    y: NDArray[np.float32],
    gaps: NDArray[np.bool_] | None,
) -> tuple[list[bytes], list[int]]:
    """Write one prediction per row of y (N,O) as PredictionEncoder does; return the rows declined.

    Declined is a key that JSON does not show as it stands: anything but printable ASCII without
    quotation marks and backslashes. Python writes these; None stands in their places.

    `place` is topic:partition. The output object is: the head of the largest output, where there
    are heads (O,); then the first of `pieces` (O+1,), and each output with the next piece. `tail`
    holds the members behind "cold" and the brace.
    """
    return _codec.write_predictions(
        place, heads, pieces, tail, offsets, keys, times_ms, steps, y, gaps
    )


def pack_records(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], time_ms: int, limit: int
) -> list[tuple[bytearray, int]]:
    """Write messages without headers into Kafka v2 batches; return each with its count.

    Each batch takes fewer bytes than `limit`, unless it holds one message only. The producer's
    id, epoch and sequence number are -1, and the checksum 0: the caller sets them.
    """
    return _codec.pack_records(keys, values, time_ms, limit)


def find(
    data: bytes | memoryview,
    at: NDArray[np.int32],
    lengths: NDArray[np.int32],
    index: dict[bytes, int],
    slots: NDArray[np.intp],
) -> list[int]:
    """Set slots (N,) to what `index` has for the N keys; return the rows that it has nothing for.

    Those, and nulls (length -1), become -1.
    """
    return _codec.find(data, at, lengths, index, slots)


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of data, which Kafka puts over a record batch."""
    return _codec.crc32c(data)


def write_states(
    prefix: bytes, rows: bytes, size: int, sum_at: int, keys: Sequence[bytes]
) -> bytes:
    """Write two arguments of a Redis command for each key: its name and its row of `size` bytes.

    The name is prefix and key. A row has its checksum at `sum_at`: the CRC-32 of the key followed
    by all that stands behind the checksum.
    """
    return _codec.write_states(prefix, rows, size, sum_at, keys)


def _writes_like_orjson() -> bool:
    """Try a number of each magnitude: orjson's layout has changed between versions."""
    y = np.float32(1.2345678) * np.logspace(-44, 38, 83).astype(np.float32)
    y = np.concatenate([y, -y, [0.0, -0.0, np.nan, np.inf, 1.0, 1e5, 1e-5]]).astype(np.float32)
    expected = orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY)
    zero = np.zeros(1, np.int64)
    pieces = (b"[", *[b","] * (len(y) - 1), b"]")
    [written], _ = _codec.write_predictions(
        b"", (), pieces, b"}", zero, [b""], zero, zero, y.reshape(1, -1), None
    )
    return expected in written
