"""A program that reads predictions as they come and tells how old their events are by then.

    latency_consumer.py BROKERS TOPIC PARTITIONS EVENTS SKIPPED STRIDE ISOLATION

Reads EVENTS predictions, looks at each STRIDE-th but for the SKIPPED first, and prints the
percentiles in ms. Age: from the event's time, which is when the producer had to send it, cut to
whole ms, to the moment at which the prediction is in hand here; so it lies above the
time to the ack, by the way to a consumer and up to 1 ms. Started by latency.py.
"""

from __future__ import annotations

import json
import sys
import time
from array import array

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from figures import percentile

STALLED_S = 20.0
LOT = 2000
MARK = b'"time":'
DIGITS = 13  # of ms since 1970
SHARES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


def main(brokers: str, topic: str, isolation: str, counts: tuple[int, int, int, int]) -> None:
    """Read them all."""
    partitions, events, skipped, stride = counts
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "bench-latency",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "queued.min.messages": 1_000_000,
            "fetch.queue.backoff.ms": 1,
        }
    )
    consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(partitions)])
    ages_ms, seen = array("d"), 0
    while seen < events:
        first = consumer.poll(STALLED_S)
        if first is None:
            raise SystemExit(f"no prediction came for {STALLED_S:g} s, after {seen} of {events}")
        lot = [first, *consumer.consume(LOT, 0)]  # what is there already, without waiting
        now_ms = time.time() * 1000
        for message in lot:
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            seen += 1
            if seen > skipped and seen % stride == 0:
                value = message.value() or b""
                at = value.index(MARK) + len(MARK)
                ages_ms.append(now_ms - int(value[at : at + DIGITS]))
    consumer.close()
    print(json.dumps({name: percentile(ages_ms, share) for name, share in SHARES.items()}))


if __name__ == "__main__":
    partitions, events, skipped, stride = map(int, sys.argv[3:7])
    main(sys.argv[1], sys.argv[2], sys.argv[7], (partitions, events, skipped, stride))
