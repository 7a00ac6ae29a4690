"""What Kafka and Redis hold of a group's partitions, and what would make a worker HALT.

Owns the look at both and the problems that show without a fold. It changes nothing and prints
nothing. Called by every command of keyfold-state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.connection import Connection
from keyfold.export.refusals import acl
from keyfold.worker.config import Config
from keyfold.worker.emission import identity
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.kafka.log import Extent, KafkaLog
from keyfold.worker.kafka.stable_offset import stable_group_offset
from keyfold.worker.kafka.topics import ask_topic_id, unheard
from keyfold.worker.protocol import (
    Fingerprint,
    GroupOffset,
    Topic,
    outputs_metadata,
    resets_of,
)
from keyfold.worker.state.store_admin import Admin, Hash
from keyfold.worker.store import LAYOUT, META

TIMEOUT_S = 10.0  # of one question to the brokers, tries included


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of one partition."""

    number: int  # of the partition
    extent: Extent  # of its log
    held: Hash | None  # what Redis has, None: nothing
    committed: GroupOffset | None  # the group's offset, None: never set
    fingerprint: str  # of the log's record at the one that #L names; "" when it cannot be told

    def meta(self, field: str, default: str = "") -> str:
        """Return a meta field, or the default where it is missing."""
        return default if self.held is None else self.held.meta.get(field, default)

    @property
    def watermark(self) -> int | None:
        """Return W, None where there is no state."""
        return None if self.held is None else self.held.watermark

    @property
    def resets(self) -> int:
        """Return how often the outputs began anew, as far as anybody knows."""
        noted = self.meta("#R")
        counted = None if self.committed is None else resets_of(self.committed.metadata)
        return max(int(noted) if noted.isdigit() else 0, counted or 0)

    @property
    def out_upto(self) -> int | None:
        """Exactly-once outputs: return C where it counts: below it all predictions are out."""
        counts = self.committed is not None and (
            self.committed.metadata == outputs_metadata(self.resets)
        )
        return self.committed.offset if counts and self.committed is not None else None


@dataclass(frozen=True, slots=True)
class Survey:
    """All partitions of a topic and a group, at about the same time."""

    config: Config  # whose group it is
    bundle: Bundle  # that is to be served
    now: Topic  # as the broker describes it
    then: Topic | None  # as the states were folded under, None: nothing was noted
    places: Sequence[Place]  # by number

    @property
    def identity(self) -> str:
        """Whose states they have to be: the bundle's, and its rule's of what is emitted."""
        return identity(self.bundle, self.config.emit)

    @property
    def recounted(self) -> str:
        """Say how the number of partitions changed, "" when it did not."""
        if self.then is None or self.then.partitions == self.now.partitions:
            return ""
        return (
            f"the states were folded under {self.then.partitions} partitions, "
            f"the topic has {self.now.partitions}: keys moved between them"
        )

    @property
    def replaced(self) -> str:
        """Say how the topic's identity changed, "" when it did not or nobody can tell."""
        before = "" if self.then is None else self.then.identity
        if not before or self.now.identity in ("", before):
            return ""
        return f"the topic was created anew: expected topic id {before}, got {self.now.identity}"

    def problems(self, place: Place) -> list[str]:
        """Return what would make a worker HALT, as far as it shows without a fold."""
        whole = [problem for problem in (self.recounted, self.replaced) if problem]
        return whole + _problems(place, self.identity)


def survey(config: Config, admin: Admin) -> Survey:
    """Look at every partition. Raises Crash, TopicError, BundleError, RedisError."""
    bundle = contract.load(config.worker.bundle)
    identity(bundle, config.emit)  # before anything is asked: the settings may not fit the bundle
    topic, kafka = config.kafka.input, config.connection
    with KafkaLog(kafka) as log:
        count = log.partitions(topic)
        offsets = group_offsets(kafka, topic, count, config.kafka.group)
        places = []
        for number in range(count):
            # The log last: a worker goes on meanwhile, and W must not seem to be beyond its end.
            held, extent = admin.look(topic, number), log.extent(topic, number)
            found = "" if held is None else _found(log, topic, number, extent, held)
            places.append(Place(number, extent, held, offsets[number], found))
    now = Topic(count, topic_identity(kafka, topic))
    return Survey(config, bundle, now, admin.topic(topic), places)


def topic_identity(kafka: Connection | str, topic: str) -> str:
    """Return Kafka's topic id, "" where the broker tells none. Raises Crash: no answer."""
    admin = AdminClient({**Connection.of(kafka).librdkafka(), "log_level": 2})
    try:
        return ask_topic_id(admin, topic, TIMEOUT_S)
    except KafkaConnectionError as error:
        raise Crash(f"Kafka at {kafka}: {error.args[0]}") from error


def group_offsets(
    kafka: Connection | str, topic: str, count: int, group: str
) -> list[GroupOffset | None]:
    """Return a group's offset of each partition, None where it has none. Raises Crash."""
    try:
        return asyncio.run(_group_offsets(Connection.of(kafka), topic, count, group))
    except GroupAuthorizationFailedError as error:
        raise Crash(acl(Connection.of(kafka), "Describe", "group", group)) from error
    except (KafkaError, TimeoutError, OSError) as error:
        why = f"no answer within {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else error
        raise Crash(f"Kafka at {kafka}: offsets of group {group!r}: {why}") from error


async def _group_offsets(
    kafka: Connection, topic: str, count: int, group: str
) -> list[GroupOffset | None]:
    client = AIOKafkaClient(**kafka.aiokafka())
    end_at_once(client)
    with unheard():
        async with asyncio.timeout(TIMEOUT_S):
            await client.bootstrap()
            try:
                return [await stable_group_offset(client, group, topic, n) for n in range(count)]
            finally:
                await client.close()


@dataclass(slots=True)
class _LogRecord:
    """A record as protocol.Record has it."""

    offset: int  # in its partition
    timestamp: int  # the record's own, ms
    key: bytes | None  # record key
    value: bytes | None  # None: a tombstone


def _found(log: KafkaLog, topic: str, number: int, extent: Extent, held: Hash) -> str:
    """Return the fingerprint of the record where the last applied one was, "" if it is gone."""
    last = _parsed(held)
    if last is None or not extent.start <= last.offset < extent.end:
        return ""
    for message in log.read(topic, number, last.offset, last.offset + 1):
        return str(Fingerprint.of(_as_record(message)))
    return ""


def _as_record(message: Message) -> _LogRecord:
    key, value = message.key(), message.value()
    return _LogRecord(
        message.offset() or 0,
        message.timestamp()[1],
        key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value,
    )


def _parsed(held: Hash) -> Fingerprint | None:
    try:
        return Fingerprint.parse(held.meta.get("#L", ""))
    except (TypeError, ValueError):
        return None


def _problems(place: Place, bundle: str) -> list[str]:
    held, extent = place.held, place.extent
    if held is None:
        return [] if place.committed is None else [
            f"no state in Redis, yet the group has committed offset {place.committed.offset}"
        ]  # fmt: skip
    if held.meta.get("#V") != LAYOUT:
        return [f"expected layout {LAYOUT}, got {held.meta.get('#V')}"]
    found = []
    missing = [field for field in META if field not in held.meta]
    if missing or held.watermark is None:
        found.append(f"expected every meta field, got none of {', '.join(missing or ['#W'])}")
    if held.meta.get("#M") != bundle:
        found.append(f"expected bundle {bundle}, got {held.meta.get('#M')}")
    if held.meta.get("#K") != str(held.counted):
        found.append(f"expected {held.meta.get('#K')} key states, got {held.counted}")
    if held.watermark is not None:
        found += _problems_with_log(held, held.watermark, extent, place.fingerprint)
    return found


def _problems_with_log(held: Hash, watermark: int, extent: Extent, found: str) -> list[str]:
    if watermark < extent.start:
        return [f"events {watermark} to {extent.start - 1} are lost to retention"]
    if watermark > extent.end:
        return [f"the log ends at {extent.end}, below the state (topic created anew?)"]
    last = held.meta.get("#L", "")
    if found and found != last:
        return [
            f"the record at offset {last.partition(':')[0]} is not the one last applied (topic "
            f"created anew?): expected {last}, got {found}"
        ]
    return []
