"""A damaged batch: what stands before it and what other partitions gave is read, none is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher as fetcher
import pytest
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.structs import TopicPartition
from live_worker import Serving, make_events
from record_sets import Batch, written

from keyfold.worker import native
from keyfold.worker.fetched import read_records
from keyfold.worker.records import Records
from keyfold.worker.unreadable import Unreadable, divided
from local.services import ApacheKafka

ROWS = [(b"k", b"v")] * 3


def damaged(first_offset: int) -> bytes:
    data = bytearray(written([Batch(ROWS)], first_offset))
    data[-2] ^= 1
    return bytes(data)


class Fetching:
    """An aiokafka fetcher whose broker answers from these bytes."""

    def __init__(self, logs: dict[TopicPartition, bytes], *, as_bytes: bool) -> None:
        self._logs = logs
        self._states = {tp: TopicPartitionState(None) for tp in logs}
        for state in self._states.values():
            state.reset_to(0)
        of: Any = object.__new__(fetcher.Fetcher)
        of._client = of._subscriptions = self
        of._client_rack, of._records, of._wait_consume_future = None, {}, None
        of._key_deserializer = of._value_deserializer = None
        of._check_crcs, of._isolation_level, of._prefetch_backoff = True, 1, 0.0
        of._notify = lambda future: None
        read_records(of, "in", as_bytes=as_bytes)
        self._fetcher = of

    active, reassignment_in_progress = True, False

    def state_value(self, tp: TopicPartition) -> TopicPartitionState:
        return self._states[tp]

    async def send(self, node: int, request: object) -> Any:
        parts = [(tp.partition, 0, 99, 99, 0, None, -1, data) for tp, data in self._logs.items()]
        (topic,) = {tp.topic for tp in self._logs}
        return SimpleNamespace(API_VERSION=11, topics=[(topic, parts)])

    async def fetch(self) -> dict[TopicPartition, list[Any]]:
        asked = [(tp.partition, state.position, 1) for tp, state in self._states.items()]
        (topic,) = {tp.topic for tp in self._logs}
        request = SimpleNamespace(topics=[(topic, asked)])
        await self._fetcher._proc_fetch_request(self, 0, request)
        found: dict[TopicPartition, list[Any]] = await self._fetcher.fetched_records(
            set(self._logs), 0, 500
        )
        return found


@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_records_before_a_damaged_batch_and_of_other_partitions_are_given_away(
    as_bytes: bool,
) -> None:
    if as_bytes and not native.available():
        pytest.skip("the native module is not there: no C++ compiler")
    good, bad = TopicPartition("in", 0), TopicPartition("in", 1)
    logs = {good: written([Batch(ROWS)]), bad: written([Batch(ROWS)]) + damaged(3)}

    async def scenario() -> None:
        fetching = Fetching(logs, as_bytes=as_bytes)
        found = await fetching.fetch()
        for tp, ends in ((good, None), (bad, 3)):
            readable, damage = divided(found[tp])
            if as_bytes:
                assert [type(item) for item in readable] == [Records]
                readable = [record for some in readable for record in some]
            assert [record.offset for record in readable] == [0, 1, 2]
            assert fetching.state_value(tp).position == 3
            assert (damage and damage.offset) == ends
        logs.update({good: b"", bad: damaged(3)})
        for _ in range(2):  # and it stays there
            ((only,),) = (await fetching.fetch()).values()
            assert isinstance(only, Unreadable)
            assert only.offset == fetching.state_value(bad).position == 3
            assert only.why.startswith("Invalid CRC - ")

    asyncio.run(scenario())


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


@pytest.mark.usefixtures("either_way")
def test_a_damaged_log_halts_its_partition_alone(serving: Serving, real_kafka: ApacheKafka) -> None:
    serving.send(make_events(30, 5), partition=1)
    log = real_kafka.data / f"{serving.input}-1" / "00000000000000000000.log"
    sound_bytes = log.stat().st_size
    serving.send(make_events(10, 5), partition=1)
    with log.open("r+b") as file:
        file.seek(sound_bytes + 61)  # behind the header of the batch
        file.write(b"\xff" * 4)
    serving.send(make_events(20, 5), partition=0)
    with serving.running() as worker:
        serving.wait_until(lambda: "HALT" in worker.log.read_text(), "a HALT", [worker])
        serving.wait_until(lambda: serving.watermarks()[0] == 20, "W of partition 0", [worker])
        told = worker.log.read_text()
        assert serving.watermarks()[1] == 30
        serving.send(make_events(20, 5), partition=0)
        serving.wait_until(lambda: serving.watermarks()[0] == 40, "W of partition 0", [worker])
    assert "HALT: the log cannot be read from offset 30 on: Invalid CRC - " in told
    assert "--partition 1 --to earliest|latest|OFFSET" in told
    assert len(serving.records(serving.output)) == 70
