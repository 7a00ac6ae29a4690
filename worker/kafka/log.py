"""Bounded reading of topics for the commands that look at a log from outside.

Owns a confluent-kafka consumer that is assigned partitions by hand: it joins no group, stores no
offset and reads committed records only. It knows records, not events or predictions. Called by
keyfold-verify and keyfold-tail; the worker itself reads through Faust.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from keyfold.export.connection import Connection
from keyfold.export.refusals import NotLetIn, acl, ask, why_refused
from keyfold.worker.errors import Crash, TopicError

CHUNK = 1000  # messages taken from the client at once
POLL_S = 0.2  # so that Ctrl-C is heard
FORBIDDEN = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)


def _of_no_group(message: Message) -> bool:
    """Tell librdkafka's complaint that it may not look after a group, which we never joined."""
    error = message.error()
    return error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED


@dataclass(frozen=True, slots=True)
class Extent:
    """What a partition held at one instant."""

    start: int  # first offset still there
    end: int  # the next offset, as far as committed records go


class KafkaLog:
    """A reader of topics, to be used in a `with` statement, by one thread."""

    def __init__(self, kafka: Connection | str, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._kafka = Connection.of(kafka)
        self._problem = "no answer"
        self._consumer = Consumer(
            {
                **self._kafka.librdkafka(),
                "group.id": f"keyfold-reader-{uuid.uuid4()}",  # required, never joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "fetch.error.backoff.ms": 50,
                "queued.max.messages.kbytes": 32 * 1024,
                "error_cb": self._note,
                "log_level": 0,  # what matters comes back as errors
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()

    def partitions(self, topic: str) -> int:
        """Return a topic's partition count. Raises TopicError when there is no such topic."""

        def question(limit_s: float) -> Any:
            return self._consumer.list_topics(topic, timeout=limit_s).topics[topic]

        found = ask(self._kafka, question, self._timeout_s, (KafkaException,))
        if found.error is not None and found.error.code() in FORBIDDEN:
            raise NotLetIn(acl(self._kafka, "Describe", "topic", topic))
        if found.error is not None or not found.partitions:
            raise TopicError(f"topic {topic!r}: expected it at {self._kafka}, got none")
        return len(found.partitions)

    def extent(self, topic: str, partition: int) -> Extent:
        """Return a partition's first and next offset, committed records only.

        A broker's answer about the end is not taken on trust: Tansu 0.6.0 answers with the last
        record set's first offset + 1, so the tail is read until the partition reports its end.
        """
        where = TopicPartition(topic, partition)

        def question(limit_s: float) -> tuple[int, int]:
            try:
                return self._consumer.get_watermark_offsets(where, timeout=limit_s)
            except KafkaException as error:
                if error.args[0].code() in FORBIDDEN:
                    raise self._failure(error.args[0], topic) from error
                raise

        start, end = ask(self._kafka, question, self._timeout_s, (KafkaException,))
        seen = end
        deadline = time.monotonic() + 1.0  # under a steady stream the end runs away
        for message in self._follow(topic, partition, max(start, end - 1)):
            offset = message.offset() or 0
            at_end = message.error() is not None
            seen = max(seen, offset if at_end else offset + 1)
            if at_end or time.monotonic() > deadline:
                break
        return Extent(start, seen)

    def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """Return the offset of the first record as young as this, None when none is."""
        where = TopicPartition(topic, partition, time_ms)

        def question(limit_s: float) -> TopicPartition:
            return self._consumer.offsets_for_times([where], timeout=limit_s)[0]

        found = ask(self._kafka, question, self._timeout_s, (KafkaException,))
        if found.error is not None:
            raise self._failure(found.error, topic, partition)
        return found.offset if found.offset >= 0 else None

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Message]:
        """Yield the records with offsets in [start, end) in order.

        Raises Crash when `start` is no longer, or not yet, in the log.
        """
        if start >= end:
            return
        for message in self._follow(topic, partition, start):
            offset = message.offset() or 0
            if offset < end and message.error() is None:
                yield message
            # Behind the last record there may be transaction markers: only the partition's end
            # or a later record shows that there is no more below `end`.
            if offset >= end - (message.error() is None):
                return

    def follow(self, topic: str, starts: Sequence[int | None]) -> None:
        """Begin to read all partitions of a topic, each from an offset (None: the oldest)."""
        self._consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING if start is None else start)
                for partition, start in enumerate(starts)
            ]
        )

    def poll(self, timeout_s: float) -> list[Message]:
        """Return the next records of what is followed, waiting at most `timeout_s` for some."""
        return [message for message in self._some(timeout_s) if not self._is_end(message)]

    def _follow(self, topic: str, partition: int, start: int) -> Iterator[Message]:
        """Yield records and end-of-partition events, for ever."""
        self._consumer.assign([TopicPartition(topic, partition, start)])
        silent_since = time.monotonic()
        try:
            while True:
                messages = self._some(POLL_S)
                if messages:
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > self._timeout_s:
                    raise Crash(f"{topic}:{partition}: no records from {self._kafka}: "
                                f"{self._why()}")  # fmt: skip
                for message in messages:
                    self._is_end(message)
                    yield message
        finally:
            self._consumer.unassign()

    def _some(self, timeout_s: float) -> list[Message]:
        # consume(n, timeout) waits for all n of them; poll waits for one.
        first = self._consumer.poll(timeout_s)
        found = [] if first is None else [first, *self._consumer.consume(CHUNK, 0)]
        return [message for message in found if not _of_no_group(message)]

    def _is_end(self, message: Message) -> bool:
        """Tell an end-of-partition event from a record. Raises Crash on any other error."""
        error = message.error()
        if error is None:
            return False
        if error.code() == KafkaError._PARTITION_EOF:
            return True
        raise self._failure(error, message.topic() or "", message.partition())

    def _note(self, error: KafkaError) -> None:
        self._problem = error.str()

    def _failure(self, error: KafkaError, topic: str, partition: int | None = None) -> Crash:
        if error.code() in FORBIDDEN:
            return NotLetIn(acl(self._kafka, "Read", "topic", topic))
        if partition is not None:
            return Crash(f"{topic}:{partition}: {error.str()}")
        return Crash(f"Kafka at {self._kafka}: {error.str()} ({self._why()})")

    def _why(self) -> str:
        refusal = why_refused(self._kafka)
        return self._problem if refusal is None else refusal.text
