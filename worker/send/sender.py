"""Sends events to Kafka, keyed and partitioned as Java clients do it.

Owns the producer's settings, the pace, the wait for acks, and what topics there are. It knows
records, not models or files. Called by cli.py (the command), the demo, the benchmark and
tests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from keyfold.export.connection import Connection
from keyfold.export.refusals import acl, ask
from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.kafka.log import FORBIDDEN
from keyfold.worker.send.event_log import Entry

logger = logging.getLogger(__name__)

TOPIC_TIMEOUT_S = 10.0  # of a request about topics
TIMEOUT_S = 30.0  # of an event's delivery
TICK_S = 0.2  # between two looks at the progress line
POLL_EVERY = 500  # events between two looks at the acks when nothing is waited for


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast events are sent; the defaults: as fast as the broker takes them."""

    rate: float | None = None  # events/s
    time_lapse: float | None = None  # event time passes this many times faster than real time


@dataclass(frozen=True, slots=True)
class Sent:
    """What has been sent and acked."""

    events: int  # acked by all in-sync replicas
    seconds: float  # from the first event to the last ack
    idempotent: bool  # whether the broker removed a retry's duplicates


def send(
    kafka: Connection | str,
    topic: str,
    entries: Iterable[Entry],
    pace: Pace = Pace(),
    tick: Callable[[int], None] = lambda sent: None,
) -> Sent:
    """Send events in order and wait for all acks; record timestamps are the time of sending.

    A record's partition is murmur2(key), as with Java clients. Raises Crash when an event could not
    be delivered, and whatever `entries` raises, after the events before it were acked.
    """
    sender = _Sender(Connection.of(kafka), topic)
    begin = time.monotonic()
    clock = Clock(pace)
    looked = begin
    try:
        for entry in entries:
            sender.wait(clock.due_in(entry, time.monotonic()))
            sender.add(entry)
            now = time.monotonic()
            if now - looked > TICK_S:
                looked = now
                tick(sender.acked)
    except Crash as error:
        error.args = (f"{error} (after {sender.handed_over:,} events were sent)",)
        raise
    finally:
        # Also when a bad line or Ctrl-C ends the log early: what was handed over is delivered.
        sender.finish()
    tick(sender.acked)
    return Sent(sender.acked, time.monotonic() - begin, sender.idempotent)


def create_topic(kafka: Connection | str, topic: str, partitions: int) -> None:
    """Create a topic, or check that the existing one has this many partitions."""
    found = partition_count(kafka, topic)
    if found is None:
        connection = Connection.of(kafka)
        admin = AdminClient({**connection.librdkafka(), "log_level": 2})
        new = NewTopic(topic, num_partitions=partitions, replication_factor=-1)  # broker's default
        try:
            admin.create_topics([new], request_timeout=TOPIC_TIMEOUT_S)[topic].result()
        except KafkaException as error:
            if error.args[0].code() in FORBIDDEN:
                raise TopicError(acl(connection, "Create", "topic", topic)) from error
            raise TopicError(f"topic {topic!r}: cannot be created: {_text(error)}") from error
    elif found != partitions:
        raise TopicError(f"topic {topic!r}: expected {partitions} partitions, got {found}")


def partition_count(kafka: Connection | str, topic: str) -> int | None:
    """Return a topic's partition count, None when there is no such topic, or none to be seen."""
    connection = Connection.of(kafka)
    admin = AdminClient({**connection.librdkafka(), "log_level": 2})

    def question(limit_s: float) -> Any:
        return admin.list_topics(timeout=limit_s).topics  # asking for one could create it

    topics = ask(connection, question, TOPIC_TIMEOUT_S, (KafkaException,))
    return len(topics[topic].partitions) if topic in topics else None


class Clock:
    """Says when an event is due; time is an argument."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began: float | None = None
        self._first_ms = 0.0
        self._count = 0

    def due_in(self, entry: Entry, now_s: float) -> float:
        """Return the seconds until the next event is due, at most 0 when it is late."""
        pace = self._pace
        if pace.rate is None and pace.time_lapse is None:
            return 0.0
        if self._began is None:
            self._began, self._first_ms = now_s, entry.time_ms
        elapsed = 0.0
        if pace.rate is not None:
            elapsed = self._count / pace.rate
        if pace.time_lapse is not None:
            elapsed = (entry.time_ms - self._first_ms) / 1000 / pace.time_lapse
        self._count += 1
        return self._began + elapsed - now_s


class _Sender:
    """A producer with a first event that shows whether the broker can be idempotent."""

    def __init__(self, kafka: Connection, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self.acked = 0
        self.idempotent = True
        self.handed_over = 0
        self._failure: KafkaError | None = None
        self._producer = self._connect()

    def add(self, entry: Entry) -> None:
        """Hand one event to the producer."""
        self._raise_failure()
        if self.handed_over == 0:
            self._first(entry)
        else:
            self._produce(entry)
            if self.handed_over % POLL_EVERY == 0:
                self._producer.poll(0)
        self.handed_over += 1

    def wait(self, seconds: float) -> None:
        """Let the time pass until the next event is due, taking in acks."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._producer.poll(min(left, TICK_S))

    def finish(self) -> None:
        """Wait for the acks of all events handed over."""
        left = self._producer.flush(TIMEOUT_S)
        self._raise_failure()
        if left:
            raise Crash(f"Kafka at {self._kafka}: {left} events were not acked in {TIMEOUT_S} s")

    def _connect(self) -> Any:
        return Producer(
            {
                **self._kafka.librdkafka(),
                "acks": "all",
                "enable.idempotence": self.idempotent,
                # Without idempotence only one request at a time keeps the order of a retry.
                **({} if self.idempotent else {"max.in.flight": 1}),
                "partitioner": "murmur2_random",  # Java's; "random" is for null keys only
                "linger.ms": 5,
                "delivery.timeout.ms": int(TIMEOUT_S * 1000),
                "queue.buffering.max.messages": 100_000,
                "on_delivery": self._delivered,
                "error_cb": self._note,
                "log_level": 2,  # what matters comes back as errors
            }
        )

    def _first(self, entry: Entry) -> None:
        """Send one event and wait for its ack; without idempotence where the broker refuses it."""
        self._produce(entry)
        self._producer.flush(TIMEOUT_S)
        if self._failure is not None and self._failure.fatal() and self.acked == 0:
            logger.warning(
                "the broker refuses idempotent producers (%s): a retry may send an event twice",
                self._failure.str(),
            )
            self._failure, self.idempotent = None, False
            self._producer = self._connect()
            self._produce(entry)
            self._producer.flush(TIMEOUT_S)
        self._raise_failure()

    def _produce(self, entry: Entry) -> None:
        while True:
            try:
                self._producer.produce(self._topic, entry.value, entry.key)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                # Often the fatal error that error_cb has noted already.
                self._failure = self._failure or error.args[0]
                return

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acked += 1
        elif self._failure is None or not self._failure.fatal():
            self._failure = error

    def _note(self, error: KafkaError) -> None:
        if error.fatal():
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            if self._failure.code() in FORBIDDEN:
                raise TopicError(acl(self._kafka, "Write", "topic", self._topic))
            raise Crash(
                f"topic {self._topic!r} at {self._kafka}: not delivered: {self._failure.str()} "
                f"({self.acked:,} events were)"
            )


def _text(error: KafkaException) -> str:
    return str(error.args[0].str())
