"""What the watchdog asks of Kafka, by a client of its own: the worker's may be what hangs.

Owns a confluent-kafka consumer that joins no group, is assigned by hand and reads committed records
only, so that a log's end is its last stable offset. No answer is an answer here: nothing raises.
Used by watchdog.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from keyfold.export.connection import Connection

CONFIRM_TIMEOUT_S = 10.0  # of each question of has_record
OFFSET_END = -1  # as a timestamp it asks for the log's end
COORDINATOR_AWAY = (
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
)


class LogProbe:
    """A client made when it is first needed, for one thread."""

    def __init__(self, kafka: Connection | str, topic: str, group: str) -> None:
        self._kafka, self._topic, self._group = Connection.of(kafka), topic, group
        self._made: Consumer | None = None

    def ends(self, numbers: Sequence[int], timeout_s: float) -> Mapping[int, int]:
        """Return the log ends of partitions, committed records only; without those unknown."""
        places = [self._place(number, OFFSET_END) for number in numbers]
        try:
            found = self._consumer().offsets_for_times(places, timeout=timeout_s)
        except KafkaException:
            return {}
        return {place.partition: place.offset for place in found if place.error is None}

    def has_record(self, number: int, offset: int) -> bool | None:
        """Return whether there is a committed record at or after `offset`; None: no answer.

        The group's coordinator has to answer too: without it aiokafka may rightly wait.
        """
        consumer = self._consumer()
        try:
            place = self._place(number)
            self._ask_coordinator()
            start, _ = consumer.get_watermark_offsets(place, timeout=CONFIRM_TIMEOUT_S)
            consumer.assign([self._place(number, max(start, offset))])
            message = consumer.poll(CONFIRM_TIMEOUT_S)
            consumer.unassign()
        except KafkaException:
            return None
        if message is None:
            return None
        error = message.error()
        if error is None:
            return True
        return False if error.code() == KafkaError._PARTITION_EOF else None

    def close(self) -> None:
        """Let go of the broker, if it was ever asked."""
        if self._made is not None:
            self._made.close()

    def _ask_coordinator(self) -> None:
        """Raises KafkaException when the group's coordinator is away.

        Not by the group's offsets: those in a transaction that this very worker left open would be
        waited for.
        """
        admin = AdminClient({**self._kafka.librdkafka(), "log_level": 2})
        asked = admin.describe_consumer_groups([self._group], request_timeout=CONFIRM_TIMEOUT_S)
        try:
            asked[self._group].result()
        except KafkaException as error:
            if error.args[0].code() in COORDINATOR_AWAY:
                raise

    def _place(self, number: int, offset: int = 0) -> TopicPartition:
        return TopicPartition(self._topic, number, offset)

    def _consumer(self) -> Consumer:
        if self._made is None:
            self._made = Consumer(
                {
                    **self._kafka.librdkafka(),
                    "group.id": self._group,  # asked about, never joined
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "isolation.level": "read_committed",
                    "auto.offset.reset": "error",
                    "enable.partition.eof": True,
                    "error_cb": lambda error: None,  # no answer is an answer
                    "log_level": 2,
                }
            )
        return self._made
