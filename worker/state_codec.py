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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Manifest, StateSpec, Tensors
from keyfold.worker import native
from keyfold.worker.redis.packing import Written

STATE_VERSION = 2
FLAG_GAP = 1
TOUCHED_AT = 30  # first byte of the stream time at the last event; worker/store.py reads it too
_SUM_AT = 1  # first byte of the checksum
_BODY = 5  # first byte behind it

Stored = Sequence[bytes] | Written  # values; or names and values, as they are sent


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

    def of(self, rows: NDArray[np.intp]) -> States:
        """Return the states of some of the keys."""
        return States(
            self.steps[rows], self.offsets[rows], self.times_ms[rows], self.touched_ms[rows],
            self.gaps[rows], {name: values[rows] for name, values in self.tensors.items()},
        )  # fmt: skip


class StateCodec:
    """Packs and unpacks states of one bundle."""

    def __init__(self, manifest: Manifest, more: Sequence[StateSpec] = ()) -> None:
        """Lay a state out; `more`: tensors besides the bundle's (worker/emission.py)."""
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

    def stored(self, keys: Sequence[bytes], states: States) -> Stored:
        """Return what a save sends of the states."""
        return self.pack(keys, states)

    def pack(self, keys: Sequence[bytes], states: States) -> list[bytes]:
        """Return one stored value per key."""
        packed, size = memoryview(self._rows(states)), self.bytes_per_state
        values = []
        for key, start in zip(keys, range(0, len(packed), size), strict=True):
            row = packed[start : start + size]
            checksum = crc32(row[_BODY:], crc32(key)).to_bytes(4, "little")
            values.append(b"".join((row[:_SUM_AT], checksum, row[_BODY:])))
        return values

    def _rows(self, states: States) -> bytes:
        """Return the states one behind the other, without their checksums."""
        rows = np.empty(len(states.steps), self._layout)
        rows["version"] = STATE_VERSION
        rows["flags"] = np.where(states.gaps, FLAG_GAP, 0)
        rows["steps"], rows["offset"] = states.steps, states.offsets
        rows["time"], rows["touched"] = states.times_ms, states.touched_ms
        for spec in self._specs:
            rows[spec.input] = states.tensors[spec.input]
        return rows.tobytes()

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


class WritingStateCodec(StateCodec):
    """Packs states by the native module, as they are sent to Redis."""

    def __init__(
        self, manifest: Manifest, more: Sequence[StateSpec] = (), *, prefix: bytes
    ) -> None:
        """Lay a state out; `prefix` goes before a key's name in Redis."""
        super().__init__(manifest, more)
        self._prefix = prefix

    def stored(self, keys: Sequence[bytes], states: States) -> Stored:
        """Return what a save sends of the states: for each the key's name and its value."""
        data = native.write_states(
            self._prefix, self._rows(states), self.bytes_per_state, _SUM_AT, keys
        )
        return Written(2 * len(keys), data)
