"""keyfold-state erase: has one key forgotten, and shows that it is.

Owns the tombstone, the wait until the worker has passed it and the receipt. Redis is only read: the
worker drops the state as part of its fold, so that every replay drops it again. Called by
cli.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.connection import Connection
from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state.consent import FOUND_PROBLEMS, asked
from keyfold.worker.state.inspection import StoredState, asked_key, shown
from keyfold.worker.state.store_admin import Admin

LOOK_EVERY_S = 0.2  # while waiting for the worker
DELIVERY_S = 30.0  # longest wait for the tombstone's ack


@dataclass(frozen=True, slots=True)
class Mark:
    """What a partition must show before the key counts as erased there."""

    partition: int  # of the input
    upto: int  # the watermark must be here: every event of the key so far is folded
    tombstone: int | None = None  # its offset, None: there was nothing to erase


def erase(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Write tombstones for a key and wait until its state is gone."""
    bundle = contract.load(config.worker.bundle)
    if bundle.manifest.events.tombstone != "reset":
        raise Crash(
            f"bundle {bundle.id}: events.tombstone: expected 'reset', got "
            f"{bundle.manifest.events.tombstone!r}: a null value resets no key under this bundle"
        )
    key = asked_key(arguments)
    if key is None:
        raise Crash("expected --key or --key-b64")
    topic = config.kafka.input
    with KafkaLog(config.connection) as log:
        marks = [_mark(log, admin, topic, number) for number in range(log.partitions(topic))]
    held = [admin.state(topic, mark.partition, key)[1] is not None for mark in marks]
    holders = [number for number, holds in enumerate(held) if holds]
    places = holders or [default_partition(key, len(marks))]
    if not asked(_announced(topic, key, places, bool(holders)), arguments.yes):
        return FOUND_PROBLEMS
    for number, offset in write_tombstones(config.connection, topic, key, places).items():
        print(f"tombstone written: {topic}:{number}, offset {offset}", flush=True)
        marks[number] = Mark(number, offset + 1, offset)
    waiting = _wait(admin, topic, key, marks, arguments.timeout)
    if waiting:
        print(f"not seen within {arguments.timeout:g} s: {'; '.join(waiting)}")
        print("The tombstone stays in the log: a worker that passes it drops the state. Then run")
        print("this again for a receipt.")
        return FOUND_PROBLEMS
    receipt = _receipt(config, bundle, key, marks, admin)
    print(f"erased: key with SHA-256 {receipt['key_sha256']}")
    if arguments.receipt is not None:
        _write_receipt(arguments.receipt, receipt)
        print(f"receipt: {arguments.receipt}")
    return 0


def _mark(log: KafkaLog, admin: Admin, topic: str, number: int) -> Mark:
    """Note where a partition's log ends now. Raises Crash where that would prove nothing."""
    extent = log.extent(topic, number)
    held = admin.look(topic, number)
    if held is not None and held.watermark is not None and held.watermark > extent.end:
        raise Crash(
            f"{topic}:{number}: expected a watermark up to {extent.end}, where the log ends, got "
            f"{held.watermark}: it is of another log; see keyfold-state list"
        )
    return Mark(number, extent.end if extent.start < extent.end else 0)


def default_partition(key: bytes, count: int) -> int:
    """Return the partition that Kafka's Java client gives a key: murmur2."""
    return (murmur2(key) & 0x7FFFFFFF) % count


def murmur2(data: bytes) -> int:
    """Return the hash that org.apache.kafka.common.utils.Utils.murmur2 returns, as unsigned."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def write_tombstones(
    kafka: Connection | str, topic: str, key: bytes, places: Sequence[int]
) -> dict[int, int]:
    """Write a null value under a key to partitions; return their offsets. Raises Crash."""
    written: dict[int, int] = {}
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error)
        else:
            written[message.partition() or 0] = message.offset() or 0

    producer = Producer(
        {
            **Connection.of(kafka).librdkafka(),
            "acks": "all",
            "delivery.timeout.ms": int(DELIVERY_S * 1000),
            "on_delivery": delivered,
            "log_level": 2,
        }
    )
    try:
        for number in places:
            producer.produce(topic, value=None, key=key, partition=number)
    except KafkaException as error:
        raise Crash(f"topic {topic!r}: tombstone not written: {error.args[0].str()}") from error
    producer.flush(DELIVERY_S + 5)
    if failures or len(written) != len(places):
        why = failures[0].str() if failures else f"no ack within {DELIVERY_S:.0f} s"
        raise Crash(f"topic {topic!r} at {kafka}: tombstone not written: {why}")
    return dict(sorted(written.items()))


def _announced(topic: str, key: bytes, places: Sequence[int], held: bool) -> Iterator[str]:
    where = ", ".join(f"{topic}:{number}" for number in places)
    yield f"key {shown(key)}: writes a tombstone (null value) to {where}"
    if not held:
        yield (
            "No partition holds a state of it: this is where Java's default partitioner puts it "
            "(murmur2)."
        )
    yield "A worker that passes it drops the key's state; the key's next event starts cold."
    yield (
        "The key's events and predictions in Kafka go by the topics' own retention or compaction; "
        "snapshots taken before still hold the state until they are removed."
    )


def _wait(
    admin: Admin, topic: str, key: bytes, marks: Sequence[Mark], timeout_s: float
) -> list[str]:
    """Wait until every partition shows that the key is gone; return what is still to be seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        waiting = [why for mark in marks if (why := _still_there(admin, topic, key, mark))]
        if not waiting or time.monotonic() >= deadline:
            return waiting
        time.sleep(LOOK_EVERY_S)


def _still_there(admin: Admin, topic: str, key: bytes, mark: Mark) -> str:
    watermark, value = admin.state(topic, mark.partition, key)
    where = f"{topic}:{mark.partition}"
    if (watermark or 0) < mark.upto:
        return f"{where}: expected the watermark at {mark.upto}, got {watermark or 'none'}"
    if value is None or _is_newer(key, value, mark):
        return ""
    if mark.tombstone is None:
        # It came while we looked, or the partition is being folded again.
        return f"{where}: holds a state of the key too, but no tombstone was written there"
    return f"{where}: the state is still in Redis"


def _is_newer(key: bytes, value: bytes, mark: Mark) -> bool:
    """Tell a state that began anew behind the tombstone from the one to be erased.

    Behind a lost range the tombstone itself leaves one, of no steps and no numbers: the mark that
    the key is known to be cold.
    """
    state = StoredState.read(key, value)
    if state is None or mark.tombstone is None or not state.sound:
        return False
    return state.offset > mark.tombstone or (state.steps == 0 and state.offset == mark.tombstone)


def _state(key: bytes, value: bytes | None) -> str:
    """Say for the receipt what Redis holds now."""
    state = None if value is None else StoredState.read(key, value)
    if state is None:
        return "absent"
    if state.steps == 0:
        return "absent; behind a lost range the key's name stays, without any numbers"
    # New events of the key have come since: their state holds nothing older.
    return "begun anew by events after the tombstone"


def _receipt(
    config: Config, bundle: Bundle, key: bytes, marks: Sequence[Mark], admin: Admin
) -> dict[str, Any]:
    topic = config.kafka.input
    places = []
    for mark in marks:
        watermark, value = admin.state(topic, mark.partition, key)
        places.append(
            {
                "partition": mark.partition,
                "tombstone_offset": mark.tombstone,
                "watermark": watermark,
                "state": _state(key, value),
            }
        )
    return {
        "receipt": "keyfold-erasure",
        "version": 1,
        "key_sha256": hashlib.sha256(key).hexdigest(),
        "topic": topic,
        "group": config.kafka.group,
        "bundle": bundle.id,
        "partitions": places,
        "seen_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _write_receipt(path: Path, receipt: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Crash(f"--receipt {path}: cannot be written: {error.strerror}") from error
