"""`python tests/bench/transactions.py`: what exactly-once outputs cost on one real Kafka broker.

Each turn of a partition is one transaction (group offset, predictions, end), beside the same
predictions sent at least once (acks=all, idempotent). Prints milliseconds per turn, turns per
second and the worker's own CPU time per turn, for small and full turns, one partition and eight,
and what one ACQUIRE adds (open and group offset).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import aiokafka

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))

from keyfold.worker.config import Kafka
from keyfold.worker.emit import MAX_REQUEST_BYTES, Destination, Emitter, Outputs
from keyfold.worker.protocol import GroupOffset
from keyfold.worker.transactions import Transactions
from local.services import ApacheKafka

PARTITIONS = 8
WARM_UP = 20  # turns that are not counted
PREDICTION = b"x" * 200


async def measure(emitter: Emitter, partitions: int, events: int, turns: int) -> str:
    """Run turns of `events` predictions on every partition at once; return a line of the table."""
    outputs = [Outputs([b"some-key"] * events, [PREDICTION] * events, ())]
    took_s: list[float] = []

    async def serve(number: int, count: int) -> None:
        for offset in range(count):
            begun = time.perf_counter()
            await emitter.send(number, outputs, GroupOffset(offset, "keyfold:r0"))
            took_s.append(time.perf_counter() - begun)

    async def serve_all(count: int) -> tuple[float, float]:
        took_s.clear()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(serve(number, count) for number in range(partitions)))
        return time.perf_counter() - begun, time.process_time() - begun_cpu

    await asyncio.gather(*map(emitter.open, range(partitions)))
    await serve_all(WARM_UP)
    all_s, cpu_s = await serve_all(turns)
    await asyncio.gather(*map(emitter.close, range(partitions)))
    quantiles = statistics.quantiles(took_s, n=100)
    name = type(emitter).__name__
    return (
        f"{name:13} {partitions:>10} {events:>7} {1000 * quantiles[49]:>8.1f} "
        f"{1000 * quantiles[98]:>8.1f} {len(took_s) / all_s:>9.0f} "
        f"{len(took_s) * events / all_s:>10.0f} {1000 * cpu_s / len(took_s):>8.1f}"
    )


async def measure_acquire(worker: Transactions) -> float:
    """Return the median seconds of an open with the group offset read after it."""
    took_s = []
    for _ in range(WARM_UP):
        begun = time.perf_counter()
        await worker.open(0)
        await worker.group_offset(0)
        took_s.append(time.perf_counter() - begun)
    await worker.close(0)
    return statistics.median(took_s)


async def compare(kafka: Kafka) -> None:
    """Print the table."""
    destination = Destination(kafka.input, kafka.output, kafka.dead_letter, "bundle")
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=kafka.brokers,
        acks="all",
        enable_idempotence=True,
        max_batch_size=MAX_REQUEST_BYTES,
        max_request_size=2 * MAX_REQUEST_BYTES,
    )
    await producer.start()
    print("emitter       partitions  events  p50, ms  p99, ms  turns/s  events/s  CPU, ms")
    for partitions, events, turns in ((1, 1, 300), (1, 1000, 100), (8, 1, 100), (8, 1000, 30)):
        for emitter in (
            Emitter(lambda: producer, destination),
            Transactions(kafka, destination),
        ):
            print(await measure(emitter, partitions, events, turns))
    await producer.stop()
    acquire_s = await measure_acquire(Transactions(kafka, destination))
    print(f"open and group offset: {1000 * acquire_s:.1f} ms")


def main() -> None:
    """Start a broker and compare."""
    with ApacheKafka(jvm=()) as broker:
        kafka = Kafka(broker.address, "in", "out")
        for topic in (kafka.input, kafka.output, kafka.dead_letter):
            broker.create_topic(topic, PARTITIONS)
        asyncio.run(compare(kafka))


if __name__ == "__main__":
    main()
