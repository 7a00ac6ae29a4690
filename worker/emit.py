"""Outputs: predictions and dead letters to Kafka, acked before anything is saved.

Owns how outputs are packed into producer requests and what a dead letter looks like. It knows an
aiokafka producer and topic names; it decides nothing about states. Called by worker/owner.py, once
per partition and turn; one call at a time per partition keeps the output in order.

A dead letter holds the original key and value; its headers say why and where from:
keyfold-reason, keyfold-topic, keyfold-partition, keyfold-offset, keyfold-bundle, and
keyfold-truncated (the value's original size in bytes) where it did not fit and was cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError

from keyfold.export.events import MAX_KEY_BYTES
from keyfold.worker.errors import TopicError

# The broker's default limit of a request's record set is 1 MiB less a few bytes.
MAX_REQUEST_BYTES = 900_000
TRUNCATED_BYTES = 512 * 1024

Headers = list[tuple[str, bytes]]
NO_HEADERS: Headers = []
Message = tuple[bytes | None, bytes | None, Headers]  # key, value, headers


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


@dataclass(frozen=True, slots=True)
class Destination:
    """Where outputs go."""

    source: str  # the input topic, for dead letters' headers
    output: str  # topic of predictions
    dead_letter: str  # topic of rejects
    bundle: str  # bundle id


class Emitter:
    """Sends outputs and waits for their acks."""

    def __init__(self, producer: Callable[[], Any], destination: Destination) -> None:
        self._producer = producer  # of an aiokafka producer, connected
        self._to = destination

    async def send(self, partition: int, outputs: Sequence[Outputs]) -> None:
        """Send the outputs of a source partition, in order, and wait until all are acked.

        Raises aiokafka's KafkaError when the producer gave up; nothing may be saved then.
        """
        # Nothing is built per prediction here: at this rate garbage collection would show.
        messages = chain.from_iterable(
            zip(o.keys, o.payloads, repeat(NO_HEADERS), strict=False) for o in outputs
        )
        acks = await self._queue(self._to.output, partition, messages)
        letters = [letter for o in outputs for letter in o.dead_letters]
        if letters:
            await self._send_dead_letters(partition, letters)
        try:
            await asyncio.gather(*acks)
        except MessageSizeTooLargeError as error:
            raise TopicError(
                f"topic {self._to.output!r}: a prediction of {self._to.source}:{partition} does "
                "not fit its max.message.bytes; raise that"
            ) from error

    async def _send_dead_letters(self, source: int, letters: Sequence[DeadLetter]) -> None:
        topic = self._to.dead_letter
        count = len(await self._producer().partitions_for(topic)) or 1
        partition = source % count
        messages = [self._message(source, letter) for letter in letters]
        try:
            await asyncio.gather(*await self._queue(topic, partition, messages))
        except MessageSizeTooLargeError:
            # The value fitted its own topic but not this one, headers and all. One by one.
            for message in messages:
                await self._send_or_truncate(topic, partition, message)

    async def _send_or_truncate(self, topic: str, partition: int, message: Message) -> None:
        try:
            await asyncio.gather(*await self._queue(topic, partition, [message]))
        except MessageSizeTooLargeError:
            key, value, headers = message
            size = len(value or b"")
            marked = [*headers, ("keyfold-truncated", str(size).encode())]
            cut = (value or b"")[:TRUNCATED_BYTES]
            short_key = None if key is None else key[:MAX_KEY_BYTES]
            await asyncio.gather(*await self._queue(topic, partition, [(short_key, cut, marked)]))

    async def _queue(
        self, topic: str, partition: int, messages: Iterable[Message]
    ) -> list[Awaitable[Any]]:
        """Hand messages to the producer in order; return what resolves when they are acked."""
        producer = self._producer()
        now_ms = int(time.time() * 1000)
        acks: list[Awaitable[Any]] = []
        builder = producer.create_batch()
        for key, value, headers in messages:
            if builder.append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                acks.append(await producer.send_batch(builder, topic, partition=partition))
                builder = producer.create_batch()
                builder.append(timestamp=now_ms, key=key, value=value, headers=headers)
        if builder.record_count():
            acks.append(await producer.send_batch(builder, topic, partition=partition))
        return acks

    def _message(self, source: int, letter: DeadLetter) -> Message:
        headers = [
            ("keyfold-reason", letter.reason.encode()),
            ("keyfold-topic", self._to.source.encode()),
            ("keyfold-partition", str(source).encode()),
            ("keyfold-offset", str(letter.offset).encode()),
            ("keyfold-bundle", self._to.bundle.encode()),
        ]
        return letter.key, letter.value, headers
