"""Exactly-once outputs: one Kafka transaction per turn, one transactional producer per partition.

Owns the producers that are fenced by the input partition's transactional id, what one transaction
holds (the group offset C first, then predictions and dead letters) and how C is read back. It
decides nothing about offsets or states. Plugged into worker/surroundings.py in place of
worker/emit.py's Emitter, whose packing it uses; called by worker/owner.py and worker/saver.py.

A producer is used for as long as its transactions end well. Whatever else happens, a cancellation
included, it is dropped and the outcome is unknown: only the next `open` settles it, because
InitProducerId ends or aborts what its transactional id had begun before it answers. `send` never
opens by itself: it would fence a new owner and emit what that one has emitted already.

Private names of aiokafka 0.14 are used in the functions at the end and held by
tests/worker/test_transactions.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import aiokafka
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    InvalidTransactionTimeout,
    KafkaError,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownError,
    UnsupportedVersionError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from keyfold.export.connection import Connection
from keyfold.export.refusals import acl
from keyfold.worker.config import Kafka
from keyfold.worker.emit import MAX_REQUEST_BYTES, Destination, Emitter, Outputs
from keyfold.worker.errors import NotOwner, SetUpError
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.kafka.stable_offset import stable_group_offset
from keyfold.worker.protocol import GroupOffset

log = logging.getLogger(__name__)

DROP_S = 2.0  # longest time a dropped producer may take to close its connections
CANCELS = 10  # its sender waits for each request under way unless told again
CANCEL_AGAIN_S = 0.1
# The markers of a transaction are written after its end was acked, a few milliseconds later; until
# then the next one is told to come back. aiokafka's 100 ms would be most of a transaction's time.
SOON_S = 0.003
SOON_FOR_S = 0.25  # whoever is told to come back for longer waits as long as usual

FENCED = (ProducerFenced, InvalidProducerEpoch)
FORBIDDEN = (
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
# What brokers without transactions answer: Tansu 0.6 says UNKNOWN_SERVER_ERROR.
NO_TRANSACTIONS = (UnknownError, UnsupportedVersionError, IncompatibleBrokerVersion)


class TransactionFailed(KafkaError):  # type: ignore[misc]  # aiokafka is untyped here
    """A transaction did not end well or could not begin; what became of it, a new ACQUIRE tells."""


class Transactions(Emitter):
    """Sends outputs and the group offset together: exactly once."""

    def __init__(
        self, kafka: Kafka, destination: Destination, connection: Connection | None = None
    ) -> None:
        """Prepare; without `connection` the brokers of `kafka` are plaintext ones."""
        super().__init__(_no_producer, destination)
        self._kafka, self._alert = kafka, destination.alert
        self._connection = connection or Connection(kafka.brokers)
        # Our own clock must run out before the broker aborts the transaction and fences us for it.
        self._timeout_s = min(kafka.request_timeout_s, kafka.transaction_timeout_s)
        self._producers: dict[int, Any] = {}  # by input partition: open, no transaction failed
        self._drops: dict[asyncio.Task[None], int] = {}  # under way, and their input partitions

    async def open(self, partition: int) -> None:
        """Start the partition's producer anew: fence older ones, settle their transaction.

        Raises TransactionFailed for what may be tried again, SetUpError for what may not.
        """
        self._discard(partition)
        producer = self._producers[partition] = self._new_producer(partition)
        with (
            self._dropping_unless_done(partition),
            self._judging(partition, producer, "not opened"),
        ):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await producer.start()
            except (*NO_TRANSACTIONS, InvalidTransactionTimeout) as error:
                raise self._set_up_error(error) from error

    async def close(self, partition: int) -> None:
        """Drop the partition's producer; a transaction that is open stays so until the next open.

        Comes back within a few seconds, even if no broker answers.
        """
        self._discard(partition)
        drops = [task for task, number in self._drops.items() if number == partition]
        if drops:
            await asyncio.wait(drops)

    async def send(
        self, partition: int, outputs: Sequence[Outputs], upto: GroupOffset | None = None
    ) -> None:
        """Emit outputs and move the group offset to `upto` in one transaction.

        After any error or a cancellation the partition needs `open` again. Raises TransactionFailed
        when the outcome is unknown, NotOwner when another producer of the partition was opened,
        TopicError for a message that cannot fit its topic.
        """
        if upto is None:
            raise ValueError("upto: expected the group offset that goes with the outputs, got None")
        producer = self._opened(partition)
        with self._dropping_unless_done(partition), self._judging(partition, producer, "no end"):
            async with asyncio.timeout(self._timeout_s):
                await producer.begin_transaction()
                # Offsets first (aiokafka issue 1004).
                await self._send_offset(producer, partition, upto)
                await self._packing.emit(producer, partition, outputs)
                await producer.commit_transaction()

    async def group_offset(self, partition: int) -> GroupOffset | None:
        """Return C with the effect of every transaction that `open` settled; None: there is none.

        Raises TransactionFailed for what may be tried again.
        """
        producer, kafka = self._opened(partition), self._kafka
        with self._judging(partition, producer, "group offset not told"):
            async with asyncio.timeout(self._timeout_s):
                return await stable_group_offset(
                    producer.client, kafka.group, kafka.input, partition
                )

    # -- one producer ------------------------------------------------------------------------------

    def _new_producer(self, partition: int) -> Any:
        kafka = self._kafka
        producer = aiokafka.AIOKafkaProducer(
            **self._connection.aiokafka(),
            transactional_id=f"{kafka.group}:{kafka.input}:{partition}",
            transaction_timeout_ms=int(kafka.transaction_timeout_s * 1000),
            request_timeout_ms=int(kafka.request_timeout_s * 1000),
            acks="all",
            compression_type=None if kafka.compression == "none" else kafka.compression,
            max_batch_size=MAX_REQUEST_BYTES,
            max_request_size=2 * MAX_REQUEST_BYTES,
        )
        end_at_once(producer.client)
        return producer

    def _opened(self, partition: int) -> Any:
        producer = self._producers.get(partition)
        if producer is None:
            raise TransactionFailed(
                f"{self._kafka.input}:{partition}: expected a transactional producer, got none"
            )
        return producer

    async def _send_offset(self, producer: Any, partition: int, upto: GroupOffset) -> None:
        where = TopicPartition(self._kafka.input, partition)
        with _coming_back_soon(producer):
            await producer.send_offsets_to_transaction(
                {where: OffsetAndMetadata(upto.offset, upto.metadata)}, self._kafka.group
            )

    @contextlib.contextmanager
    def _dropping_unless_done(self, partition: int) -> Iterator[None]:
        """Drop the partition's producer on every way out but the good one."""
        producer = self._producers[partition]
        try:
            yield
        except BaseException:
            if self._producers.get(partition) is producer:
                self._discard(partition)
            raise

    def _discard(self, partition: int) -> None:
        """Drop a producer in the background: nobody may have to wait for a broker that is gone."""
        producer = self._producers.pop(partition, None)
        if producer is not None:
            task = asyncio.create_task(_drop(producer))
            self._drops[task] = partition
            task.add_done_callback(lambda done: self._drops.pop(done))

    @contextlib.contextmanager
    def _judging(self, partition: int, producer: Any, what: str) -> Iterator[None]:
        """Turn what aiokafka raises into what a caller can act on."""
        where = f"{self._kafka.input}:{partition}"
        try:
            yield
        # AssertionError: aiokafka's own checks of a transaction's state.
        except (KafkaError, OSError, AssertionError) as error:
            causes = [*_chain(error), *_chain(_end_of_sender(producer))]
            if any(isinstance(cause, FENCED) for cause in causes):
                raise NotOwner(
                    f"{where}: another worker has opened this partition's transactional producer"
                ) from error
            for cause in causes:
                if isinstance(cause, FORBIDDEN):
                    raise SetUpError(self._forbidden(cause, partition)) from error
            late = isinstance(error, TimeoutError)
            why = f"no answer within {self._timeout_s:g} s" if late else repr(causes[-1])
            raise TransactionFailed(f"{where}: transaction: {what}: {why}") from error

    def _forbidden(self, cause: BaseException, partition: int) -> str:
        kafka, connection = self._kafka, self._connection
        if isinstance(cause, TransactionalIdAuthorizationFailed):
            name = f"{kafka.group}:{kafka.input}:{partition}"
            return acl(connection, "Write", "transactional-id", name)
        if isinstance(cause, GroupAuthorizationFailedError):
            return acl(connection, "Read", "group", kafka.group)
        named = cause.args[0] if cause.args else ""  # aiokafka: a topic, or a set of them
        topics = named if isinstance(named, set) else {named}
        refused = self._alert if self._alert and self._alert in topics else kafka.output
        return acl(connection, "Write", "topic", refused)

    def _set_up_error(self, error: KafkaError) -> SetUpError:
        if isinstance(error, InvalidTransactionTimeout):
            return SetUpError(
                "kafka.transaction_timeout_s: expected at most the brokers' "
                f"transaction.max.timeout.ms, got {self._kafka.transaction_timeout_s:g} s"
            )
        return SetUpError(
            "worker.outputs: expected brokers with transactions for 'exactly-once', got "
            f"{error!r} from {self._connection}; set 'at-least-once' or use another broker"
        )


def _no_producer() -> Any:
    raise TransactionFailed("exactly-once outputs have a producer per partition, no common one")


def _end_of_sender(producer: Any) -> BaseException | None:
    """Return what ended the producer's sender, None while it runs."""
    task = producer._sender.sender_task
    ended = task is not None and task.done() and not task.cancelled()
    return task.exception() if ended else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _coming_back_soon(producer: Any) -> Iterator[None]:
    """Have it ask again soon while the former transaction's markers are being written."""
    sender = producer._sender
    usual_s = sender._retry_backoff
    sender._retry_backoff = SOON_S
    loop = asyncio.get_running_loop()
    later = loop.call_later(SOON_FOR_S, setattr, sender, "_retry_backoff", usual_s)
    try:
        yield
    finally:
        later.cancel()
        sender._retry_backoff = usual_s


async def _drop(producer: Any) -> None:
    """End a producer without its transaction; a broker that is gone holds nobody up.

    aiokafka 0.14's stop() waits for every message and request under way.
    """
    task, accumulator = producer._sender.sender_task, producer._message_accumulator
    for _ in range(CANCELS):
        if task is None or task.done():
            break
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
    ended = producer._txn_manager.wait_for_transaction_end()
    if ended is not None and ended.done() and not ended.cancelled():
        ended.exception()  # else asyncio complains that nobody has looked at it
    accumulator._batches.clear()
    accumulator._pending_batches.clear()
    try:
        async with asyncio.timeout(DROP_S):
            await producer.stop()
    except (KafkaError, OSError) as error:
        log.info("a dropped producer did not end well: %r", error)
