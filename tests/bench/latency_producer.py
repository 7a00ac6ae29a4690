"""A program that sends events at an even pace, the time of each the moment at which it was due.

    latency_producer.py BROKERS TOPIC EVENTS EVENTS_PER_S

The event's own time, which the prediction repeats, is when it should have been sent: where this
program or its client falls behind, what waits here counts as latency, as it would for a sensor that
does not wait (Gil Tene's "coordinated omission"). The client stamps the record (CreateTime) as it
takes it. Prints the events per second that were reached. Started by latency.py.
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
        times_ms = due_ms(begun, rate, sent, time.time())[: events - sent]
        lot = [
            {"key": keys[n], "value": timed(time_ms, rests[n % len(rests)])}
            for n, time_ms in enumerate(times_ms, sent)
        ]
        if lot and producer.produce_batch(topic, lot) != len(lot):
            raise SystemExit("the producer's queue is full: the broker does not keep up")
        sent += len(lot)
        producer.poll(0)
        time.sleep(TICK_S)
    print((events - 1) / max(time.time() - begun, 1e-9))
    if producer.flush(60):
        raise SystemExit("events were not acked")


def due_ms(begun_s: float, rate: float, sent: int, now_s: float) -> list[int]:
    """Return when the events behind the first `sent` were due that are due by now."""
    upto = int((now_s - begun_s) * rate) + 1
    return [int((begun_s + number / rate) * 1000) for number in range(sent, upto)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
