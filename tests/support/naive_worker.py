"""A worker without Kafka, Redis or groups of events: what one partition must lead to.

Owns nothing but a plain loop over records. Predictions are written with the worker's own codec, so
that a verification of them also holds the two readings of that form together; stored states are
packed here once more, by hand. Used by the tests of keyfold-verify, which then spoil single
outputs, and by those that compare what a worker has stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keyfold.export.anomaly import Back
from keyfold.export.bundle import Bundle, kept_states
from keyfold.export.events import Caused, Decoded, Decoder, PredictionEncoder
from keyfold.export.front import Front
from keyfold.worker.model import Model

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the input partition."""

    offset: int  # may have gaps before it
    timestamp_ms: int  # the record's own
    key: bytes | None  # record key
    value: bytes | None  # None: a tombstone


@dataclass(slots=True)
class Served:
    """What a worker leaves behind; tests spoil it."""

    outputs: list[tuple[bytes | None, bytes | None]] = field(default_factory=list)  # key, payload
    letters: list[tuple[bytes | None, bytes | None, Headers]] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)  # "#W" -> text
    states: dict[bytes, bytes] = field(default_factory=dict)  # key -> stored state


@dataclass(slots=True)
class _Warm:
    steps: int = 0
    offset: int = -1
    time_ms: int = 0
    touched_ms: int = 0
    gap: bool = False
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


def serve(
    bundle: Bundle,
    topic: str,
    partition: int,
    records: list[LogRecord],
    lost: tuple[int, int] | None = None,
) -> Served:
    """Serve a partition's records from its first one to its last, but for a lost range."""
    manifest = bundle.manifest
    model = Model(bundle)
    decoder = Decoder(manifest.events, manifest.features, manifest.outputs.targets)
    encoder = PredictionEncoder(manifest.outputs, bundle.id, topic)
    served, warm = Served(), dict[bytes, _Warm]()
    fingerprint, stream, expiry = "", None, manifest.events.reset_after_ms
    exact: dict[bytes, int] = {}  # keys reset since the loss, and where
    for r in records:
        if lost is not None and lost[0] <= r.offset < lost[1]:
            continue
        fingerprint = f"{r.offset}:{r.timestamp_ms}:{_crc(r)}"
        after_loss = lost is not None and r.offset >= lost[1]
        if r.key is not None and r.value is None and manifest.events.tombstone == "reset":
            warm.pop(r.key, None)
            exact |= {r.key: r.offset} if after_loss else {}
            continue
        decoded = decoder.decode([r.value], [r.timestamp_ms])
        reason = "the record's key is null" if r.key is None else decoded.rejects.get(0)
        if reason is not None or r.key is None:
            letter = _letter(reason or "", topic, partition, r.offset, bundle.id)
            served.letters.append((r.key, r.value, letter))
            continue
        time_ms = int(decoded.times_ms[0])
        moved = min(time_ms, r.timestamp_ms)
        stream = moved if stream is None else max(stream, moved)
        state = warm.get(r.key)
        stale = lost is not None and after_loss and (state is None or state.offset < lost[1])
        gap = (stale and r.key not in exact) or (state is not None and state.gap)
        if state is not None and expiry is not None and (
            time_ms - state.time_ms > expiry or stream - state.touched_ms > expiry
        ):  # fmt: skip
            state, gap = None, stale
        state = state or _Warm(tensors=kept_states(manifest, 1))
        y, scores, tensors = _step(model, decoded, state.tensors)
        warm[r.key] = _Warm(state.steps + 1, r.offset, time_ms, stream, gap, tensors)
        steps = [state.steps + 1]
        caused = Caused([r.offset], [r.key], [time_ms], steps, [gap])
        payload = encoder.encode(partition, caused, y[:, 0], scores)[0]
        served.outputs.append((r.key, payload))
    # Behind a loss a state without steps says that its key is known to be cold.
    cold = {k: _Warm(0, at, tensors=kept_states(manifest, 1)) for k, at in exact.items()}
    warm = {**cold, **warm}
    served.states = {key: _pack(bundle, key, state) for key, state in warm.items()}
    served.meta = {
        "#W": str(records[-1].offset + 1), "#B": str(records[0].offset), "#E": "1", "#O": "nonce",
        "#M": bundle.id, "#L": fingerprint, "#V": "2", "#K": str(len(warm)),
        "#S": "" if stream is None else str(stream), "#F": "0",
        "#G": "" if lost is None else f"{lost[0]}-{lost[1]}", "#C": "", "#R": "0",
    }  # fmt: skip
    return served


def _step(
    model: Model, decoded: Decoded, states: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, dict[str, NDArray[Any]]]:
    """Step one event: y (1,1,O), scores (1,S) if the bundle has any, the states after it."""
    manifest, one = model.bundle.manifest, np.ones(1, np.int32)
    if decoded.lengths is not None:  # a text: as many steps as symbols, the last one's output
        y, after = np.empty((1, 1, 0), np.float32), dict[str, NDArray[Any]](states)
        for symbol in decoded.x:
            y, after = model.step(symbol[None, None], one, after)
        return y, None, after
    front, back = Front.of(manifest.features), Back.of(manifest.outputs)
    x, after, scores = decoded.x[:, None], dict[str, NDArray[Any]](), None
    if front is not None:
        x, after = front.run(x, decoded.times_ms[:, None], one, states)
    y, graph = model.step(x, one, states)
    if back is not None:
        observed = None if decoded.observed is None else decoded.observed[:, None]
        found, remembered = back.run(y, observed, one, states)
        scores, after = found[:, 0], {**after, **remembered}
    return y, scores, {**graph, **after}


def _crc(r: LogRecord) -> int:
    parts = b"".join(
        struct.pack("<i", -1 if part is None else len(part)) + (part or b"")
        for part in (r.key, r.value)
    )
    return crc32(parts)


def _letter(reason: str, topic: str, partition: int, offset: int, bundle: str) -> Headers:
    return [
        ("keyfold-reason", reason.encode()),
        ("keyfold-topic", topic.encode()),
        ("keyfold-partition", str(partition).encode()),
        ("keyfold-offset", str(offset).encode()),
        ("keyfold-bundle", bundle.encode()),
    ]


def _pack(bundle: Bundle, key: bytes, state: _Warm) -> bytes:
    tensors = b"".join(
        state.tensors[spec.input][0].astype(np.dtype(spec.dtype).newbyteorder("<")).tobytes()
        for spec in bundle.manifest.kept
    )
    head = (state.gap, state.steps, state.offset, state.time_ms, state.touched_ms)
    body = struct.pack("<BQqqq", *head) + tensors
    return struct.pack("<BI", 2, crc32(key + body)) + body
