"""Faust's transport, with the per-event path of the input topic replaced by whole fetches.

Owns the Kafka position of the input topic (the one task that seeks and fetches it), its partitions'
owners and, with worker/consumer_thread.py, every private name of Faust and aiokafka this project
uses: tests/worker/test_intake.py holds them, so that a new Faust fails there and not in production.
Other topics of the same app keep Faust's own path. It decides nothing about offsets: owners do.
Used by worker/app.py only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiokafka
import faust
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import TopicPartition
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from keyfold.worker.consumer_thread import FETCH_WAIT_S, ConsumerThread, faust_log
from keyfold.worker.emit import MAX_REQUEST_BYTES
from keyfold.worker.errors import Crash, SetUpError
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.kafka.group_wait import GroupWait
from keyfold.worker.kafka.session_timeout import limits_ms, refused
from keyfold.worker.kafka.topics import TopicIds
from keyfold.worker.liveness import kafka_away
from keyfold.worker.owner import Owner
from keyfold.worker.protocol import GroupOffset, Phase, Topic
from keyfold.worker.records import Records
from keyfold.worker.unreadable import Unreadable, divided

HINT_S = 1.0  # how often W is told to Kafka
HINT_TIMEOUT_S = 5.0
MAX_FETCH_RECORDS = 8192
# A fetch, a micro-batch and a turn cost as much for ten events as for one. So events that come
# quickly are left to gather for a moment; one on a quiet stream, and a backlog, are not. A backlog
# is no matter of how many came: a fetch of large records is full with few (1 MiB per partition).
PAUSE_US = 300.0  # per record of the fetch before: from 3,300 events/s on the pause is the longest
LONGEST_PAUSE_S = 0.01
COUNTS_FOR_S = 0.5  # how long the broker's word on partition counts is good
# Kafka's error codes UNKNOWN_SERVER_ERROR (what Tansu 0.6 answers) and UNSUPPORTED_VERSION.
REFUSES_IDEMPOTENCE = (-1, 35)


class Consumer(driver.Consumer):
    """Faust's consumer; the input topic's partitions go to owners, whole fetches at a time."""

    logger = faust_log

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owners: dict[int, Owner] = {}
        self._seeks: dict[Owner, int] = {}
        self._space = asyncio.Event()
        self._counts: Any = None  # future of all topics' partition counts
        self._counts_at = float("-inf")  # when it was asked for, by the loop's clock
        self._ids = TopicIds(self.app.config.connection)
        self._asked: asyncio.Future[Topic] | None = None  # one answer for all partitions
        self._asked_at = float("-inf")  # when, by the loop's clock
        self._known: Topic | None = None  # the last answer
        self._group_wait = GroupWait(
            self.app.config.connection, self.app.config.kafka.group, self.app.conf.broker_client_id
        )

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- what owners ask of Kafka (owner.Log) ------------------------------------------------------

    async def group_offset(self, topic: str, partition: int) -> GroupOffset | None:
        """Return C, None when the group has none."""
        where = TopicPartition(topic, partition)
        at: GroupOffset | None = await self._thread.ask(self._thread.committed, where)
        return at

    async def set_group_offset(self, topic: str, partition: int, at: GroupOffset) -> None:
        """Set C. Raises KafkaError when it could not be set."""
        offsets = {TopicPartition(topic, partition): at}
        await self._thread.ask(self._thread.set_committed, offsets)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the log's start and end."""
        where = TopicPartition(topic, partition)
        start, end = await self._thread.ask(self._thread.log_bounds, where)
        return start, end

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """Return the offset of the first record with this timestamp or a later one."""
        where = TopicPartition(topic, partition)
        found: int | None = await self._thread.ask(self._thread.offset_at, where, time_ms)
        return found

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return each topic's number of partitions, 0 when it does not exist."""
        now = self.loop.time()
        if now - self._counts_at > COUNTS_FOR_S:
            # One answer for all partitions that ask in the same moment.
            self._counts_at, self._counts = (
                now,
                asyncio.ensure_future(self._thread.ask(self._thread.partition_counts)),
            )
        counts: Mapping[str, int] = await asyncio.shield(self._counts)
        return {topic: counts.get(topic, 0) for topic in topics}

    async def identify(self, name: str, *, fresh: bool) -> Topic:
        """Return what tells a topic from another one of the same name.

        Not `fresh`: what was last known, at once, while Kafka is asked again. Raises KafkaError.
        """
        now_s = self.loop.time()
        if self._asked is None or (self._asked.done() and now_s - self._asked_at > COUNTS_FOR_S):
            self._asked_at, self._asked = now_s, asyncio.ensure_future(self._identify(name))
            self._asked.add_done_callback(self._note_topic)
        if self._known is not None and not fresh and not self._asked.done():
            return self._known
        return await asyncio.shield(self._asked)

    def _note_topic(self, asked: asyncio.Future[Topic]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._known = asked.result()

    async def _identify(self, name: str) -> Topic:
        counts = await self.partition_counts((name,))
        return Topic(counts[name], await self._ids.of(name) if counts[name] else "")

    def request_seek(self, owner: Owner, offset: int) -> None:
        """Have the intake task move the position before its next fetch."""
        self._seeks[owner] = offset

    # -- rebalancing -------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Note new partitions; positions of the input topic are set by the intake task alone.

        Faust calls this after every assignment, under a timeout: no Redis here.
        """
        rest = {ensure_TP(tp) for tp in self.assignment() if not self._is_input(tp)}
        if rest and not await self._seek_rest(rest):
            return
        # Only now: it may have changed while that was awaited.
        mine = {tp.partition for tp in self.assignment() if self._is_input(tp)}
        await self._drain_owners(self.owners.keys() - mine, deadline_s=0.0)
        for number in mine - self.owners.keys():
            self.owners[number] = self.app.new_owner(number)
            self.owners[number].start()

    async def _seek_rest(self, rest: set[TP]) -> bool:
        """Set the positions of agents' topics; False: it took too long and the worker ends.

        Faust gives this call the request timeout, and then handles no rebalance ever again.
        """
        limit_s = 0.8 * self.app.config.kafka.request_timeout_s
        try:
            found = await self._thread.ask(
                self._thread.seek_rest_to_committed, rest, timeout_s=limit_s
            )
        except KafkaError as error:
            self.app.fail(Crash(f"positions of the agents' topics: {error}"))
            return False
        for tp, offset in found.items():
            self._read_offset[tp] = self._committed_offset[tp] = offset
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Drain the input partitions, within a deadline, before Faust lets go of them."""
        await self._drain_owners({tp.partition for tp in revoked if self._is_input(tp)})
        await super().on_partitions_revoked(revoked)

    async def wait_empty(self) -> None:
        """Drain everything before a stop; agents get no longer than the input partitions do."""
        await self._drain_owners(set(self.owners))
        try:
            await asyncio.wait_for(super().wait_empty(), self.app.config.worker.drain_s)
        except TimeoutError:
            self.log.warning("agents did not finish within %.1f s", self.app.config.worker.drain_s)

    async def _drain_owners(self, numbers: set[int], deadline_s: float | None = None) -> None:
        drained = [self.owners.pop(number) for number in numbers & self.owners.keys()]
        for owner in drained:
            self._seeks.pop(owner, None)
        # After a crash nothing unsaved counts: fail-stop, and the next owner replays.
        if deadline_s is None:
            deadline_s = self.app.config.worker.drain_s
        deadline_s = 0.0 if self.app.failure else deadline_s
        await asyncio.gather(*(owner.drain(deadline_s) for owner in drained))
        if self.app.failure:
            return
        await self._tell_kafka(drained)

    async def _tell_kafka(self, owners: Iterable[Owner]) -> None:
        """Set the group offsets to W: a hint for operators, never read back as a position.

        With exactly-once outputs they are no hint: transactions set them.
        """
        if self.app.config.worker.exactly_once:
            return
        topic = self.app.input_topic
        offsets = {
            TopicPartition(topic, owner.partition.number): GroupOffset(owner.partition.saved, "")
            for owner in owners
            if owner.hint_due()
        }
        if not offsets:
            return
        try:
            await self._thread.ask(self._thread.set_committed, offsets, timeout_s=HINT_TIMEOUT_S)
        except KafkaError as error:
            self.log.info("group offsets not set (%r); the next hint will", error)

    @faust.Service.task
    async def _hint_kafka(self) -> None:
        while not self.should_stop:
            await self.sleep(HINT_S)
            there = await self._kafka_answers()
            await self._check_group()
            if not there:
                continue  # nobody to tell, and the group's silence is Kafka's
            await self._group_wait.look(joined=self.app.joined, member=self._thread.member_id)
            if not self.app.rebalancing:
                running = [o for o in self.owners.values() if o.partition.phase is Phase.RUN]
                await self._tell_kafka(running)

    async def _kafka_answers(self) -> bool:
        """Ask for the topics; say for the log and the pages when no broker answers.

        And see, also without partitions, whether the topic is what aiokafka takes it for: a leader
        that does not know it (it started while Kafka was away) gives nothing to anybody.
        """
        try:
            await self.partition_counts((self.app.input_topic,))
        except KafkaError:
            await asyncio.to_thread(kafka_away.note_silence, self.app.config.connection)
        else:
            kafka_away.note_answer()
        return not kafka_away.waiting_for_kafka()

    async def _check_group(self) -> None:
        """End a worker that the group does not let in: no fetch would ever say so."""
        try:
            await self._thread.ask(self._thread.check_group)
        except KafkaTimeoutError:
            pass  # a stuck thread is the watchdog's
        except InvalidSessionTimeoutError:
            limits = await asyncio.to_thread(limits_ms, self.app.config.connection)
            self.app.fail(SetUpError(refused(self.app.config.kafka, limits)))
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as error:
            self.app.fail(error)  # which names the right that is missing
        except KafkaError as error:
            self.app.fail(Crash(f"consumer group: {error!r}"))

    # -- the intake task ---------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Fetch for ever. One task owns the position: a seek never overlaps a fetch."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                if not self.flow_active:
                    await self.wait(self.can_resume_flow)
                    continue
                await self._seek_as_requested()
                await self._fetch_once()
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise
        except Exception as error:
            # The seam: Faust would restart the fetcher, or leave it dead, and look alive.
            self.app.fail(error)
            raise

    async def _seek_as_requested(self) -> None:
        seeks, self._seeks = self._seeks, {}
        assigned = self.assignment()
        for owner, offset in seeks.items():
            tp = TP(self.app.input_topic, owner.partition.number)
            if self.owners.get(tp.partition) is not owner:
                continue
            if tp in assigned:
                await self.seek_wait({tp: offset})
                owner.sought()
            else:
                self._seeks.setdefault(owner, offset)  # a rebalance is under way: later

    async def _fetch_once(self) -> None:
        """Take what was fetched and hand it on: whole to owners, one by one to Faust's streams."""
        open_before = {number: owner for number, owner in self.owners.items() if owner.open}
        wanted = self._wanted(open_before)
        if not wanted:
            await self._wait_for_space()
            return
        try:
            fetched = await self._getmany(active_partitions=wanted, timeout=FETCH_WAIT_S)
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            await self._note_refused(error)
            return
        offered = 0
        for raw, records in (fetched or {}).items():
            tp = ensure_TP(raw)
            if not self._is_input(tp):
                await self._deliver(tp, records)
                continue
            owner = self.owners.get(tp.partition)
            # Only an owner that was open before the fetch: its position was set for it.
            if owner is not None and owner.open and open_before.get(tp.partition) is owner:
                owner.saw_log_end(self.highwater(tp) or 0)
                readable, damage = divided(records)
                for some in _runs(readable):
                    owner.offer(some)
                    offered += len(some)
                if damage is not None:
                    await self._note_damage(owner, damage)
        self._note_positions(open_before)
        if offered and not self._thread.behind:
            await asyncio.sleep(pause_s(offered))

    async def _note_damage(self, owner: Owner, damage: Unreadable) -> None:
        """Halt a partition whose log cannot be read on, as soon as all before that is saved."""
        partition = owner.partition
        if partition.saved < damage.offset:
            await asyncio.sleep(LONGEST_PAUSE_S)  # the next fetch meets it again
            return
        owner.halt(partition.halts.unreadable(damage.offset, damage.why))

    def _note_positions(self, owners: Mapping[int, Owner]) -> None:
        """Tell owners of positions that moved without records, or W would stay below the end."""
        for number, owner in owners.items():
            if owner.open and self.owners.get(number) is owner:
                position = self._thread.position_of(TP(self.app.input_topic, number))
                if position is not None:
                    owner.passed(position)

    def _wanted(self, owners: Mapping[int, Owner]) -> set[TP]:
        """Return the partitions to fetch: not those whose records wait in memory already."""
        active: set[TP] = self._get_active_partitions()
        limit = self.app.config.worker.max_buffer_bytes
        waiting = sum(owner.waiting_bytes for owner in owners.values())
        fair = limit // max(len(owners), 1)
        return {
            tp
            for tp in active
            if not self._is_input(tp)
            or (
                tp.partition in owners
                and (owners[tp.partition].waiting_bytes <= (fair if waiting < limit else 0))
            )
        }

    async def _wait_for_space(self) -> None:
        self._space.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FETCH_WAIT_S):
                await self._space.wait()

    def note_space(self) -> None:
        """Note that records were taken: there may be room for a fetch."""
        self._space.set()

    async def _note_refused(self, error: KafkaError) -> None:
        """A position was out of range: its owner judges it. Without an owner: an old prefetch."""
        refused = error.args[0]
        offsets = refused if isinstance(refused, dict) else {}
        for tp, offset in offsets.items():
            owner = self.owners.get(tp.partition) if self._is_input(tp) else None
            if owner is not None and owner.open:
                owner.out_of_range(offset)
            elif not self._is_input(tp):
                self.log.warning(
                    "%s: offset %d is out of range; reading from the start", tp, offset
                )
                await self._thread.seek_to_beginning(tp)

    async def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        """Faust's own path, for the topics of agents (Consumer._drain_messages, 0.15.3)."""
        for record in records:
            before = self._read_offset[tp]
            if (
                before is not None
                and record.offset <= before
                and before != self._committed_offset[tp]
            ):
                continue
            if before and record.offset - before > 1 and self.app.topics.acks_enabled_for(tp.topic):
                await self._add_gap(tp, before + 1, record.offset)
            message = self._to_message(tp, record)
            await self.wait_first(self.callback(message), self.suspend_flow.wait())
            if not self.flow_active:
                return
            self._read_offset[tp] = record.offset

    def _is_input(self, tp: Any) -> bool:
        return bool(tp.topic == self.app.input_topic)


def pause_s(records: int) -> float:
    """Return how long to wait before the next fetch, after one of so many, the last there were."""
    return min(records * PAUSE_US / 1e6, LONGEST_PAUSE_S)


def _runs(fetched: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Return fetched records as one sequence, or those that worker/fetched.py left as bytes."""
    return fetched if not fetched or isinstance(fetched[0], Records) else (fetched,)


class Producer(driver.Producer):
    """Faust's producer with the durability that the promise needs."""

    logger = faust_log

    _idempotent = True

    async def on_start(self) -> None:
        """Find out whether the broker can deduplicate retries, and say so when it cannot."""
        self._idempotent = await self._broker_can_be_idempotent()
        if not self._idempotent:
            self.log.warning(
                "the broker refuses idempotent producers: after a lost ack a prediction may stand "
                "twice in the output, under the same id"
            )
        await super().on_start()

    async def _broker_can_be_idempotent(self) -> bool:
        settings = {**self._settings_default(), **self._settings_auth()}
        probe = aiokafka.AIOKafkaProducer(**settings)
        end_at_once(probe.client)
        await probe.start()
        try:
            node = probe.client.get_random_node()
            reply = await probe.client.send(node, InitProducerIdRequest(None, 60_000))
        finally:
            await probe.stop()
        return reply.error_code not in REFUSES_IDEMPOTENCE

    def _new_producer(self) -> Any:
        producer = super()._new_producer()
        end_at_once(producer.client)
        return producer

    def _settings_extra(self) -> Mapping[str, Any]:
        return {
            "acks": "all",
            "enable_idempotence": self._idempotent,
            "max_batch_size": MAX_REQUEST_BYTES,
            "max_request_size": 2 * MAX_REQUEST_BYTES,
        }

    def connected(self) -> Any:
        """Return the aiokafka producer."""
        return self._ensure_producer()


class Transport(driver.Transport):
    """The transport of the keyfold app."""

    Consumer = Consumer
    Producer = Producer
