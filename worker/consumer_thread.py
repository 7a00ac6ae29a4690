"""What runs in the thread of Faust's consumer: aiokafka, asked from the main thread.

Owns the consumer's settings that Faust does not pass on, and every question about offsets and
metadata that the intake has. With worker/intake.py it holds all private names of Faust and aiokafka
this project uses. It decides nothing. Made by worker/intake.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from keyfold.worker.fetched import read_records
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.protocol import GroupOffset

# Faust's services tell their life by this logger; worker/cli.py lets its warnings through.
faust_log = logging.getLogger("faust.keyfold")

FETCH_WAIT_S = 0.1  # a seek waits at most so long for the fetch before it
ASK_S = 5.0  # of one question to a broker; who asks tries again
CLOSE_S = 2.0  # of leaving the group and closing its connections

T = TypeVar("T")


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, reading committed records only and never resetting a position."""

    logger = faust_log

    behind = False  # whether the last fetch left records of the input topic to be fetched at once

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust 0.15.3 passes none of these on; aiokafka reads them when it starts.
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"
        consumer._fetch_max_wait_ms = int(FETCH_WAIT_S * 1000)
        end_at_once(consumer._client)
        return consumer

    async def on_start(self) -> None:
        """Start the consumer; nothing is fetched before it was given partitions."""
        await super().on_start()
        read_records(self._consumer._fetcher, self.app.input_topic, as_bytes=self.app.native)

    async def on_thread_stop(self) -> None:
        """Leave the group, without waiting for one that is stuck or for a Kafka that is away.

        aiokafka waits for the answer to its JoinGroup, which comes when the slowest member has
        joined; and where a fetch was about to be tried again it raises that one's CancelledError,
        which would end this thread without a word to the main one.
        """
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(CLOSE_S):
                await super().on_thread_stop()
                return
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._give_up_joining()

    async def _give_up_joining(self) -> None:
        """Tell the group that it need not count with us: it would keep partitions for us.

        By another connection than the group's own, on which the answer to JoinGroup is due first.
        """
        coordinator, client = self._consumer._coordinator, self._consumer._client
        if coordinator.member_id and coordinator.coordinator_id is not None:
            leaving = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
            await client.send(coordinator.coordinator_id, leaving)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Leave Faust's livelock warnings to the topics whose events go through Faust."""
        if tp.topic != self.app.input_topic:
            super().verify_event_path(now, tp)

    async def _fetch_records(self, *arguments: Any, **options: Any) -> Any:
        """Fetch; a right that was taken away ends the worker, not this thread by a traceback."""
        try:
            fetched = await super()._fetch_records(*arguments, **options)
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as error:
            self.parent_loop.call_soon_threadsafe(self.app.fail, error)
            return {}
        # Here and now: the answer to aiokafka's next fetch, which is under way, tells of a new end.
        self.behind = any(
            tp.topic == self.app.input_topic and self._is_behind(tp) for tp in fetched
        )
        return fetched

    async def ask(
        self,
        question: Callable[..., Coroutine[Any, Any, T]],
        *arguments: Any,
        timeout_s: float = ASK_S,
    ) -> T:
        """Have one of the coroutines below run in this thread; called from the main one.

        Beside Faust's own queue of calls: that has two places, and two questions about partitions
        without a leader would keep everything else waiting, fetches and seeks too. The time limit
        holds in the thread, or a question would go on there that nobody waits for. Raises
        KafkaTimeoutError.
        """

        async def bounded() -> T:
            async with asyncio.timeout(timeout_s):
                return await question(*arguments)

        if self.thread_loop.is_closed():
            raise KafkaTimeoutError(f"{question.__name__}: the consumer has stopped")
        asked = asyncio.run_coroutine_threadsafe(bounded(), self.thread_loop)
        try:
            async with asyncio.timeout(timeout_s + 1.0):  # a loop that has stopped tells nothing
                return await asyncio.wrap_future(asked)
        except TimeoutError as error:
            what = f"{question.__name__}: no answer within {timeout_s:g} s"
            raise KafkaTimeoutError(what) from error

    async def committed(self, tp: TopicPartition) -> GroupOffset | None:
        """Return the group offset with its metadata (aiokafka's own call drops that)."""
        consumer = self._ensure_consumer()
        found = (await consumer._coordinator.fetch_committed_offsets([tp])).get(tp)
        if found is None or found.offset < 0:
            return None
        return GroupOffset(found.offset, found.metadata or "")

    async def set_committed(self, offsets: Mapping[TopicPartition, GroupOffset]) -> None:
        """Set group offsets of partitions assigned to this worker. Raises KafkaError."""
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        mine = {
            tp: OffsetAndMetadata(at.offset, at.metadata)
            for tp, at in offsets.items()
            if tp in assigned
        }
        if not mine:
            raise IllegalStateError(f"none of these partitions is assigned any more: {[*offsets]}")
        await consumer.commit(mine)

    async def seek_rest_to_committed(self, tps: Iterable[TP]) -> dict[TP, int | None]:
        """Seek other topics' partitions to the group offset, new ones to the log's start."""
        consumer = self._ensure_consumer()
        found: dict[TP, int | None] = {}
        for tp in map(driver.ensure_aiokafka_TP, tps):
            at = await self.committed(tp)
            if tp not in consumer.assignment():
                continue  # a rebalance took it meanwhile
            if at is None:
                await consumer.seek_to_beginning(tp)
            else:
                consumer.seek(tp, at.offset)
            found[ensure_TP(tp)] = at.offset if at else None
        return found

    async def check_group(self) -> None:
        """Raise the KafkaError for which the group does not let this member in, if there is one."""
        if self._consumer is not None:
            self._consumer._coordinator.check_errors()

    @property
    def member_id(self) -> str:
        """This worker's id in the group, "" before it has one."""
        return "" if self._consumer is None else str(self._consumer._coordinator.member_id)

    async def log_bounds(self, tp: TopicPartition) -> tuple[int, int]:
        """Return the log's start and (last stable) end."""
        consumer = self._ensure_consumer()
        start = await consumer.beginning_offsets([tp])
        end = await consumer.end_offsets([tp])
        return start[tp], end[tp]

    async def offset_at(self, tp: TopicPartition, time_ms: int) -> int | None:
        """Return the offset of the first record with this timestamp or a later one."""
        found = (await self._ensure_consumer().offsets_for_times({tp: time_ms}))[tp]
        return None if found is None else found.offset

    def position_of(self, tp: TP) -> int | None:
        """Return where the next fetch begins: behind what was returned, and behind what a reader of
        committed records never sees. Only between two fetches.
        """
        state = self._state_of(tp)
        return state.position if state is not None and state.has_valid_position else None

    def _is_behind(self, tp: TP) -> bool:
        """Whether there was more to fetch, as the broker told with the last fetch.

        What stands behind a transaction that is still open cannot be fetched yet.
        """
        position, state = self.position_of(tp), self._state_of(tp)
        if position is None:
            return False  # a rebalance took it
        stable = state.lso
        end = state.highwater if stable is None or stable < 0 else stable
        return end is not None and bool(position < end)

    def _state_of(self, tp: TP) -> Any:
        assignment = self._consumer._subscription.subscription.assignment
        return assignment.state_value(driver.ensure_aiokafka_TP(tp))

    async def partition_counts(self) -> dict[str, int]:
        """Return all topics' numbers of partitions by fresh metadata."""
        client, topic = self._ensure_consumer()._client, self.app.input_topic
        cluster = await client.fetch_all_metadata()
        if cluster.partitions_for_topic(topic) != client.cluster.partitions_for_topic(topic):
            # Or the group would assign new partitions only when the metadata is five minutes old.
            client.force_metadata_update()
        return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}
