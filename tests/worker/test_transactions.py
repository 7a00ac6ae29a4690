"""Exactly-once outputs on a real Kafka: outputs and the group offset come together or not at all.

What a read_committed consumer sees and what C says is compared after transactions that ended, that
were cut at every step, and whose producer was fenced. The last part holds the private names of
aiokafka that worker/transactions.py uses.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiokafka
import pytest
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.sender import BaseHandler, Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import Consumer, TopicPartition

from keyfold.worker.config import Kafka
from keyfold.worker.emit import TRUNCATED_BYTES, DeadLetter, Destination, Emitter, Outputs
from keyfold.worker.errors import NotOwner, SetUpError, TopicError
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.protocol import GroupOffset
from keyfold.worker.transactions import TransactionFailed, Transactions
from local.service_fixtures import MakeTopic
from local.services import ApacheKafka, EmbeddedKafka, KafkaService

PARTITIONS = 2
LETTER_LIMIT = 600_000  # max.message.bytes of the dead-letter topic


@dataclass(frozen=True, slots=True)
class Site:
    """Topics of one test and what they hold."""

    kafka: Kafka  # the worker's settings

    @property
    def destination(self) -> Destination:
        """Where a worker would emit."""
        return Destination(self.kafka.input, self.kafka.output, self.kafka.dead_letter, "bundle")

    @asynccontextmanager
    async def worker(self, partition: int = 0, **settings: Any) -> AsyncIterator[Transactions]:
        """Open one partition of a worker; close it at the end."""
        worker = Transactions(replace(self.kafka, **settings), self.destination)
        await worker.open(partition)
        try:
            yield worker
        finally:
            await worker.close(partition)

    def values(self, topic: str, partition: int = 0) -> list[bytes | None]:
        """Return what a read_committed consumer sees of a partition."""
        return [message.value() for message in self.messages(topic, partition)]

    def messages(self, topic: str, partition: int = 0) -> list[Any]:
        """Return a partition's committed messages."""
        with KafkaLog(self.kafka.brokers) as log:
            extent = log.extent(topic, partition)
            return list(log.read(topic, partition, extent.start, extent.end))

    def outputs(self, partition: int = 0) -> list[bytes | None]:
        """Return the committed predictions of a partition."""
        return self.values(self.kafka.output, partition)

    def log_end(self, topic: str, partition: int = 0) -> int:
        """Return a partition's end, unfinished transactions included."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.brokers,
                "group.id": "nobody",
                "isolation.level": "read_uncommitted",
            }
        )
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        consumer.close()
        return int(end)


@pytest.fixture
def site(
    real_kafka: KafkaService, make_topic: MakeTopic, unique_name: Callable[[str], str]
) -> Site:
    return Site(
        Kafka(
            brokers=real_kafka.address,
            input=make_topic("in", PARTITIONS),
            output=make_topic("out", PARTITIONS),
            dead_letter=make_topic("dead", 1, {"max.message.bytes": str(LETTER_LIMIT)}),
            group=unique_name("group"),
        )
    )


def outputs(*payloads: bytes, letters: tuple[DeadLetter, ...] = ()) -> list[Outputs]:
    return [Outputs([b"key"] * len(payloads), payloads, letters)]


def letter(offset: int, value: bytes | None = b"bad") -> DeadLetter:
    return DeadLetter(offset, b"key", value, "because")


def at(offset: int) -> GroupOffset:
    return GroupOffset(offset, "keyfold:r0")


class Reached(Exception):
    """The transaction has come to the step at which the test cuts it."""


@contextmanager
def cut(worker: Transactions, request: type, *, answered: bool) -> Iterator[asyncio.Event]:
    """Hold the producer of partition 0 at a kind of request for ever: sent and answered, or not.

    The event tells that it is held. It is what a SIGKILL at that point leaves behind.
    """
    client = worker._producers[0].client
    send, held = client.send, asyncio.Event()

    async def held_send(node: Any, asked: Any, **options: Any) -> Any:
        if held.is_set():
            await asyncio.Event().wait()
        if isinstance(asked, request):
            reply = await send(node, asked, **options) if answered else None
            held.set()
            await asyncio.Event().wait()
            return reply
        return await send(node, asked, **options)

    client.send = held_send
    try:
        yield held
    finally:
        client.send = send


async def send_until_cut(
    worker: Transactions, request: type, upto: GroupOffset, *, answered: bool
) -> None:
    """Start a transaction on partition 0, cut it at a request, and cancel the send."""
    with cut(worker, request, answered=answered) as held:
        sending = asyncio.create_task(worker.send(0, outputs(b"cut", letters=(letter(1),)), upto))
        await asyncio.wait_for(held.wait(), 10)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


# -- transactions that end -------------------------------------------------------------------------


def test_outputs_dead_letters_and_the_group_offset_of_a_finished_transaction_are_there_once(
    site: Site,
) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            assert await worker.group_offset(0) is None
            await worker.send(0, outputs(b"1", b"2", letters=(letter(2),)), at(3))
            assert await worker.group_offset(0) == at(3)
            assert await worker.group_offset(0) == at(3)
        assert site.outputs() == [b"1", b"2"]
        (rejected,) = site.messages(site.kafka.dead_letter)
        assert dict(rejected.headers())["keyfold-offset"] == b"2"

    asyncio.run(main())


def test_a_transaction_with_nothing_to_emit_moves_the_group_offset(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            await worker.send(0, [], at(7))
            await worker.send(0, outputs(letters=(letter(7),)), GroupOffset(8, "keyfold:r1"))
            assert await worker.group_offset(0) == GroupOffset(8, "keyfold:r1")
        assert site.outputs() == []
        assert site.values(site.kafka.dead_letter) == [b"bad"]

    asyncio.run(main())


def test_the_group_offsets_metadata_is_read_as_it_was_written(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            written = [GroupOffset(n, "é" * (n // 2) + "r" * (n % 9)) for n in range(1, 40)]
            for upto in [*written, GroupOffset(40, "m" * 300), GroupOffset(41, "")]:
                await worker.send(0, [], upto)
                assert await worker.group_offset(0) == upto

    asyncio.run(main())


def test_hundreds_of_transactions_in_a_row_stand_in_the_log_once_and_in_order(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            for i in range(300):
                await worker.send(0, outputs(b"%d" % i), at(i + 1))
            assert await worker.group_offset(0) == at(300)
        assert site.outputs() == [b"%d" % i for i in range(300)]

    asyncio.run(main())


def test_a_transaction_of_many_requests_is_one(site: Site) -> None:
    async def main() -> None:
        payloads = [b"%d" % i + b"x" * 250_000 for i in range(20)]
        async with site.worker(compression="lz4") as worker:
            await worker.send(0, outputs(*payloads), at(20))
        assert site.outputs() == payloads

    asyncio.run(main())


def test_partitions_have_transactions_of_their_own_at_the_same_time(
    site: Site, make_topic: MakeTopic
) -> None:
    many = 12
    wide = Site(replace(site.kafka, input=make_topic("in12", many), output=make_topic("o12", many)))

    async def main() -> None:
        worker = Transactions(wide.kafka, wide.destination)

        async def serve(number: int) -> None:
            await worker.open(number)
            for i in range(15):
                payload = b"%d-%d" % (number, i)
                await worker.send(number, outputs(payload, letters=(letter(i),)), at(i + 1))
            assert await worker.group_offset(number) == at(15)

        await asyncio.gather(*map(serve, range(many)))
        await asyncio.gather(*map(worker.close, range(many)))
        for number in range(many):
            assert wide.outputs(number) == [b"%d-%d" % (number, i) for i in range(15)]
        assert len(wide.values(wide.kafka.dead_letter)) == 15 * many

    asyncio.run(main())


def test_the_group_may_have_members_while_its_offset_moves_in_transactions(site: Site) -> None:
    async def main() -> None:
        member = aiokafka.AIOKafkaConsumer(
            site.kafka.input,
            bootstrap_servers=site.kafka.brokers,
            group_id=site.kafka.group,
            enable_auto_commit=False,
        )
        await member.start()
        try:
            async with site.worker() as worker:
                await worker.send(0, outputs(b"1"), at(1))
                assert await worker.group_offset(0) == at(1)
        finally:
            await member.stop()

    asyncio.run(main())


# -- transactions that were cut --------------------------------------------------------------------

CUTS = [
    (AddOffsetsToTxnRequest, True),
    (TxnOffsetCommitRequest, True),
    (AddPartitionsToTxnRequest, True),
    (ProduceRequest, True),
    (EndTxnRequest, False),
]


@pytest.mark.parametrize(("request_type", "answered"), CUTS)
def test_nothing_of_a_transaction_cut_before_its_end_is_ever_seen(
    site: Site, request_type: type, answered: bool
) -> None:
    async def main() -> None:
        async with site.worker() as crashed, asyncio.timeout(30):
            await crashed.send(0, outputs(b"before"), at(5))
            await send_until_cut(crashed, request_type, at(9), answered=answered)
            async with site.worker() as next_one:
                assert await next_one.group_offset(0) == at(5)
                assert site.outputs() == [b"before"]
                assert site.values(site.kafka.dead_letter) == []
                await next_one.send(0, outputs(b"again"), at(9))
                assert await next_one.group_offset(0) == at(9)
            assert site.outputs() == [b"before", b"again"]
            if request_type is EndTxnRequest:
                # The cut one is in the log, though nobody sees it: 2 predictions + 3 markers + it.
                assert site.log_end(site.kafka.output) == 6

    asyncio.run(main())


def test_after_a_lost_answer_to_the_end_the_next_open_tells_that_it_has_happened(
    site: Site,
) -> None:
    async def main() -> None:
        async with site.worker() as crashed:
            await crashed.send(0, outputs(b"before"), at(5))
            await send_until_cut(crashed, EndTxnRequest, at(9), answered=True)
            async with site.worker() as next_one:
                assert await next_one.group_offset(0) == at(9)
                assert site.outputs() == [b"before", b"cut"]
                assert site.values(site.kafka.dead_letter) == [b"bad"]

    asyncio.run(main())


def test_a_send_cancelled_at_any_moment_leaves_outputs_and_group_offset_of_one_mind(
    site: Site,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        worker = Transactions(site.kafka, site.destination)
        await worker.open(0)
        await worker.send(0, outputs(b"0"), at(1))
        begun_s = loop.time()
        await worker.send(0, outputs(b"1"), at(2))
        usual_s, tries = loop.time() - begun_s, 25
        expected, upto = [b"0", b"1"], 2
        finished = 0
        for i in range(tries):
            sending = asyncio.create_task(
                worker.send(0, outputs(b"try %d" % i, letters=(letter(i),)), at(upto + 1))
            )
            await asyncio.wait([sending], timeout=1.5 * usual_s * i / tries)
            sending.cancel()
            await asyncio.wait([sending])
            await worker.open(0)
            group_offset = await worker.group_offset(0)
            assert group_offset is not None
            if group_offset.offset > upto:
                upto, finished = upto + 1, finished + 1
                expected.append(b"try %d" % i)
            assert group_offset == at(upto)
        await worker.close(0)
        assert site.outputs() == expected
        assert len(site.values(site.kafka.dead_letter)) == finished
        assert finished < tries

    asyncio.run(main())


def test_a_partition_needs_a_new_open_after_a_cancelled_send(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            await send_until_cut(worker, EndTxnRequest, at(1), answered=False)
            with pytest.raises(TransactionFailed, match="expected a transactional producer"):
                await worker.send(0, outputs(b"x"), at(1))
            with pytest.raises(TransactionFailed, match="expected a transactional producer"):
                await worker.group_offset(0)
            await worker.open(0)
            await worker.send(0, outputs(b"y"), at(1))
        assert site.outputs() == [b"y"]

    asyncio.run(main())


def test_a_group_offset_in_a_transaction_that_is_just_ending_is_waited_for(site: Site) -> None:
    async def main() -> None:
        other = aiokafka.AIOKafkaProducer(
            bootstrap_servers=site.kafka.brokers, transactional_id=f"{site.kafka.group}-other"
        )
        await other.start()
        async with site.worker() as worker:
            await worker.send(0, [], at(1))
            await other.begin_transaction()
            where = aiokafka.TopicPartition(site.kafka.input, 0)
            await other.send_offsets_to_transaction(
                {where: OffsetAndMetadata(2, "keyfold:r0")}, site.kafka.group
            )
            asking = asyncio.create_task(worker.group_offset(0))
            await asyncio.wait([asking], timeout=0.3)
            assert not asking.done()
            await other.commit_transaction()
            assert await asking == at(2)
        await other.stop()

    asyncio.run(main())


# -- owners ----------------------------------------------------------------------------------------


def test_a_second_open_fences_the_first_producer(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as old, site.worker() as new:
            with pytest.raises(NotOwner, match=f"{site.kafka.input}:0: another worker"):
                await old.send(0, outputs(b"old"), at(1))
            with pytest.raises(TransactionFailed):
                await old.send(0, outputs(b"old"), at(1))
            await new.send(0, outputs(b"new"), at(1))
            assert await new.group_offset(0) == at(1)
        assert site.outputs() == [b"new"]

    asyncio.run(main())


@pytest.mark.parametrize("request_type", [TxnOffsetCommitRequest, ProduceRequest, EndTxnRequest])
def test_a_frozen_owner_that_wakes_in_its_transaction_is_told_and_emits_nothing(
    site: Site, request_type: type
) -> None:
    async def main() -> None:
        async with site.worker() as frozen:
            client = frozen._producers[0].client
            send, held, wake = client.send, asyncio.Event(), asyncio.Event()

            async def freezing_send(node: Any, asked: Any, **options: Any) -> Any:
                if isinstance(asked, request_type):
                    held.set()
                    await wake.wait()
                return await send(node, asked, **options)

            client.send = freezing_send
            sending = asyncio.create_task(frozen.send(0, outputs(b"frozen"), at(4)))
            await asyncio.wait_for(held.wait(), 10)
            async with site.worker() as new:
                assert await new.group_offset(0) is None
                await new.send(0, outputs(b"new"), at(4))
                wake.set()
                with pytest.raises(NotOwner):
                    await sending
                await new.send(0, outputs(b"newer"), at(5))
                assert await new.group_offset(0) == at(5)
        assert site.outputs() == [b"new", b"newer"]

    asyncio.run(main())


def test_partitions_do_not_fence_each_other(site: Site) -> None:
    async def main() -> None:
        async with site.worker(0) as zero, site.worker(1) as one:
            await zero.send(0, outputs(b"0"), at(1))
            await one.send(1, outputs(b"1"), at(1))
        assert (site.outputs(0), site.outputs(1)) == ([b"0"], [b"1"])

    asyncio.run(main())


# -- sizes -----------------------------------------------------------------------------------------


def test_a_dead_letter_too_large_is_cut_and_its_transaction_holds_it(site: Site) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            await worker.send(0, outputs(b"0", letters=(letter(0),)), at(1))
            large = (letter(1), letter(2, b"x" * 900_000), letter(3))
            await worker.send(0, outputs(b"1", letters=large), at(4))
            await worker.send(0, outputs(b"2", letters=(letter(4),)), at(5))
        assert site.outputs() == [b"0", b"1", b"2"]
        _assert_third_is_cut(site)

    asyncio.run(main())


def test_a_dead_letter_too_large_is_cut_by_at_least_once_outputs_too(site: Site) -> None:
    async def main() -> None:
        async with _idempotent_producer(site) as producer:
            emitter = Emitter(lambda: producer, site.destination)
            await emitter.open(0)
            # The one before made the broker expect a sequence that a refused one would break.
            await emitter.send(0, outputs(b"0", letters=(letter(0), letter(1))), at(2))
            large = (letter(2, b"x" * 900_000), letter(3))
            await emitter.send(0, outputs(b"1", letters=large), None)
            await emitter.send(0, outputs(b"2", letters=(letter(4),)))
            await emitter.close(0)
        assert site.outputs() == [b"0", b"1", b"2"]
        _assert_third_is_cut(site)

    asyncio.run(main())


def _assert_third_is_cut(site: Site) -> None:
    messages = site.messages(site.kafka.dead_letter)
    assert [len(m.value()) for m in messages] == [3, 3, TRUNCATED_BYTES, 3, 3]
    headers = [dict(m.headers()) for m in messages]
    assert [h["keyfold-offset"] for h in headers] == [b"%d" % i for i in range(5)]
    assert [h.get("keyfold-truncated") for h in headers] == [None, None, b"900000", None, None]


@asynccontextmanager
async def _idempotent_producer(site: Site) -> AsyncIterator[Any]:
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=site.kafka.brokers, enable_idempotence=True, acks="all"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def test_a_dead_letter_that_fits_when_compressed_is_whole(site: Site) -> None:
    async def main() -> None:
        async with site.worker(compression="gzip") as worker:
            await worker.send(0, outputs(letters=(letter(0, b"x" * 900_000),)), at(1))
        assert site.values(site.kafka.dead_letter) == [b"x" * 900_000]

    asyncio.run(main())


def test_a_dead_letter_is_cut_to_a_topic_that_holds_less_than_half_a_mebibyte(
    site: Site, make_topic: MakeTopic
) -> None:
    small = make_topic("small", 1, {"max.message.bytes": "20000"})
    narrow = Site(replace(site.kafka, dead_letter=small))

    async def main() -> None:
        async with narrow.worker() as worker:
            letters = tuple(letter(i, b"x" * 9_000) for i in range(5))
            await worker.send(0, outputs(letters=(*letters, letter(5, b"x" * 90_000))), at(6))
        *whole, short = narrow.values(small)
        assert whole == [b"x" * 9_000] * 5
        assert short is not None
        assert 19_000 < len(short) < 20_000

    asyncio.run(main())


def test_a_reject_without_room_for_its_headers_is_an_error_that_names_the_topic(
    site: Site, make_topic: MakeTopic
) -> None:
    tiny = make_topic("tiny", 1, {"max.message.bytes": "100"})
    narrow = Site(replace(site.kafka, dead_letter=tiny))

    async def main() -> None:
        async with narrow.worker() as worker:
            with pytest.raises(TopicError, match=f"topic '{tiny}': a reject of"):
                await worker.send(0, outputs(b"1", letters=(letter(0),)), at(1))
            async with narrow.worker() as after:
                assert await after.group_offset(0) is None
        assert narrow.outputs() == []

    asyncio.run(main())


def test_a_prediction_too_large_for_its_topic_is_an_error_that_names_it_and_emits_nothing(
    site: Site,
) -> None:
    async def main() -> None:
        async with site.worker() as worker:
            with pytest.raises(TopicError, match=f"topic '{site.kafka.output}': a prediction of"):
                await worker.send(0, outputs(b"1", b"x" * 1_100_000, b"3"), at(3))
            async with site.worker() as after:
                assert await after.group_offset(0) is None
                await after.send(0, outputs(b"after"), at(3))
        assert site.outputs() == [b"after"]

    asyncio.run(main())


# -- brokers ---------------------------------------------------------------------------------------


def test_brokers_without_transactions_are_refused_by_the_settings_name() -> None:
    async def main(address: str) -> None:
        worker = Transactions(Kafka(address, "in", "out"), Destination("in", "out", "dead", "b"))
        with pytest.raises(
            SetUpError, match=r"worker\.outputs: expected brokers with transactions"
        ):
            await worker.open(0)
        await worker.close(0)

    with EmbeddedKafka() as broker:
        asyncio.run(main(broker.address))


def test_a_transaction_timeout_above_the_brokers_limit_is_refused_by_its_name(site: Site) -> None:
    async def main() -> None:
        worker = Transactions(replace(site.kafka, transaction_timeout_s=1e5), site.destination)
        with pytest.raises(SetUpError, match=r"kafka\.transaction_timeout_s: expected at most"):
            await worker.open(0)
        await worker.close(0)

    asyncio.run(main())


def test_no_broker_is_an_error_to_be_tried_again() -> None:
    async def main() -> None:
        kafka = Kafka("127.0.0.1:1", "in", "out", session_timeout_s=1, request_timeout_s=1)
        worker = Transactions(kafka, Destination("in", "out", "dead", "b"))
        with pytest.raises(TransactionFailed, match="in:0: transaction: not opened"):
            await worker.open(0)
        await worker.close(0)

    assert issubclass(TransactionFailed, KafkaError)
    asyncio.run(main())


def test_a_broker_that_does_not_answer_holds_nobody_up_and_the_truth_is_told_later(
    real_kafka: KafkaService,
) -> None:
    async def main(own: ApacheKafka) -> None:
        for topic in ("in", "out", "dead"):
            own.create_topic(topic)
        site = Site(Kafka(own.address, "in", "out", dead_letter="dead"))
        hasty = replace(site.kafka, session_timeout_s=1, request_timeout_s=1)
        worker = Transactions(hasty, site.destination)
        async with asyncio.timeout(20):
            while True:  # the transaction coordinator's topic is made at the first call
                try:
                    await worker.open(0)
                    break
                except TransactionFailed:
                    continue
        await worker.send(0, outputs(b"1"), at(1))
        own.pause()
        async with asyncio.timeout(10):
            with pytest.raises(TransactionFailed, match="no answer within 1 s"):
                await worker.send(0, outputs(b"2"), at(2))
            with pytest.raises(TransactionFailed, match="not opened"):
                await worker.open(0)
            await worker.close(0)
        own.resume()
        async with site.worker() as later:
            assert await later.group_offset(0) == at(1)
            await later.send(0, outputs(b"3"), at(2))
        assert site.outputs() == [b"1", b"3"]

    with ApacheKafka() as own:
        asyncio.run(main(own))


def test_a_send_without_a_group_offset_is_refused() -> None:
    async def main() -> None:
        worker = Transactions(Kafka("h:1", "in", "out"), Destination("in", "out", "dead", "b"))
        with pytest.raises(ValueError, match="upto: expected the group offset"):
            await worker.send(0, outputs(b"1"))

    asyncio.run(main())


# -- private names ---------------------------------------------------------------------------------


def test_aiokafka_still_has_the_private_names_that_transactions_use() -> None:
    assert aiokafka.__version__.startswith("0.14.")
    assert isinstance(Sender.sender_task, property)
    assert "sender._retry_backoff" in inspect.getsource(BaseHandler.__init__)
    assert inspect.signature(BatchBuilder._build)
    source = inspect.getsource(MessageAccumulator.__init__)
    assert "self._batches" in source
    assert "self._pending_batches" in source
    source = inspect.getsource(aiokafka.AIOKafkaProducer.__init__)
    assert "self._sender = " in source
    assert "self._message_accumulator = " in source
    assert "self._txn_manager = " in source
    assert inspect.signature(TransactionManager.wait_for_transaction_end)


def test_aiokafka_still_adds_a_packed_requests_partition_to_the_transaction() -> None:
    assert "maybe_add_partition_to_txn" in inspect.getsource(MessageAccumulator._append_batch)
    assert "_append_batch" in inspect.getsource(MessageAccumulator.add_batch)
