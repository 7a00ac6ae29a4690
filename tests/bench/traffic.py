"""The events that are served: drawn by number, written as JSON or packed, sent to a topic.

Owns their content, the same for equal numbers, and a quick way into Kafka. Knows no worker. Called
by bench.py, memory.py and latency_producer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from cases import Traffic
from confluent_kafka import Producer
from models import FEATURES, TIME
from numpy.typing import NDArray

LOT = 50_000  # events made and sent at a time
FIRST_MS = 1_700_000_000_000
REST = ", ".join(f'"{name}": %s' for name in FEATURES) + "}"
PACKED = np.dtype([("time", "<i8"), ("x", "<f4", (len(FEATURES),))])


def keys_of(traffic: Traffic, begin: int, events: int) -> list[bytes]:
    """Draw the keys of events begin, begin + 1, ..."""
    draw = np.random.default_rng([1, begin])
    if traffic.skew == "uniform":
        chosen = draw.integers(0, traffic.keys, events)
    else:
        chosen = np.searchsorted(_zipf(traffic.keys), draw.random(events))
    return [b"key-%d" % key for key in chosen.tolist()]


def values_of(traffic: Traffic, begin: int, events: int) -> list[bytes]:
    """Write those events' values."""
    numbers = _numbers(begin, events)
    if traffic.form == "packed":
        table = np.empty(events, PACKED)
        table["time"] = np.arange(FIRST_MS + begin, FIRST_MS + begin + events)
        table["x"] = numbers
        whole, size = table.tobytes(), PACKED.itemsize
        return [whole[at : at + size] for at in range(0, len(whole), size)]
    return [
        timed(FIRST_MS + begin + number, rest)
        for number, rest in enumerate(rests_of(begin, events))
    ]


def rests_of(begin: int, events: int) -> list[bytes]:
    """Write events in JSON without their beginning, the time, which `timed` adds."""
    return [(REST % tuple(row)).encode() for row in _numbers(begin, events).tolist()]


def timed(time_ms: int, rest: bytes) -> bytes:
    """Return an event in JSON."""
    return b'{"' + TIME.encode() + b'": %d, ' % time_ms + rest


def fill(brokers: str, topic: str, traffic: Traffic, events: int) -> None:
    """Send `events` events of this traffic and wait for their acks."""
    for begin in range(0, events, LOT):
        lot = min(LOT, events - begin)
        send(brokers, topic, keys_of(traffic, begin, lot), values_of(traffic, begin, lot))


def send(brokers: str, topic: str, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Send records, each key's into its partition, and wait for their acks."""
    producer = new_producer(brokers, 5.0)
    lot = [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
    queued = producer.produce_batch(topic, lot)
    unsent = producer.flush(60)
    if queued != len(lot) or unsent:
        raise SystemExit(f"topic {topic!r}: {len(lot) - queued + unsent} events were not sent")


def new_producer(brokers: str, linger_ms: float) -> Producer:
    """Return a producer that waits for all copies and places keys as Kafka's own clients do."""
    return Producer(
        {
            "bootstrap.servers": brokers,
            "partitioner": "murmur2_random",
            "acks": "all",
            "linger.ms": linger_ms,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )


def _numbers(begin: int, events: int) -> NDArray[np.float64]:
    draw = np.random.default_rng([2, begin])
    numbers: NDArray[np.float64] = draw.normal(size=(events, len(FEATURES))).round(4)
    return numbers


@cache
def _zipf(keys: int) -> NDArray[np.float64]:
    """Return the share of keys 0 to n, for every n."""
    shares = np.cumsum(1.0 / np.arange(1, keys + 1))
    shares /= shares[-1]
    return shares
