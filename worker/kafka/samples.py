"""Some records of a topic, looked at from outside: the newest ones, or the first ones from a start.

Owns how many records are taken from which partition. It joins no group, stores no offset and knows
nothing of events. Called by worker/check/records.py, worker/first_day/dry_run.py and
worker/key_field.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import Extent, KafkaLog

LONGEST_S = 10.0  # of one question to the brokers: a person waits


@dataclass(slots=True)
class Taken:
    """A record as protocol.Record has it."""

    offset: int  # in its partition
    timestamp: int  # the record's own, ms
    key: bytes | None  # record key
    value: bytes | None  # None: a tombstone


@dataclass(frozen=True, slots=True)
class Sample:
    """Records of one partition, in offset order."""

    partition: int  # its number
    records: Sequence[Taken]  # what was there, perhaps nothing


def open_log(config: Config) -> KafkaLog:
    """Return a reader of the topics that the settings name, for a `with` statement."""
    return KafkaLog(config.connection, min(config.kafka.request_timeout_s, LONGEST_S))


def both_ends(
    log: KafkaLog, topic: str, most: int, partitions: Sequence[int]
) -> tuple[list[Sample], list[Sample]]:
    """Take up to `most` of the oldest and of the newest records of each of these partitions.

    Partitions that are not reached in time are left out. Raises Crash.
    """
    early, late = [], []
    deadline = time.monotonic() + LONGEST_S
    for number in partitions:
        extent = log.extent(topic, number)
        middle = max(extent.start, extent.end - most)
        if extent.start < middle:
            first = Extent(extent.start, min(extent.start + most, middle))
            early.append(_take(log, topic, number, first))
        late.append(_take(log, topic, number, Extent(middle, extent.end)))
        if time.monotonic() > deadline:
            break
    return early, late


def from_starts(log: KafkaLog, topic: str, ranges: Sequence[Extent], most: int) -> list[Sample]:
    """Take up to `most` records in all, the first ones of each partition's range. Raises Crash."""
    shares = fair_shares([extent.end - extent.start for extent in ranges], most)
    return [
        _take(log, topic, number, Extent(extent.start, extent.start + share))
        for number, (extent, share) in enumerate(zip(ranges, shares, strict=True))
    ]


def offsets_at(config: Config, partitions: int, time_ms: int) -> list[int | None]:
    """Return each partition's first offset of a record from this time on, None: there is none.

    Raises Crash.
    """
    admin = AdminClient({**config.connection.librdkafka(), "log_level": 0})
    topic = config.kafka.input
    wanted = {
        # Below 0 Kafka takes a time for something else: -1 is the end.
        TopicPartition(topic, number): OffsetSpec.for_timestamp(max(time_ms, 0))
        for number in range(partitions)
    }
    asked: Any = admin.list_offsets(wanted, request_timeout=LONGEST_S)
    try:
        found = {where.partition: one.result().offset for where, one in asked.items()}
    except KafkaException as error:
        raise Crash(f"Kafka at {config.connection}: {error.args[0].str()}") from error
    return [found[number] if found[number] >= 0 else None for number in range(partitions)]


def spread(count: int, most: int) -> list[int]:
    """Choose up to `most` of the partitions 0..count-1, evenly over their numbers."""
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def fair_shares(available: Sequence[int], most: int) -> list[int]:
    """Share `most` among those who have `available`; what one does not need goes to the others."""
    shares = [0] * len(available)
    left = most
    waiting = sorted(
        (i for i in range(len(available)) if available[i] > 0), key=available.__getitem__
    )
    for place, number in enumerate(waiting):
        shares[number] = min(available[number], left // (len(waiting) - place))
        left -= shares[number]
    return shares


def _take(log: KafkaLog, topic: str, number: int, extent: Extent) -> Sample:
    return Sample(
        number, [_taken(message) for message in log.read(topic, number, extent.start, extent.end)]
    )


def _taken(message: Message) -> Taken:
    key, value = message.key(), message.value()
    return Taken(
        message.offset() or 0,
        message.timestamp()[1],
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value,
    )
