"""keyfold-state inspect: one key's stored state, taken apart.

Owns an operator's reading of the layout in worker/state_codec.py: it shows what is there even where
the worker would refuse it. It changes nothing. Called by cli.py.
"""

from __future__ import annotations

import argparse
import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

import numpy as np

from keyfold.export import bundle as contract
from keyfold.export.bundle import Manifest, StateSpec
from keyfold.worker.config import Config
from keyfold.worker.emission import remembered
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state.consent import FOUND_PROBLEMS
from keyfold.worker.state.listing import as_utc, inspect_partition
from keyfold.worker.state.store_admin import Admin
from keyfold.worker.state_codec import FLAG_GAP, STATE_VERSION

# version, checksum, flags, steps, last offset, last event time, stream time; the checksum covers
# the key and everything behind itself
HEAD = Struct("<BIBQqqq")
CHECKED_FROM = 5


@dataclass(frozen=True, slots=True)
class StoredState:
    """The numbers before the tensors."""

    version: int  # of the layout of one state
    sound: bool  # the checksum fits the key and the bytes
    gap: bool  # the history may miss events lost to retention
    steps: int  # since the key was cold
    offset: int  # of the last event
    time_ms: int  # of the last event
    stream_ms: int  # the partition's stream time at the last event

    @classmethod
    def read(cls, key: bytes, value: bytes) -> StoredState | None:
        """Take a stored state's head apart, None when it is too short for one."""
        if len(value) < HEAD.size:
            return None
        version, checksum, flags, steps, offset, time_ms, stream_ms = HEAD.unpack_from(value)
        sound = checksum == crc32(key + value[CHECKED_FROM:])
        return cls(version, sound, bool(flags & FLAG_GAP), steps, offset, time_ms, stream_ms)


def asked_key(arguments: argparse.Namespace) -> bytes | None:
    """Return the key that --key or --key-b64 names, None when neither was given. Raises Crash."""
    if arguments.key is not None:
        return bytes(arguments.key.encode())
    if arguments.key_b64 is None:
        return None
    try:
        return base64.b64decode(arguments.key_b64, validate=True)
    except binascii.Error as error:
        raise Crash(f"--key-b64: expected base64, got {arguments.key_b64!r}: {error}") from error


def shown(key: bytes) -> str:
    """Return a key as predictions show it."""
    try:
        return repr(key.decode())
    except UnicodeDecodeError:
        return f"{base64.b64encode(key).decode()} (base64)"


def inspect(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Show a key's states, or a partition's meta fields."""
    topic = config.kafka.input
    with KafkaLog(config.connection) as log:
        count = log.partitions(topic)
    key = asked_key(arguments)
    if key is None:
        number = arguments.partition
        if not 0 <= number < count:
            raise Crash(f"--partition: expected 0 to {count - 1}, got {number}")
        return inspect_partition(config, admin, number)
    bundle = contract.load(config.worker.bundle)
    manifest, more = bundle.manifest, remembered(bundle, config.emit)
    holders, healthy = 0, True
    for number in range(count):
        watermark, value = admin.state(topic, number, key)
        if value is None:
            continue
        holders += 1
        print(f"partition {number}, watermark {watermark}: key {shown(key)}")
        held = admin.look(topic, number)
        stream = "" if held is None else held.meta.get("#S", "")
        for line in _lines(manifest, more, key, value, stream):
            print(f"  {line}")
        size = HEAD.size + manifest.state_bytes + sum(spec.bytes_per_key for spec in more)
        faults = _faults(size, key, value, watermark)
        healthy = healthy and not faults
        for fault in faults:
            print(f"  {fault}")
    if not holders:
        print(f"no partition of {topic} holds a state of key {shown(key)}: it is cold")
    return 0 if holders and healthy else FOUND_PROBLEMS


def _lines(
    manifest: Manifest, more: Sequence[StateSpec], key: bytes, value: bytes, stream: str
) -> Iterator[str]:
    state = StoredState.read(key, value)
    if state is None:
        return
    silent_ms = int(stream) - state.stream_ms if stream else 0
    limit_ms = manifest.events.reset_after_ms
    yield f"steps            {state.steps}"
    yield f"last offset      {state.offset}"
    yield f"last event time  {as_utc(state.time_ms)}"
    yield f"stream time then {as_utc(state.stream_ms)}"
    if limit_ms is not None and silent_ms > limit_ms:
        answers = "" if manifest.collects_after_ms is not None else " and answers this session"
        yield (
            f"expired          silent for {silent_ms} ms > {limit_ms}: its next event starts cold"
            f"{answers}"
        )
    yield f"gap              {'yes: events may be missing' if state.gap else 'no'}"
    yield f"bytes            {len(value)}"
    yield f"checksum         {'good' if state.sound else 'bad'}"
    start = HEAD.size
    for spec in (*manifest.kept, *more):
        part = value[start : start + spec.bytes_per_key]
        start += spec.bytes_per_key
        if len(part) == spec.bytes_per_key:
            tensor = np.frombuffer(part, np.dtype(spec.dtype).newbyteorder("<")).astype(np.float64)
            tensor = tensor[~np.isnan(tensor)]  # around the graph: never seen
            if not len(tensor):
                yield f"tensor {spec.input} {list(spec.dims)}: nothing seen yet"
                continue
            rms = float(np.sqrt(np.mean(np.square(tensor))))
            yield (
                f"tensor {spec.input} {list(spec.dims)}: min {tensor.min():.6g}, "
                f"max {tensor.max():.6g}, RMS {rms:.6g}"
            )


def _faults(size: int, key: bytes, value: bytes, watermark: int | None) -> list[str]:
    """Return why a worker would refuse this state."""
    state = StoredState.read(key, value)
    if state is None or len(value) != size:
        return [f"expected {size} bytes, got {len(value)}"]
    faults = []
    if state.version != STATE_VERSION:
        faults.append(f"expected version {STATE_VERSION}, got {state.version}")
    if not state.sound:
        faults.append("the checksum does not fit: a damaged state, or another key's")
    if watermark is not None and state.offset >= watermark:
        faults.append(f"expected events below watermark {watermark}, got offset {state.offset}")
    return faults
