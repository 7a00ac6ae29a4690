"""Memory per resident key, and how soon a worker predicts whose keys are in Redis already.

Owns one walk: keys are served for the first time, some, then more, then all; the worker's memory is
read between. Then a new worker of the group gets a few events of those keys. Called by run.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import traffic
from bench import POLL_S, Bench, members
from cases import Case, Traffic
from confluent_kafka import OFFSET_END, Consumer, TopicPartition
from live_worker import Serving
from machine import resident_bytes

from local.services import Child

WARM_UP_LOTS = 10  # of the first keys, so that every buffer has its size
LOT = 20_000  # events on their way at a time: what waits in buffers must not count as keys
LIMIT_S = 600.0
PROBES = 1000  # events for the new worker


@dataclass(frozen=True, slots=True)
class Memory:
    """What the walk has shown."""

    keys: int  # served between the two looks at the memory
    bytes_per_key: float  # the worker's growth
    state_bytes: int  # of them are the model's state
    stored_keys: int  # in Redis when the second worker started
    first_prediction_s: float  # from just before its assignment to one in a consumer's hands

    @property
    def allowed(self) -> float:
        """The target of issue 5."""
        return 1.3 * self.state_bytes + 200


def memory(bench: Bench, case: Case, few: int, many: int, stored: int) -> Memory:
    """Serve `few` keys, then `many`, then `stored`; look at the memory at the first two."""
    serving = bench.serving(case)
    with bench.running(serving, case) as (worker,):
        for _ in range(WARM_UP_LOTS):
            _grown_to(serving, worker, 0, few)
        before = _grown_to(serving, worker, 0, few)
        after = _grown_to(serving, worker, few, many)
        _grown_to(serving, worker, many, stored)
    first_s = _first_prediction(bench, serving, case, stored)
    bench.forget(serving)
    grown = (after - before) / (many - few)
    return Memory(many - few, grown, serving.bundle.manifest.state_bytes, stored, first_s)


def _grown_to(serving: Serving, worker: Child, begin: int, end: int) -> int:
    """Serve one event of each key from `begin` on; return the worker's memory."""
    for at in range(begin, end, LOT):
        _send(serving, at, min(at + LOT, end))
        serving.wait_saved([worker], LIMIT_S)
    return resident_bytes(worker.pid)


def _send(serving: Serving, begin: int, end: int) -> None:
    keys = [b"key-%d" % key for key in range(begin, end)]
    values = traffic.values_of(Traffic(), begin, end - begin)
    traffic.send(serving.kafka.address, serving.input, keys, values)


def _first_prediction(bench: Bench, serving: Serving, case: Case, stored: int) -> float:
    """Start a worker with a few events to serve; return the seconds it takes once it may."""
    begin = stored // 2
    _send(serving, begin, begin + min(PROBES, stored - begin))
    consumer = Consumer({"bootstrap.servers": serving.kafka.address, "group.id": "bench-first"})
    consumer.assign(
        [TopicPartition(serving.output, n, OFFSET_END) for n in range(serving.partitions)]
    )
    try:
        if consumer.poll(2.0) is not None:  # which also makes it look for the ends
            raise SystemExit("a prediction came without a worker")
        with bench.running(serving, case):
            without = last_without(lambda: members(bench.kafka, serving.group) > 0)
            if consumer.poll(LIMIT_S) is None:
                raise SystemExit("the worker predicted nothing")
            return time.perf_counter() - without
    finally:
        consumer.close()


def last_without(has_partitions: Callable[[], bool]) -> float:
    """Wait for an assignment; return the last moment, by perf_counter, before it for certain.

    An answer takes time to come, in which the worker predicts already: what is reckoned from the
    moment of asking for the last time in vain is too long by a question and a pause at most, and
    never too short.
    """
    deadline, without = time.monotonic() + LIMIT_S, time.perf_counter()
    while True:
        asked = time.perf_counter()
        if has_partitions():
            return without
        without = asked
        if time.monotonic() > deadline:
            raise SystemExit("the worker got no partitions")
        time.sleep(POLL_S / 4)
