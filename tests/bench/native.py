"""What the native module takes per event, beside its twins in Python.

    PYTHONPATH=tests/support .venv/bin/python tests/bench/native.py

Events of 177 bytes as JSON, eight numbers and a time, 512 at once as in a micro-batch; each time is
the best of many calls, so that a busy machine shows little. Prints a table.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from zlib import crc32

import hiredis
import numpy as np
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c
from native_twins import Numbers, Predictions, Written, pack_python

from keyfold.export.events import OutputSpec
from keyfold.worker import native

EVENTS = 512
NAMES = [*(f"reading_{i}" for i in range(8)), "time"]
STATE_BYTES = 46 + 2 * 64 * 4  # of an LSTM of 64 units


def main() -> int:
    """Measure and print."""
    if not native.available():
        print("no native module: it is built when keyfold is installed beside a C++ compiler")
        return 1
    print(f"{'ns per event':<18}{'native':>8}{'Python':>8}{'times':>8}")
    for name, (fast, slow) in cases().items():
        ns, twin_ns = best_ns(fast), best_ns(slow)
        print(f"{name:<18}{ns:>8.0f}{twin_ns:>8.0f}{twin_ns / ns:>8.1f}")
    return 0


def best_ns(call: Callable[[], object]) -> float:
    """Return the nanoseconds per event of the best call within a second."""
    best, end = float("inf"), time.perf_counter() + 1
    while (begun := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - begun)
    return best / EVENTS * 1e9


def cases() -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return each function's name with a call of it and of its twin."""
    rng = random.Random(1)
    keys = [b"key-%d" % rng.randrange(10_000) for _ in range(EVENTS)]
    values = [_event(rng) for _ in keys]
    [(batch, _)] = pack_python(list(zip(keys, values, strict=True)), 1_700_000_000_000, 10**6)
    records, index = batch[61:], {key: slot for slot, key in enumerate(keys)}
    offsets, times_ms = np.empty(EVENTS, np.int64), np.empty(EVENTS, np.int64)
    spans, slots = np.empty((EVENTS, 4), np.int32), np.empty(EVENTS, np.intp)

    def parse() -> None:
        native.parse_records(records, EVENTS, 0, 0, -1, 0, offsets, times_ms, spans)

    parse()
    key_at, key_length, value_at, value_length = np.ascontiguousarray(spans.T)
    numbers, names = Numbers(NAMES), tuple(name.encode() for name in NAMES)
    table = np.empty((EVENTS, len(NAMES)))
    predictions = Predictions(OutputSpec("regression", ("y",)), "0" * 12, "events")
    y = np.array([[rng.gauss(0, 1)] for _ in keys], np.float32)
    ones = np.arange(EVENTS)
    written = Written(ones.tolist(), keys, ones.tolist(), ones.tolist(), y)
    columns = Written(ones, keys, ones, ones, y)  # type: ignore[arg-type]
    payloads = predictions.native(0, written)
    states = rng.randbytes(EVENTS * STATE_BYTES)
    return {
        "parse_records": (parse, lambda: [(r.key, r.value) for r in DefaultRecordBatch(batch)]),
        "cut": (
            lambda: native.cut(records, value_at, value_length),
            lambda: [r.value for r in DefaultRecordBatch(batch)],
        ),
        "find": (
            lambda: native.find(records, key_at, key_length, index, slots),
            lambda: np.fromiter((index.get(key, -1) for key in keys), np.intp, EVENTS),
        ),
        "read_numbers": (
            lambda: native.read_numbers(records, value_at, value_length, names, table),
            lambda: numbers.python(values),
        ),
        "write_predictions": (
            lambda: predictions.native(0, columns),
            lambda: predictions.python(0, written),
        ),
        "pack_records": (
            lambda: native.pack_records(keys, payloads, 0, 900_000),
            lambda: pack_python(list(zip(keys, payloads, strict=True)), 0, 900_000),
        ),
        "crc32c": (lambda: native.crc32c(batch), lambda: calc_crc32c(batch)),
        "write_states": (
            lambda: native.write_states(b":", states, STATE_BYTES, 1, keys),
            lambda: _written(states, keys),
        ),
    }


def _event(rng: random.Random) -> bytes:
    members = {name: round(rng.gauss(0, 1), 4) for name in NAMES[:-1]}
    members["time"] = 1_700_000_000_000 + rng.randrange(10**9)
    return json.dumps(members, separators=(",", ":")).encode()


def _written(states: bytes, keys: list[bytes]) -> bytes:
    arguments: list[bytes] = []
    for key, at in zip(keys, range(0, len(states), STATE_BYTES), strict=True):
        row = states[at : at + STATE_BYTES]
        checksum = crc32(row[5:], crc32(key)).to_bytes(4, "little")
        arguments += (b":" + key, row[:1] + checksum + row[5:])
    packed: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]
    return packed


if __name__ == "__main__":
    sys.exit(main())
