"""Whether a peer's predictions are those of the offline model: a wrong one is no benchmark.

Owns comparing an output topic with the fold of the input topic: each key's events in the order of
their offsets, through the bundle's graph in one call per key. Knows nothing of how peers run.
Called by driver.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from keyfold.export.bundle import Bundle, initial_states
from keyfold.export.events import Decoder

READ_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Record:
    """One record of either topic."""

    partition: int  # its own topic's
    offset: int  # in it
    key: bytes  # "" for none
    value: bytes  # JSON


Place = tuple[bytes, int, int]  # key, partition and offset of an event


def mistakes(
    bundle: Bundle, topic: str, events: Iterable[Record], predictions: Iterable[Record]
) -> list[str]:
    """Return what is wrong with the predictions of these events of `topic`, in sentences.

    Both as they lie in their partitions. Every event wants one prediction, those of a key want to
    be in one partition and in the order of their events.
    """
    wanted = offline(bundle, events)
    found: Counter[str] = Counter()
    told: set[Place] = set()
    last: dict[bytes, tuple[int, int]] = {}  # key -> output partition, offset of the event
    worst = 0.0
    for record in predictions:
        about, value = _read(bundle, topic, record)
        if about in told:
            found["predicted twice"] += 1
        elif about not in wanted:
            found["about no event of their key"] += 1
        else:
            worst = max(worst, abs(value - wanted[about]))
            partition, offset = last.get(record.key, (record.partition, -1))
            found["in another partition than the key's others"] += record.partition != partition
            found["before an earlier one of their key"] += about[2] < offset
            last[record.key] = record.partition, about[2]
        told.add(about)
    found["missing"] = len(wanted.keys() - told)
    wrong = [f"{count} {what}" for what, count in found.items() if count]
    limit = bundle.manifest.tolerance * bundle.golden.scale()
    return [*wrong, *([] if worst <= limit else [f"off by up to {worst:.2g}, limit {limit:.2g}"])]


def offline(bundle: Bundle, events: Iterable[Record]) -> dict[Place, float]:
    """Return the offline prediction of every event."""
    manifest = bundle.manifest
    decoder = Decoder(manifest.events, manifest.features)
    session = ort.InferenceSession(bundle.step_path.read_bytes())
    by_key: dict[bytes, list[Record]] = {}
    for event in events:
        by_key.setdefault(event.key, []).append(event)
    wanted: dict[Place, float] = {}
    for key, mine in by_key.items():
        x = decoder.decode([event.value for event in mine], [0] * len(mine)).x
        lengths = np.array([len(mine)], np.int32)
        feed = {"x": x[None], "lengths": lengths, **initial_states(manifest, 1)}
        (y,) = session.run(["y"], feed)
        for event, prediction in zip(mine, y[0, :, 0].tolist(), strict=True):
            wanted[key, event.partition, event.offset] = prediction
    return wanted


def read(brokers: str, topic: str) -> Iterator[Record]:
    """Read a topic from its start to its present end, each partition in its order."""
    settings = {"group.id": "check", "enable.partition.eof": True}
    consumer = Consumer({"bootstrap.servers": brokers, **settings})
    try:
        partitions = consumer.list_topics(topic, READ_TIMEOUT_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        unread = len(partitions)
        while unread:
            message = consumer.poll(READ_TIMEOUT_S)
            if message is None:
                raise SystemExit(f"reading topic {topic!r}: nothing came for {READ_TIMEOUT_S:g} s")
            if message.error() is not None:
                unread -= 1  # the partition's end
                continue
            where = message.partition() or 0, message.offset() or 0
            yield Record(*where, message.key() or b"", message.value() or b"")
    finally:
        consumer.close()


def _read(bundle: Bundle, topic: str, record: Record) -> tuple[Place, float]:
    payload = json.loads(record.value)
    name, partition, offset = payload["about"].rsplit(":", 2)
    at = (int(partition), int(offset)) if name == topic else (-1, -1)
    return (record.key, *at), payload["output"][bundle.manifest.outputs.names[0]]
