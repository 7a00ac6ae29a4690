"""Reads what Redis holds for a partition and compares it with the offline fold.

Owns an own reading of the stored layout, on purpose apart from worker/store.py and
worker/state_codec.py, which wrote it: one hash `{group:topic:partition}` with the fields #W #B #M
#L #V and, per key, `:` + key -> version u8, checksum u32, steps u64, last offset i64, last event
time i64, tensors; little-endian. Writes nothing. Called by worker/verify.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from redis import Redis
from redis.exceptions import RedisError

from keyfold.export.bundle import Bundle
from keyfold.worker.compare import Place, show_key
from keyfold.worker.errors import Crash
from keyfold.worker.findings import Fault, Findings
from keyfold.worker.refold import KeyState, Refold

LAYOUT = "1"
HEAD = struct.Struct("<BIQqq")  # version, checksum, steps, last offset, last event time
CHECKED_FROM = 5  # the checksum covers the key and all behind itself
# Up to here a whole hash is read in one command (100,000 states of 512 B hold Redis for 0.1 s).
AT_ONCE = 100_000
TRIES = 3


@dataclass(frozen=True, slots=True)
class Stored:
    """One partition's hash, all of it at one watermark."""

    name: str  # of the hash
    meta: Mapping[str, str]  # "#W" -> text
    states: Mapping[bytes, bytes]  # key -> stored state

    def number(self, field: str) -> int:
        """Return a meta field that holds a number. Raises Crash when it does not."""
        text = self.meta.get(field, "")
        try:
            return int(text)
        except ValueError:
            raise Crash(f"{self.name} {field}: expected an offset, got {text!r}") from None


class StoredGroup:
    """The states of one consumer group. Safe to use beside running workers."""

    def __init__(self, url: str, group: str) -> None:
        self._group = group
        try:
            self._redis = Redis.from_url(url, socket_timeout=60, socket_connect_timeout=5)
            self._redis.ping()
        except (RedisError, ValueError) as error:
            raise Crash(f"Redis: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def knows(self, topic: str, partitions: int) -> bool:
        """Say whether there is a hash for any partition of a topic."""
        try:
            names = [self._name(topic, partition) for partition in range(partitions)]
            return bool(self._redis.exists(*names))
        except RedisError as error:
            raise Crash(f"Redis: {error}") from error

    def read(self, topic: str, partition: int) -> Stored | None:
        """Return a partition's states and watermark of one instant; None: there is no such hash.

        Raises Crash when the hash is too large to be read at once and keeps changing.
        """
        name = self._name(topic, partition)
        try:
            fields = self._fields(name)
        except RedisError as error:
            raise Crash(f"Redis: {name}: {error}") from error
        if not fields:
            return None
        meta = {f.decode(): v.decode() for f, v in fields.items() if f.startswith(b"#")}
        states = {f[1:]: v for f, v in fields.items() if f.startswith(b":")}
        return Stored(name, meta, states)

    def _name(self, topic: str, partition: int) -> str:
        return f"{{{self._group}:{topic}:{partition}}}"

    def _fields(self, name: str) -> dict[bytes, bytes]:
        redis = cast(Any, self._redis)
        if redis.hlen(name) <= AT_ONCE:
            return cast("dict[bytes, bytes]", redis.hgetall(name))
        for _ in range(TRIES):
            before = redis.hget(name, "#W")
            fields = dict(redis.hscan_iter(name, count=1000))
            if redis.hget(name, "#W") == before == fields.get(b"#W"):
                return fields
        raise Crash(f"{name}: a worker saves faster than its states can be read; stop it first")


def check_bundle(stored: Stored, bundle: Bundle) -> None:
    """Refuse states of another layout or bundle: there is nothing to compare them with."""
    for field, what, expected in (("#V", "layout", LAYOUT), ("#M", "bundle", bundle.id)):
        got = stored.meta.get(field)
        if got != expected:
            raise Crash(f"{stored.name} {field}: expected {what} {expected}, got {got}")


def check_states(
    bundle: Bundle, place: Place, refold: Refold, stored: Stored, findings: Findings
) -> None:
    """Compare the states stored at the watermark with the fold of all events below it."""
    fingerprint = stored.meta.get("#L", "")
    if fingerprint != refold.fingerprint:
        what = f"{stored.name} #L (offset:timestamp:crc of the last record)"
        findings.add(Fault.WRONG_STATE, what, refold.fingerprint, fingerprint)
    reader = _Reader(bundle, findings)
    for key, state in refold.states.items():
        value = stored.states.get(key)
        where = f"key {show_key(key)} in {stored.name} at watermark {place.watermark}"
        if value is None:
            expected = f"a state of {state.steps} steps, last offset {state.offset}"
            findings.add(Fault.MISSING_STATE, where, expected, "none")
            continue
        findings.states += 1
        difference = reader.difference(key, value, state)
        if difference is not None:
            findings.add(Fault.WRONG_STATE, where, *difference)
    for key in stored.states.keys() - refold.states.keys():
        where = f"key {show_key(key)} in {stored.name} at watermark {place.watermark}"
        findings.add(Fault.EXTRA_STATE, where, "none: no event, or a reset", "a state")


class _Reader:
    """Takes stored states apart."""

    def __init__(self, bundle: Bundle, findings: Findings) -> None:
        self._specs = bundle.manifest.states
        self._tolerance = bundle.manifest.tolerance
        self._size = HEAD.size + bundle.manifest.state_bytes
        self._findings = findings

    def difference(self, key: bytes, value: bytes, state: KeyState) -> tuple[str, str] | None:
        """Return the first difference (expected, got) from the offline state."""
        if len(value) != self._size:
            return f"{self._size} bytes", f"{len(value)}"
        version, checksum, steps, offset, time_ms = HEAD.unpack_from(value)
        wanted = crc32(key + value[CHECKED_FROM:])
        if version != 1 or checksum != wanted:
            return f"version 1, checksum {wanted}", f"version {version}, checksum {checksum}"
        if (steps, offset, time_ms) != (state.steps, state.offset, state.time_ms):
            return (
                f"{state.steps} steps, last offset {state.offset}, last time {state.time_ms}",
                f"{steps} steps, last offset {offset}, last time {time_ms}",
            )
        return self._tensor_difference(value, state)

    def _tensor_difference(self, value: bytes, state: KeyState) -> tuple[str, str] | None:
        start = HEAD.size
        for spec, tensor in zip(self._specs, state.tensors, strict=True):
            kind = np.dtype(spec.dtype).newbyteorder("<")
            count = spec.bytes_per_key // kind.itemsize
            got: NDArray[Any] = np.frombuffer(value, kind, count, start).astype(np.float64)
            want = tensor[0].astype(np.float64).ravel()
            start += spec.bytes_per_key
            gap = float(np.abs(got - want).max(initial=0.0))
            worst = self._findings.max_abs_state_difference
            self._findings.max_abs_state_difference = max(worst, gap)
            allowed = self._tolerance * max(1.0, float(np.sqrt(np.mean(np.square(want)))))
            if not gap <= allowed:
                return (
                    f"{spec.input} within {allowed:.2g} of the fold",
                    f"a difference of {gap:.3g}",
                )
        return None
