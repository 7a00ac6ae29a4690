"""`make bench-outputs`: what exactly-once outputs cost, beside at-least-once ones, in one run.

For each way of output, in turn: events per second over a full topic, and the time from sending an
event to reading its prediction (committed records only) at a steady trickle. Prints a table, writes
out/bench/outputs.json. Options: --events, --rate, --seconds, --runs (see --help).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import watch
from confluent_kafka import Consumer, Producer, TopicPartition
from figures import percentile
from live_worker import Serving, make_events
from models import FEATURES, make_model

from local.services import ApacheKafka, Child, Valkey

WAYS = ("at-least-once", "exactly-once")
OUT = Path(__file__).resolve().parents[2] / "out" / "bench" / "outputs.json"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="make bench-outputs ARGS=...")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--rate", type=int, default=200, help="events per second of the trickle")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the trickle")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keyfold-bench-") as folder:
        results = _run(arguments, Path(folder))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    print(f"{'outputs':<16}{'events/s':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for way in WAYS:
        rate, p50, p99 = (results[way][name] for name in ("events_per_s", "p50_ms", "p99_ms"))
        print(f"{way:<16}{rate:>12,.0f}{p50:>10.1f}{p99:>10.1f}")
    print(f"medians of {arguments.runs} runs; written to {OUT}")
    return 0


def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bundle = make_model(folder)
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    with ApacheKafka(jvm=()) as kafka, Valkey() as valkey:
        names = iter(range(100))
        serving = Serving(
            folder, kafka, valkey, bundle, lambda kind: f"bench-{kind}-{next(names)}",
            arguments.partitions,
        )  # fmt: skip
        serving.send(make_events(arguments.events, 10_000, FEATURES))
        for run in range(arguments.runs):
            for way in WAYS:  # interleaved, so that both see the same weather
                serving.group = f"bench-{way}-{run}"
                begun = sum(serving.ends().values())
                with serving.running(worker__metrics_every_s=0, worker__outputs=way) as worker:
                    rate, _ = watch(serving, [worker], begun)
                    delays = _trickle(serving, worker, arguments.rate, arguments.seconds)
                found[way].append((rate, statistics.median(delays), percentile(delays, 99)))
    medians = {
        way: dict(
            zip(
                ("events_per_s", "p50_ms", "p99_ms"),
                map(statistics.median, zip(*rows, strict=True)),
                strict=True,
            )
        )
        for way, rows in found.items()
    }
    return {**medians, "runs": found, "setting": vars(arguments)}


def _trickle(serving: Serving, worker: Child, rate: int, seconds: float) -> list[float]:
    """Send events one by one; return the ms from each one's sending to reading its prediction."""
    brokers = serving.kafka.address
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "bench-reader",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 5,
        }
    )
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0, "acks": "all"})
    ends = [
        consumer.get_watermark_offsets(TopicPartition(serving.output, p))[1]
        for p in range(serving.partitions)
    ]
    consumer.assign([TopicPartition(serving.output, p, end) for p, end in enumerate(ends)])
    consumer.poll(0.5)
    total, sent = int(rate * seconds), 0
    delays: list[float] = []
    begun = time.time()
    while len(delays) < total:
        if sent < total and time.time() >= begun + sent / rate:
            event = {"time": int(time.time() * 1000), **dict.fromkeys(FEATURES, 0.5)}
            producer.produce(serving.input, json.dumps(event).encode(), b"key-%d" % (sent % 500))
            sent += 1
        producer.poll(0)
        message = consumer.poll(0.001)
        if message is not None and message.error() is None:
            delays.append(time.time() * 1000 - json.loads(message.value() or b"")["time"])
        assert worker.exit_code is None, worker.log_tail()
    consumer.close()
    return delays


if __name__ == "__main__":
    raise SystemExit(main())
