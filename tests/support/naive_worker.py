"""A worker without Kafka, Redis or groups of events: what one partition must lead to.

Owns nothing but a plain loop over records; it writes with the worker's own codecs (predictions,
stored states), so that a verification of its outputs also holds the two readings of the wire
formats together. Used by the tests of keyfold-verify, which then spoil single outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle, initial_states
from keyfold.export.events import Caused, Decoder, PredictionEncoder, key_fragment
from keyfold.worker.model import Model
from keyfold.worker.state_codec import StateCodec, States

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
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


def serve(bundle: Bundle, topic: str, partition: int, records: list[LogRecord]) -> Served:
    """Serve a partition's records from its first one to its last."""
    manifest = bundle.manifest
    model, decoder = Model(bundle), Decoder(manifest.events, manifest.features)
    encoder = PredictionEncoder(manifest.outputs, bundle.id, topic)
    served, warm = Served(), dict[bytes, _Warm]()
    fingerprint = ""
    for r in records:
        fingerprint = f"{r.offset}:{r.timestamp_ms}:{crc32(r.value or b'', crc32(r.key or b''))}"
        if r.key is not None and r.value is None and manifest.events.tombstone == "reset":
            warm.pop(r.key, None)
            continue
        decoded = decoder.decode([r.value], [r.timestamp_ms])
        reason = "the record's key is null" if r.key is None else decoded.rejects.get(0)
        if reason is not None or r.key is None:
            letter = _letter(reason or "", topic, partition, r.offset, bundle.id)
            served.letters.append((r.key, r.value, letter))
            continue
        state = warm.get(r.key) or _Warm(tensors=initial_states(manifest, 1))
        y, tensors = model.step(decoded.x[:, None], np.ones(1, np.int32), state.tensors)
        time_ms = int(decoded.times_ms[0])
        warm[r.key] = _Warm(state.steps + 1, r.offset, time_ms, tensors)
        caused = Caused([r.offset], [key_fragment(r.key)], [time_ms], [state.steps + 1])
        served.outputs.append((r.key, encoder.encode(partition, caused, y[:, 0])[0]))
    served.meta = {
        "#W": str(records[-1].offset + 1), "#B": str(records[0].offset), "#E": "1", "#O": "nonce",
        "#M": bundle.id, "#L": fingerprint, "#V": "1",
    }  # fmt: skip
    served.states = _pack(bundle, warm)
    return served


def _letter(reason: str, topic: str, partition: int, offset: int, bundle: str) -> Headers:
    return [
        ("keyfold-reason", reason.encode()),
        ("keyfold-topic", topic.encode()),
        ("keyfold-partition", str(partition).encode()),
        ("keyfold-offset", str(offset).encode()),
        ("keyfold-bundle", bundle.encode()),
    ]


def _pack(bundle: Bundle, warm: dict[bytes, _Warm]) -> dict[bytes, bytes]:
    keys = list(warm)
    states = States(
        np.array([warm[key].steps for key in keys], np.uint64),
        np.array([warm[key].offset for key in keys], np.int64),
        np.array([warm[key].time_ms for key in keys], np.int64),
        {
            spec.input: np.array([warm[k].tensors[spec.input][0] for k in keys], spec.dtype)
            for spec in bundle.manifest.states
        },
    )
    return (
        dict(zip(keys, StateCodec(bundle.manifest).pack(keys, states), strict=True)) if keys else {}
    )
