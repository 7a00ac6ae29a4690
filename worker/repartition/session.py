"""A consumer and its transactional producer: moves records to another key, exactly once.

Owns the clients of keyfold-worker repartition and what one transaction holds: up to CHUNK records,
and the positions behind them (KIP-447). Whatever does not end well raises Again: what the
transaction held is not there for readers of committed records, and a new session begins behind the
last one that ended well. Called by cli.py, which says what becomes of a record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from keyfold.export.refusals import acl
from keyfold.worker.config import Config
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.repartition.begin import Begin, Place
from keyfold.worker.repartition.merge import Merge
from keyfold.worker.repartition.work import Again, Moved, Work

log = logging.getLogger(__name__)

FETCH_S = 0.2  # longest wait for records, so that a stop is heard
CHUNK = 1000  # records of one transaction, at most
AHEAD = 5000  # records of a partition that wait for those of others; then it is paused
PATIENCE = 3  # session timeouts: a dead instance's partitions are given to others after one
REPORT_S = 10.0  # between two lines about what was done
FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
FORBIDDEN = {
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ("Write", "transactional-id"),
    KafkaError.GROUP_AUTHORIZATION_FAILED: ("Read", "group"),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: ("Read and Write", "topic"),
}


class Stop(Protocol):
    """Whether somebody wants it to end."""

    @property
    def asked(self) -> bool:
        """Whether that is so."""


class Session:
    """From a first record, or a failure, to the next failure; use it in a `with` statement."""

    def __init__(self, config: Config, work: Work) -> None:
        self._config, self._work, self._connection = config, work, config.connection
        self._timeout_s = config.kafka.request_timeout_s
        self._patience_s = PATIENCE * config.kafka.session_timeout_s  # with other instances
        self._merge: Merge[Message] = Merge()
        self._ours: list[int] = []  # partitions given to us by the group
        self._paused: set[int] = set()
        self._ending = False
        self._letters = 1  # partitions of the dead-letter topic
        common = {**config.connection.librdkafka(), "log_level": 2}
        self._consumer = Consumer(
            {
                **common,
                "group.id": work.group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",  # also waits for unsettled positions
                "auto.offset.reset": "error",  # begin.py says where
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": 32 * 1024,
                "session.timeout.ms": int(config.kafka.session_timeout_s * 1000),
                "fetch.wait.max.ms": 50,
            }
        )
        self._begin = Begin(config, work, self._consumer, self._timeout_s)
        self._producer = Producer(
            {
                **common,
                "transactional.id": work.transactional_id,
                "transaction.timeout.ms": int(config.kafka.transaction_timeout_s * 1000),
                "partitioner": "murmur2_random",  # Java's
                "compression.type": config.kafka.compression,
                "message.max.bytes": work.most_bytes,
                # Several in one request are never more than any of the topics takes; a larger
                # one, such as a reject whose topic takes more, is a request of its own.
                "batch.size": work.request_bytes,
                "linger.ms": 5,
            }
        )

    def __enter__(self) -> Session:
        try:
            # Ends or aborts what a former program of this name had begun.
            self._ask("begin", self._producer.init_transactions, self._timeout_s)
            found = self._producer.list_topics(self._work.dead_letter, self._timeout_s)
            self._letters = max(len(found.topics[self._work.dead_letter].partitions), 1)
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.subscribe(
            [self._work.source], on_assign=self._assigned, on_revoke=self._revoked
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._ending = True
        self._consumer.close()

    def run(self, stop: Stop, once: bool) -> None:
        """Move records until told to stop; with `once` until all that is there was moved.

        Raises Again, SetUpError.
        """
        reported = asked = begun = time.monotonic()
        taken: Sequence[tuple[int, Message]] = ()
        while not stop.asked:
            self._fetch(0.0 if len(taken) == CHUNK else FETCH_S)
            taken = self._merge.take(CHUNK)
            if taken:
                self._move(taken)
                begun = time.monotonic()
            elif once and self._merge.done() and time.monotonic() - asked > FETCH_S:
                asked = time.monotonic()
                if self._is_all_moved(waited_s=asked - begun):
                    return
            self._hold_back()
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                log.info("%s", self._work)

    def _is_all_moved(self, waited_s: float) -> bool:
        """Say whether the partitions that others have are at their ends like ours.

        Those of an instance that died come to us soon. Raises SetUpError when they stay behind.
        """
        source = self._work.source
        try:
            known = self._consumer.list_topics(source, self._timeout_s).topics[source].partitions
            others = [TopicPartition(source, n) for n in known if n not in self._ours]
            places = self._consumer.committed(others, self._timeout_s) if others else []
            behind = [p.partition for p in places if self._holds_more(p)]
        except KafkaException as error:
            self._fail("committed positions", error)
        if behind and waited_s > self._patience_s:
            numbers = ", ".join(map(str, sorted(behind)))
            raise SetUpError(
                f"--once: partitions {numbers} of {source} are another instance's and hold records "
                "that are not moved yet: run this again when that one has ended"
            )
        return not behind

    def _holds_more(self, place: TopicPartition) -> bool:
        """Say whether readers of committed records find any behind a position."""
        low, high = self._consumer.get_watermark_offsets(place, self._timeout_s)
        if max(place.offset, low) >= high:
            return False
        # Behind the last record there may be nothing but the marks of ended transactions.
        source, number = self._work.source, place.partition
        with open_log(self._config) as log:
            held = log.extent(source, number)
            begin = max(place.offset, held.start)
            return any(True for _ in log.read(source, number, begin, held.end))

    # -- consuming ---------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, where: Sequence[TopicPartition]) -> None:
        if self._ending:  # one that comes while the consumer closes, which answers no more
            return
        source, given = self._work.source, [one.partition for one in where]
        try:
            places = self._begin.places(given)
        except KafkaException as error:
            self._fail("begin", error)
        ours = [one for one in places if one.partition in given]
        consumer.assign([TopicPartition(source, one.partition, one.offset) for one in ours])
        self._settle(places, given)  # at once: no assignment ends between the look and this
        self._ours = given
        self._merge.assign(self._ours)
        self._paused.clear()

    def _revoked(self, consumer: Consumer, where: Sequence[TopicPartition]) -> None:
        # What waits was not moved: whoever gets the partition next reads it again.
        self._ours = []
        self._merge.assign(())

    def _fetch(self, wait_s: float) -> None:
        # Alone: a poll() before it could return a record of an assignment that ends within it.
        for message in self._consumer.consume(CHUNK, wait_s):
            error, partition = message.error(), message.partition()
            if error is None and partition is not None:
                self._merge.add(partition, message)
            elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                self._merge.end(partition or 0)
            elif error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
                # Retention overtook us, or the topic was made anew: the next session tells.
                raise Again(f"{self._work.source}:{partition}: {error.str()}")
            elif error is not None:
                self._refuse(error)
                log.warning("%s: %s", self._work.source, error.str())

    def _hold_back(self) -> None:
        """Pause partitions that are far ahead of others, resume them when they are not."""
        ahead = set(self._merge.full(AHEAD))
        source = self._work.source
        if ahead - self._paused:
            self._consumer.pause([TopicPartition(source, n) for n in ahead - self._paused])
        less = {number for number in self._paused if number not in self._merge.full(CHUNK)}
        if less:
            self._consumer.resume([TopicPartition(source, number) for number in less])
        self._paused = (self._paused | ahead) - less

    # -- producing ---------------------------------------------------------------------------------

    def _move(self, taken: Sequence[tuple[int, Message]]) -> None:
        """Send records under their new keys, and the positions behind them, in one transaction."""
        producer = self._producer
        self._ask("begin", producer.begin_transaction)
        behind: dict[int, int] = {}
        moved = [self._work.moved(message) for _, message in taken]
        for (number, message), one in zip(taken, moved, strict=True):
            self._produce(number, one)
            behind[number] = (message.offset() or 0) + 1
        self._ask("positions", self._positions, behind)
        self._ask("end", producer.commit_transaction, self._timeout_s)
        self._work.count(moved)

    def _settle(self, places: Sequence[Place], ours: Sequence[int]) -> None:
        """Make the places where partitions begin the group's positions, before a record moves."""
        if all(one.known for one in places):
            return
        self._ask("first", self._producer.begin_transaction)
        try:
            first = self._begin.unmade(places, ours)
        except KafkaException as error:
            self._fail("begin", error)
        if first:
            self._ask("first positions", self._positions, first)
        self._ask("first end", self._producer.commit_transaction, self._timeout_s)

    def _positions(self, behind: Mapping[int, int]) -> None:
        source, group = self._work.source, self._consumer.consumer_group_metadata()
        where = [TopicPartition(source, number, offset) for number, offset in behind.items()]
        self._producer.send_offsets_to_transaction(where, group, self._timeout_s)

    def _produce(self, number: int, one: Moved) -> None:
        more: dict[str, Any] = {} if one.key_is_new else {"partition": number % self._letters}
        while True:
            try:
                self._producer.produce(
                    one.topic, one.value, one.key, timestamp=one.timestamp_ms,
                    headers=list(one.headers), **more,
                )  # fmt: skip
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(FETCH_S)
            except KafkaException as error:
                self._fail("record", error)

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> None:
        """Ask the brokers again while that may help."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                call(*arguments)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    self._fail(what, error)

    def _fail(self, what: str, error: KafkaException) -> NoReturn:
        """Drop the transaction. Raises Again, SetUpError."""
        reason: KafkaError = error.args[0]
        self._refuse(reason)
        if reason.code() in FENCED:
            raise SetUpError(
                f"another repartition runs as {self._work.transactional_id!r}: give each of "
                "several its own --instance"
            ) from error
        # Not aborted here: the next session's first question does that, as after a crash.
        raise Again(f"transaction: {what}: {reason.str()}") from error

    def _refuse(self, reason: KafkaError) -> None:
        """Raise SetUpError for what an administrator has to allow first."""
        if reason.code() not in FORBIDDEN:
            return
        operation, kind = FORBIDDEN[reason.code()]
        work = self._work
        name = {
            "group": work.group, "transactional-id": work.transactional_id,
            "topic": f"{work.source}, {work.target} and {work.dead_letter}",
        }[kind]  # fmt: skip
        raise SetUpError(acl(self._connection, operation, kind, name))
