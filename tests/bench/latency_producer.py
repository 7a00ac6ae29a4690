"""A program that sends events at an even pace, each stamped with the moment of its sending.

    latency_producer.py BROKERS TOPIC EVENTS EVENTS_PER_S

The client stamps the record (CreateTime) as it takes it; the event's own time, which the prediction
repeats, is read from the clock just before. Prints the events per second that were reached. Started
by latency.py.
"""

from __future__ import annotations

import sys
import time

from cases import Traffic
from traffic import LOT, keys_of, new_producer, rests_of, timed

TICK_S = 0.002
LINGER_MS = 1.0  # fewer, larger requests; a part of what is measured


def main(brokers: str, topic: str, events: int, rate: float) -> None:
    """Send all events."""
    # What costs time is made before; events repeat, but for their keys and times.
    rests = rests_of(0, min(events, LOT))
    keys = [
        key
        for begin in range(0, events, LOT)
        for key in keys_of(Traffic(), begin, min(LOT, events - begin))
    ]
    producer = new_producer(brokers, LINGER_MS)
    begun, sent = time.time(), 0
    while sent < events:
        now = time.time()
        due = min(int((now - begun) * rate) + 1, events)
        now_ms = int(now * 1000)
        lot = [
            {"key": keys[n], "value": timed(now_ms, rests[n % len(rests)])}
            for n in range(sent, due)
        ]
        if lot and producer.produce_batch(topic, lot) != len(lot):
            raise SystemExit("the producer's queue is full: the broker does not keep up")
        sent = due
        producer.poll(0)
        time.sleep(TICK_S)
    print((events - 1) / max(time.time() - begun, 1e-9))
    if producer.flush(60):
        raise SystemExit("events were not acked")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
