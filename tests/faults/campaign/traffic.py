"""What is sent to the input topic: keys, skew, poison, tombstones, bursts, transactions.

Pure: the records of a schedule follow from its seed alone. Owns the shape of the traffic; who sends
it, and when, is in sender.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Record = tuple[bytes | None, bytes | None]  # key, value

CHUNKS = 60  # in which the traffic is sent
SPAN = 1.2  # over so much of the faults' duration: there is traffic behind the last one
BEGIN_MS = 1_700_000_000_000
FUTURE_MS = 4_000_000_000_000
POISON = (
    b"not json",
    b"",
    b"\xff\xfe",
    b'{"time":1,"a":"text","b":1}',
    b'{"time":1,"a":1e39,"b":1}',
    b'{"time":1,"a":NaN,"b":1}',
    b'{"time":1,"b":1}',
    b'{"time":1,"a":1,"b":1,"c":' + b"[" * 500 + b"]" * 500 + b"}",
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The shape of one schedule's traffic."""

    events: int  # records sent in all
    keys: int  # different ones
    zipf: bool  # a few keys get most of the events; else all alike
    key_bytes: int  # least length of a key
    poison: float  # share of records that cannot be events
    tombstones: float  # share of null values
    null_keys: float  # share of null keys
    future: float  # share of events from the far future, and as many from the past
    ms_per_event: int  # how fast event time goes on
    bursts: int  # moments at which ten times as much is sent
    aborted: float | None  # share of aborted transactions; None: no transactions


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records sent together."""

    at: float  # when, as a part of the faults' duration; above 1: when they are over
    records: Sequence[Record]  # in the order of sending
    aborted: bool  # sent in a transaction that is taken back


def chunks(traffic: Traffic, seed: int) -> Iterator[Chunk]:
    """Yield the traffic in order of time."""
    rng = random.Random(f"traffic {seed}")
    weights = [1.0] * CHUNKS
    for burst in rng.sample(range(CHUNKS), traffic.bursts):
        weights[burst] = 10.0
    made, due, whole = 0, 0.0, sum(weights)
    draw = _records(traffic, rng)
    for place, weight in enumerate(weights):
        due += traffic.events * weight / whole
        records = [next(draw) for _ in range(round(due) - made)]
        made += len(records)
        aborted = traffic.aborted is not None and rng.random() < traffic.aborted
        yield Chunk(place / CHUNKS * SPAN, records, aborted)


def _records(traffic: Traffic, rng: random.Random) -> Iterator[Record]:
    names = [f"key-{n}".encode().ljust(traffic.key_bytes, b".") for n in range(traffic.keys)]
    weights = [1.0 / (1 + n) if traffic.zipf else 1.0 for n in range(traffic.keys)]
    now_ms = BEGIN_MS

    def key() -> bytes:
        return rng.choices(names, weights)[0]

    def event(time_ms: int) -> bytes:
        fields = {"time": time_ms, "a": round(rng.gauss(0, 1), 4), "b": round(rng.gauss(0, 1), 4)}
        return json.dumps(fields).encode()

    likely: list[tuple[float, Callable[[], Record]]] = [
        (traffic.poison, lambda: (key(), rng.choice(POISON))),
        (traffic.tombstones, lambda: (key(), None)),
        (traffic.null_keys, lambda: (None, event(now_ms))),
        (traffic.future, lambda: (key(), event(FUTURE_MS + now_ms))),
        (traffic.future, lambda: (key(), event(now_ms - 3_600_000))),
    ]
    while True:
        now_ms += rng.randrange(2 * traffic.ms_per_event + 1)
        chance = rng.random()
        for share, make in likely:
            chance -= share
            if chance < 0:
                yield make()
                break
        else:
            yield key(), event(now_ms)
