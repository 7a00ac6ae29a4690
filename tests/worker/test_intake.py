"""The intake's hold on Faust: its private names, and the one rule about the Kafka position.

The first part fails on a Faust or aiokafka that renamed what worker/intake.py overrides, so that it
is noticed here. The second drives the intake task's own steps against a scripted consumer thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.consumer import subscription_state
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import TopicPartition
from faust.tables.recovery import Recovery
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from keyfold.worker.intake import Consumer, ConsumerThread

# -- the contract with Faust -----------------------------------------------------------------------


def test_this_is_the_faust_whose_private_names_were_read() -> None:
    assert faust.__version__.startswith("0.15.")
    assert aiokafka.__version__.startswith("0.14.")


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (driver.AIOKafkaConsumerThread, "verify_event_path", ["self", "now", "tp"]),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer", ["self"]),
        (driver.AIOKafkaConsumerThread, "getmany", ["self", "active_partitions", "timeout"]),
        (driver.Consumer, "_new_consumer_thread", ["self"]),
        (faust_consumer.Consumer, "_drain_messages", ["self", "fetcher"]),
        (faust_consumer.Consumer, "perform_seek", ["self"]),
        (faust_consumer.Consumer, "wait_empty", ["self"]),
        (faust_consumer.Consumer, "on_partitions_revoked", ["self", "revoked"]),
        (faust_consumer.Consumer, "_get_active_partitions", ["self"]),
        (faust_consumer.Consumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (driver.Consumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (driver.Consumer, "seek_wait", ["self", "partitions"]),
        (driver.Producer, "_settings_extra", ["self"]),
        (driver.Producer, "_settings_default", ["self"]),
        (driver.Producer, "_settings_auth", ["self"]),
        (driver.Producer, "_ensure_producer", ["self"]),
        (faust.App, "_new_transport", ["self"]),
        (faust.App, "_new_producer_transport", ["self"]),
        (GroupCoordinator, "fetch_committed_offsets", ["self", "partitions"]),
        (subscription_state.Assignment, "state_value", ["self", "tp"]),
    ],
)  # fmt: skip
def test_what_the_intake_overrides_or_calls_is_still_there(
    owner: type, name: str, parameters: list[str]
) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_aiokafka_reads_at_start_what_the_intake_sets_after_making_a_consumer() -> None:
    source = inspect.getsource(aiokafka.AIOKafkaConsumer.start)
    for name in ("_isolation_level", "_auto_offset_reset", "_fetch_max_wait_ms"):
        assert f"self.{name}" in source, name


def test_aiokafka_drops_what_it_fetched_before_a_seek() -> None:
    assert "check_assignment" in inspect.getsource(aiokafka.consumer.fetcher.FetchResult.getall)
    assert "reassignment_in_progress" in inspect.getsource(Fetcher.fetched_records)


def test_aiokafka_keeps_a_partition_s_position_where_the_intake_reads_it() -> None:
    async def scenario() -> None:
        state = subscription_state.TopicPartitionState(None)
        assert state.has_valid_position is False
        state.reset_to(7)
        assert (state.has_valid_position, state.position) == (True, 7)

    asyncio.run(scenario())


def test_faust_still_calls_perform_seek_under_a_timeout() -> None:
    """Why it must not wait for Redis."""
    assert "consumer.perform_seek(), timeout=" in inspect.getsource(Recovery._resume_streams)


# -- one owner of the position ---------------------------------------------------------------------


@dataclass(eq=False)
class ScriptedOwner:
    """Stands for worker/owner.Owner: remembers what it was offered."""

    number: int = 0
    open: bool = False
    waiting_bytes: int = 0
    offered: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # told though no record came
    refused_at: list[int] = field(default_factory=list)

    @property
    def partition(self) -> Any:
        return SimpleNamespace(number=self.number)

    def sought(self) -> None:
        self.open = True

    def offer(self, records: list[Any]) -> None:
        self.offered += [record.offset for record in records]

    def saw_log_end(self, offset: int) -> None:
        pass

    def passed(self, position: int) -> None:
        self.positions.append(position)

    async def out_of_range(self, offset: int) -> None:
        self.refused_at.append(offset)


class ScriptedConsumer(Consumer):
    """The real intake steps on a position kept here; `during_fetch` runs while a fetch waits."""

    def __init__(self, owner: ScriptedOwner, limit_bytes: int = 1000) -> None:
        self.owners: Any = {owner.number: owner}
        self._seeks = {}
        self.app = SimpleNamespace(
            input_topic="in",
            config=SimpleNamespace(worker=SimpleNamespace(max_buffer_bytes=limit_bytes)),
        )
        self.position = 0
        self.found = 10  # records of a fetch
        self.markers = 0  # offsets behind them that no reader of committed records sees
        self._thread = SimpleNamespace(position_of=lambda tp: self.position)
        self.fetching = False
        self.during_fetch: Any = lambda: None
        self.fetched_from: list[int] = []
        self.asked: list[set[TP]] = []

    def assignment(self) -> set[TP]:
        return {TP("in", 0)}

    def highwater(self, tp: TP) -> int:
        return 1000

    def _get_active_partitions(self) -> set[TP]:
        return {TP("in", 0)}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        assert not self.fetching, "a seek overlapped a fetch"
        (self.position,) = partitions.values()

    async def _getmany(self, active_partitions: set[TP], timeout: float) -> Any:
        self.asked.append(set(active_partitions))
        self.fetching = True
        start = self.position
        self.fetched_from.append(start)
        self.during_fetch()
        self.fetching = False
        self.position = start + self.found + self.markers
        records = [SimpleNamespace(offset=start + i) for i in range(self.found)]
        return {TP("in", 0): records} if records else {}


async def _turn(consumer: ScriptedConsumer) -> None:
    await consumer._seek_as_requested()
    await consumer._fetch_once()


async def _two_turns_with_a_rewind_during_the_first() -> ScriptedOwner:
    owner = ScriptedOwner()
    consumer = ScriptedConsumer(owner)
    consumer.request_seek(owner, 100)  # type: ignore[arg-type]
    await _turn(consumer)
    assert owner.offered == list(range(100, 110))

    def rewind() -> None:
        owner.open = False
        owner.offered.clear()
        consumer.request_seek(owner, 50)  # type: ignore[arg-type]

    consumer.during_fetch = rewind
    await _turn(consumer)
    consumer.during_fetch = lambda: None
    assert owner.offered == [], "records fetched for the old position were offered"
    await _turn(consumer)
    return owner


def test_a_seek_asked_for_during_a_fetch_waits_and_the_fetch_is_dropped() -> None:
    owner = asyncio.run(_two_turns_with_a_rewind_during_the_first())
    assert owner.offered == list(range(50, 60))


def test_an_owner_that_opened_during_a_fetch_gets_nothing_of_it() -> None:
    async def scenario() -> ScriptedOwner:
        owner, successor = ScriptedOwner(open=True), ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.during_fetch = lambda: consumer.owners.update({0: successor})
        await consumer._fetch_once()
        return successor

    assert asyncio.run(scenario()).offered == []


def test_owner_is_told_where_the_position_stands_after_the_records_of_a_fetch() -> None:
    async def scenario(found: int, markers: int) -> ScriptedOwner:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)
        consumer.found, consumer.markers = found, markers
        await consumer._fetch_once()
        return owner

    owner = asyncio.run(scenario(10, 3))
    assert (owner.offered[-1], owner.positions) == (9, [13])
    owner = asyncio.run(scenario(0, 2))  # an aborted transaction, or nothing but markers
    assert (owner.offered, owner.positions) == ([], [2])


def test_owner_that_left_or_came_during_a_fetch_is_told_of_no_position() -> None:
    async def scenario(successor: ScriptedOwner | None) -> list[int]:
        owner = ScriptedOwner(open=True)
        consumer = ScriptedConsumer(owner)

        def change() -> None:
            owner.open = False
            if successor is not None:
                consumer.owners[0] = successor

        consumer.during_fetch = change
        await consumer._fetch_once()
        return owner.positions + (successor.positions if successor else [])

    assert asyncio.run(scenario(None)) == []
    assert asyncio.run(scenario(ScriptedOwner(open=True))) == []


def test_position_is_read_from_what_aiokafka_keeps_for_the_next_fetch() -> None:
    tp = TP("in", 0)
    state = SimpleNamespace(has_valid_position=True, position=7)
    states = {TopicPartition("in", 0): state}
    assignment = SimpleNamespace(state_value=states.get)
    thread = ConsumerThread.__new__(ConsumerThread)
    thread._consumer = SimpleNamespace(
        _subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    )
    assert thread.position_of(tp) == 7
    state.has_valid_position = False
    assert thread.position_of(tp) is None
    assert thread.position_of(TP("in", 1)) is None


def test_a_partition_whose_records_wait_in_memory_is_not_fetched() -> None:
    owner = ScriptedOwner(open=True, waiting_bytes=1001)
    consumer = ScriptedConsumer(owner)
    assert consumer._wanted({0: owner}) == set()  # type: ignore[dict-item]
    owner.waiting_bytes = 0
    assert consumer._wanted({0: owner}) == {TP("in", 0)}  # type: ignore[dict-item]


def test_a_refused_position_goes_to_its_owner_if_it_is_open() -> None:
    async def scenario(is_open: bool) -> list[int]:
        owner = ScriptedOwner(open=is_open)
        consumer = ScriptedConsumer(owner)
        await consumer._note_refused(OffsetOutOfRangeError({TP("in", 0): 7}))
        return owner.refused_at

    assert asyncio.run(scenario(True)) == [7]
    assert asyncio.run(scenario(False)) == []


def test_the_input_topic_is_left_out_of_fausts_livelock_warnings() -> None:
    thread = ConsumerThread.__new__(ConsumerThread)
    thread.app = SimpleNamespace(input_topic="in")
    thread.verify_event_path(0.0, TP("in", 0))  # Faust's would need a started consumer
