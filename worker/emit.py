"""Outputs: predictions, alerts and dead letters to Kafka, acked before anything is saved.

Owns how outputs are packed into producer requests, what a dead letter looks like and how it is cut
to fit, and emitting at least once. It knows an aiokafka producer and topic names; it decides
nothing about states. Called by worker/saver.py, once per partition and turn; one call at a time per
partition keeps the output in order. worker/transactions.py packs by the same rules.

A dead letter holds the original key and value; its headers say why and where from:
keyfold-reason, keyfold-topic, keyfold-partition, keyfold-offset, keyfold-bundle, and
keyfold-truncated (the value's original size in bytes) where it did not fit and was cut.

Sizes are decided before anything is sent: aiokafka 0.14 has counted the records of a refused
request into the partition's sequence, so that after one MessageSizeTooLarge every further send to
that partition ends in OutOfOrderSequenceNumber, and a transaction could not be ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, MessageSizeTooLargeError
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from keyfold.export.events import MAX_KEY_BYTES
from keyfold.worker.errors import TopicError
from keyfold.worker.packed import packed
from keyfold.worker.protocol import GroupOffset

log = logging.getLogger(__name__)

# The broker's default limit of a request's record set is 1 MiB less a few bytes.
MAX_REQUEST_BYTES = 900_000
TRUNCATED_BYTES = 512 * 1024
DEFAULT_MESSAGE_BYTES = 1_048_588  # Kafka's max.message.bytes
VALUE_LENGTH_BYTES = 5  # the most that a value's length takes in a record
LIMIT_FOR_S = 60.0  # how long a broker's word on max.message.bytes is good
LIMIT_RETRY_S = (0.1, 0.5, 1.0)  # waits between the tries to ask for it
LIMIT_NAME = "max.message.bytes"
TOPIC_RESOURCE = 2  # Kafka's number of a topic in DescribeConfigs

Headers = list[tuple[str, bytes]]
NO_HEADERS: Headers = []
Message = tuple[bytes | None, bytes | None, Headers]  # key, value, headers
Told = tuple[Sequence[bytes], Sequence[bytes]]  # keys and payloads of predictions


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A reject on its way to the dead-letter topic."""

    offset: int  # of the record in its source partition
    key: bytes | None  # as it came
    value: bytes | None  # as it came
    reason: str  # the reject's message


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one micro-batch's share of a partition emits."""

    keys: Sequence[bytes]  # record keys of the predictions, in offset order
    payloads: Sequence[bytes]  # the predictions, one per key above
    dead_letters: Sequence[DeadLetter]  # in offset order
    alert_keys: Sequence[bytes] = ()  # of what goes to the alert topic, in offset order
    alerts: Sequence[bytes] = ()  # predictions, one per key above


@dataclass(frozen=True, slots=True)
class Destination:
    """Where outputs go."""

    source: str  # the input topic, for dead letters' headers
    output: str  # topic of predictions
    dead_letter: str  # topic of rejects
    bundle: str  # bundle id
    alert: str = ""  # topic of alerts; "": none
    native: bool = False  # whether the native module writes the requests


class Emitter:
    """Sends outputs and waits for their acks: at least once."""

    def __init__(self, producer: Callable[[], Any], destination: Destination) -> None:
        self._producer = producer  # of an aiokafka producer, connected
        self._packing = Packing(destination)

    async def open(self, partition: int) -> None:
        """Prepare for an input partition just acquired. Raises KafkaError: try again."""

    async def close(self, partition: int) -> None:
        """Let go of an input partition."""

    async def group_offset(self, partition: int) -> GroupOffset | None:
        """Return C as the partition's last transaction left it; only with exactly-once outputs."""
        raise NotImplementedError("at-least-once outputs have no group offset of their own")

    async def send(
        self, partition: int, outputs: Sequence[Outputs], upto: GroupOffset | None = None
    ) -> None:
        """Send the outputs of a source partition, in order, and wait until all are acked.

        `upto` is the group offset that goes with them; it counts with exactly-once outputs only.
        Raises aiokafka's KafkaError when the producer gave up; nothing may be saved then.
        """
        await self._packing.emit(self._producer(), partition, outputs)


class Packing:
    """Packs outputs into a producer's requests."""

    def __init__(self, destination: Destination) -> None:
        self._to = destination
        self._limit = DEFAULT_MESSAGE_BYTES  # max.message.bytes of the dead-letter topic
        self._limit_until_s = float("-inf")  # when it is asked for again, by the loop's clock

    async def emit(self, producer: Any, partition: int, outputs: Sequence[Outputs]) -> None:
        """Send the outputs of a source partition, in order, and wait until all are acked.

        Raises KafkaError, and TopicError for what cannot fit its topic.
        """
        told = [(o.keys, o.payloads) for o in outputs]
        predictions = await self._queue_predictions(producer, self._to.output, partition, told)
        alerts = await self._queue_alerts(producer, partition, outputs) if self._to.alert else []
        letters = [letter for o in outputs for letter in o.dead_letters]
        rejects = await self._queue_dead_letters(producer, partition, letters) if letters else []
        try:
            await asyncio.gather(*predictions, *alerts, *rejects)
        except MessageSizeTooLargeError as error:
            of = f"of {self._to.source}:{partition} does not fit its max.message.bytes; raise that"
            what = f"topic {self._to.output!r}: a prediction"
            if any(map(_too_large, alerts)):
                what = f"topic {self._to.alert!r}: a prediction"
            if any(map(_too_large, rejects)):
                self._limit_until_s = float("-inf")
                what = f"topic {self._to.dead_letter!r}: a reject"
            raise TopicError(f"{what} {of}") from error

    async def _queue_alerts(
        self, producer: Any, partition: int, outputs: Sequence[Outputs]
    ) -> list[asyncio.Future[Any]]:
        told = [(o.alert_keys, o.alerts) for o in outputs]
        return await self._queue_predictions(producer, self._to.alert, partition, told)

    async def _queue_predictions(
        self, producer: Any, topic: str, partition: int, told: Sequence[Told]
    ) -> list[asyncio.Future[Any]]:
        """Hand predictions to the producer in order."""
        if self._to.native:
            keys = [key for some, _ in told for key in some]
            payloads = [payload for _, some in told for payload in some]
            now_ms = int(time.time() * 1000)
            return [
                await producer.send_batch(request, topic, partition=partition)
                for request in packed(producer, keys, payloads, now_ms, MAX_REQUEST_BYTES)
            ]
        # Nothing is built per prediction here: at this rate garbage collection would show.
        messages = chain.from_iterable(
            zip(keys, payloads, repeat(NO_HEADERS), strict=False) for keys, payloads in told
        )
        return await _queue(producer, topic, partition, messages)

    async def _queue_dead_letters(
        self, producer: Any, source: int, letters: Sequence[DeadLetter]
    ) -> list[asyncio.Future[Any]]:
        topic = self._to.dead_letter
        limit = await self._limit_of(producer, topic)
        partition = source % (len(await producer.partitions_for(topic)) or 1)
        messages = [_fitted(producer, self._message(source, letter), limit) for letter in letters]
        alone = limit < MAX_REQUEST_BYTES  # several in one request could be too large together
        return await _queue(producer, topic, partition, messages, alone=alone)

    async def _limit_of(self, producer: Any, topic: str) -> int:
        """Return the topic's max.message.bytes, or the broker's default where nobody tells it."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._limit_until_s:
            self._limit = await _ask_limit(producer.client, topic)
            self._limit_until_s = now_s + LIMIT_FOR_S
        return self._limit

    def _message(self, source: int, letter: DeadLetter) -> Message:
        headers = [
            ("keyfold-reason", letter.reason.encode()),
            ("keyfold-topic", self._to.source.encode()),
            ("keyfold-partition", str(source).encode()),
            ("keyfold-offset", str(letter.offset).encode()),
            ("keyfold-bundle", self._to.bundle.encode()),
        ]
        return letter.key, letter.value, headers


async def _queue(
    producer: Any, topic: str, partition: int, messages: Iterable[Message], *, alone: bool = False
) -> list[asyncio.Future[Any]]:
    """Hand messages to the producer in order; return what resolves when they are acked.

    `alone`: each message is a request of its own.
    """
    now_ms = int(time.time() * 1000)
    acks: list[asyncio.Future[Any]] = []
    builder = producer.create_batch()
    for key, value, headers in messages:
        full = alone and builder.record_count()
        if full or (
            builder.append(timestamp=now_ms, key=key, value=value, headers=headers) is None
        ):
            acks.append(await producer.send_batch(builder, topic, partition=partition))
            builder = producer.create_batch()
            builder.append(timestamp=now_ms, key=key, value=value, headers=headers)
    if builder.record_count():
        acks.append(await producer.send_batch(builder, topic, partition=partition))
    return acks


def _fitted(producer: Any, message: Message, limit: int) -> Message:
    """Return the message, cut and marked if no request of `limit` bytes could hold it."""
    key, value, headers = message
    if _most_bytes(message) <= limit:
        return message
    builder = producer.create_batch()
    builder.append(timestamp=0, key=key, value=value, headers=headers)
    if len(builder._build()) <= limit:  # compressed, or just below the limit
        return message
    marked = [*headers, ("keyfold-truncated", str(len(value or b"")).encode())]
    short_key = None if key is None else key[:MAX_KEY_BYTES]
    room = max(limit - _most_bytes((short_key, b"", marked)) - VALUE_LENGTH_BYTES, 0)
    return short_key, value and value[: min(TRUNCATED_BYTES, room)], marked


def _most_bytes(message: Message) -> int:
    """Return an upper bound of the message's size as the only one of a request."""
    bound: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(*message)
    return bound


def _too_large(ack: asyncio.Future[Any]) -> bool:
    failed = ack.done() and not ack.cancelled()
    return failed and isinstance(ack.exception(), MessageSizeTooLargeError)


async def _ask_limit(client: Any, topic: str) -> int:
    """Ask a broker for a topic's max.message.bytes. Raises KafkaError when none answers."""
    request = DescribeConfigsRequest([(TOPIC_RESOURCE, topic, [LIMIT_NAME])])
    for retry_s in (*LIMIT_RETRY_S, None):
        try:
            reply = await client.send(client.get_random_node(), request)
            break
        except IncompatibleBrokerVersion:
            return DEFAULT_MESSAGE_BYTES
        except KafkaError:
            if retry_s is None:
                raise
            await asyncio.sleep(retry_s)
    entries = [entry for resource in reply.resources if not resource[0] for entry in resource[4]]
    for name, value, *_ in entries:
        if name == LIMIT_NAME and value:
            return int(value)
    log.info("nobody tells max.message.bytes of %r: taking the default", topic)
    return DEFAULT_MESSAGE_BYTES
