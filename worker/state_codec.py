"""Key states <-> the bytes kept in Redis: many at once, held by a golden-bytes test.

Owns the layout of one stored state, little-endian, without padding:

    version u8 | checksum u32 | flags u8 | steps u64 | last offset i64 | last event time i64
    | stream time at the last event i64 | tensors

Flag 1: the key's history may miss events that retention took (a gap).
The checksum is the CRC-32 of the key followed by everything after the checksum: a value returned
for another key (a mixed-up reply) is found out. The tensors are all that a key's state holds
(Manifest.kept): the graph's, the front's and the back's; behind them those of worker/emission.py
where a rule says what is emitted. Knows numpy and their specs only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Manifest, StateSpec, Tensors

STATE_VERSION = 2
FLAG_GAP = 1
TOUCHED_AT = 30  # first byte of the stream time at the last event; worker/store.py reads it too
_SUM_AT = 1  # first byte of the checksum
_BODY = 5  # first byte behind it

# Cuts rows of so many bytes apart, one per key, each with its checksum at so many bytes.
Seal = Callable[[bytes, int, int, Sequence[bytes]], list[bytes]]


class StateCorrupt(Exception):
    """A stored state is not what was written for this key."""


@dataclass(frozen=True, slots=True)
class States:
    """The states of N keys."""

    steps: NDArray[np.uint64]  # (N,) steps taken since cold
    offsets: NDArray[np.int64]  # (N,) offset of the last event
    times_ms: NDArray[np.int64]  # (N,) event time of the last event
    touched_ms: NDArray[np.int64]  # (N,) the partition's stream time at the last event
    gaps: NDArray[np.bool_]  # (N,) whether the history may miss lost events
    tensors: Tensors  # input name -> (N, *dims)


class StateCodec:
    """Packs and unpacks states of one bundle."""

    def __init__(
        self, manifest: Manifest, more: Sequence[StateSpec] = (), seal: Seal | None = None
    ) -> None:
        """Lay a state out; `more`: tensors besides the bundle's (worker/emission.py).

        `seal` does what _sealed() does, faster.
        """
        self._seal = seal or _sealed
        self._specs = (*manifest.kept, *more)
        self._layout = np.dtype(
            [
                ("version", "u1"),
                ("checksum", "<u4"),
                ("flags", "u1"),
                ("steps", "<u8"),
                ("offset", "<i8"),
                ("time", "<i8"),
                ("touched", "<i8"),
                *(
                    (spec.input, np.dtype(spec.dtype).newbyteorder("<"), spec.dims)
                    for spec in self._specs
                ),
            ]
        )
        self.bytes_per_state = self._layout.itemsize

    def pack(self, keys: Sequence[bytes], states: States) -> list[bytes]:
        """Return one stored value per key."""
        rows = np.empty(len(keys), self._layout)
        rows["version"] = STATE_VERSION
        rows["flags"] = np.where(states.gaps, FLAG_GAP, 0)
        rows["steps"], rows["offset"] = states.steps, states.offsets
        rows["time"], rows["touched"] = states.times_ms, states.touched_ms
        for spec in self._specs:
            rows[spec.input] = states.tensors[spec.input]
        return self._seal(rows.tobytes(), self._layout.itemsize, _SUM_AT, keys)

    def unpack(self, keys: Sequence[bytes], values: Sequence[bytes], watermark: int) -> States:
        """Read stored values back.

        Raises StateCorrupt when a value has another size, version or checksum, or has seen an event
        at or above the partition's watermark (a save that was cut short).
        """
        size = self._layout.itemsize
        for key, value in zip(keys, values, strict=True):
            if len(value) != size:
                raise StateCorrupt(f"expected {size} bytes, got {len(value)}")
            checksum = crc32(memoryview(value)[_BODY:], crc32(key))
            if value[0] != STATE_VERSION or checksum != int.from_bytes(value[1:_BODY], "little"):
                raise StateCorrupt(
                    f"expected version {STATE_VERSION} and checksum {checksum}, got version "
                    f"{value[0]} and checksum {int.from_bytes(value[1:_BODY], 'little')}"
                )
        rows: NDArray[Any] = np.frombuffer(b"".join(values), self._layout)
        if len(rows) and rows["offset"].max() >= watermark:
            raise StateCorrupt(
                f"expected events below watermark {watermark}, got offset {rows['offset'].max()}"
            )
        return States(
            rows["steps"].astype(np.uint64),
            rows["offset"].astype(np.int64),
            rows["time"].astype(np.int64),
            rows["touched"].astype(np.int64),
            (rows["flags"] & FLAG_GAP).astype(np.bool_),
            {spec.input: rows[spec.input].astype(spec.dtype) for spec in self._specs},
        )


def _sealed(rows: bytes, size: int, sum_at: int, keys: Sequence[bytes]) -> list[bytes]:
    """Cut rows of `size` bytes apart, one per key, each with its checksum at `sum_at`."""
    all_rows = memoryview(rows)
    sealed = []
    for key, start in zip(keys, range(0, len(rows), size), strict=True):
        head, body = all_rows[start : start + sum_at], all_rows[start + sum_at + 4 : start + size]
        checksum = crc32(body, crc32(key)).to_bytes(4, "little")
        sealed.append(b"".join((head, checksum, body)))
    return sealed
