from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def parse_records(
    data: bytes | memoryview,
    count: int,
    base_offset: int,
    base_time_ms: int,
    append_time_ms: int,
    from_offset: int,
    offsets: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    spans: NDArray[np.int32],
    /,
) -> int: ...
def cut(
    data: bytes | memoryview, at: NDArray[np.int32], lengths: NDArray[np.int32], /
) -> list[bytes | None]: ...
def read_numbers(
    data: bytes | memoryview,
    at: NDArray[np.int32],
    lengths: NDArray[np.int32],
    names: tuple[bytes, ...],
    table: NDArray[np.float64],
    /,
) -> list[int]: ...
def write_predictions(
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
    /,
) -> tuple[list[bytes], list[int]]: ...
def pack_records(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], time_ms: int, limit: int, /
) -> list[tuple[bytearray, int]]: ...
def find(
    data: bytes | memoryview,
    at: NDArray[np.int32],
    lengths: NDArray[np.int32],
    index: dict[bytes, int],
    slots: NDArray[np.intp],
    /,
) -> list[int]: ...
def crc32c(data: bytes | bytearray | memoryview, /) -> int: ...
def write_states(
    prefix: bytes, rows: bytes, size: int, sum_at: int, keys: Sequence[bytes], /
) -> bytes: ...
