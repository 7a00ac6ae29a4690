"""The turn "emit, acks, save": nothing is saved before it is acked, nothing acked is forgotten.

Runs the worker's real parts against a real Valkey; the producer only remembers, so that a test can
hold acks back and let sends fail. What the phases do around it is in test_owner.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError
from memory_log import MemoryLog, Worker, event, running
from redis.exceptions import TimeoutError as RedisTimeoutError
from tiny_bundle import make_tiny_bundle

from keyfold.export.events import MAX_KEY_BYTES
from keyfold.worker.model import Model
from keyfold.worker.saver import MAX_TAKE_BYTES, MAX_UNSAVED_MICRO_BATCHES
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import MAX_SAVE_BYTES, Payload, Store
from local.services import Valkey


async def watermark(worker: Worker) -> int | None:
    return (await worker.store.hold(worker.log.topic, 0)).watermark


def test_nothing_is_saved_before_its_outputs_are_acked(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            worker.emitter.gate.clear()
            await worker.until(lambda: worker.emitter.sending == 1)
            partition = worker.owners[0].partition
            assert (partition.saved, partition.acked, partition.applied) == (0, 0, 1)
            assert await watermark(worker) == 0
            worker.emitter.gate.set()
            await worker.until_saved(1)
            assert await watermark(worker) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        KafkaTimeoutError(),
        TimeoutError("metadata"),  # an OSError
        ConnectionResetError("socket"),
        ValueError("producer"),
        RuntimeError("producer"),
    ],
)
def test_outputs_that_were_not_acked_stop_the_worker_and_nothing_is_saved(
    model: Model, log: MemoryLog, valkey: Valkey, error: Exception
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url) as worker:
            worker.emitter.failures.append(error)
            worker.assign(0)
            partition = worker.owners[0].partition
            await worker.until(lambda: worker.crashes or partition.saved)
            assert worker.crashes == [error]
            assert await watermark(worker) == 0

    asyncio.run(main())


def test_worker_after_a_failed_send_emits_everything_again(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"), event(1, b"z"))
        async with running(model, log, valkey.url) as first:
            first.emitter.failures.append(KafkaTimeoutError())
            first.assign(0)
            await first.until(lambda: first.crashes)
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            await second.until_saved(2)
            assert second.emitter.steps(b"k") == second.emitter.steps(b"z") == [1]

    asyncio.run(main())


class LossyStore(Store):
    """Loses the replies of some saves: before they reach Redis, or after."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lose: list[str] = []
        self.sent = 0

    async def save(self, *args: Any) -> Any:
        self.sent += 1
        how = self.lose.pop(0) if self.lose else ""
        if how == "request":
            raise RedisTimeoutError("no reply")
        held = await super().save(*args)
        if how == "reply":
            raise RedisTimeoutError("no reply")
        return held


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_save_without_a_reply_is_sent_again_and_counts_once(
    model: Model, log: MemoryLog, valkey: Valkey, lost: str
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, store_class=LossyStore) as worker:
            assert isinstance(worker.store, LossyStore)
            worker.store.lose = [lost]
            worker.assign(0)
            await worker.until_saved(1)
            log.append(event(1, b"k"))
            await worker.until_saved(2)
            assert worker.store.sent == 3
            assert worker.metrics.rewinds == 0
            assert worker.emitter.steps(b"k") == [1, 2]
            assert worker.metrics.saves == 2

    asyncio.run(main())


def test_worker_waits_for_a_redis_that_is_away_and_goes_on(
    model: Model, log: MemoryLog, own_valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, own_valkey.url, 0) as worker:
            await worker.until_saved(1)
            await asyncio.to_thread(own_valkey.stop)
            log.append(event(1, b"k"))
            partition = worker.owners[0].partition
            # Not acked: the owner may be asking Redis, once a second, when that goes away.
            await worker.until(lambda: partition.applied == 2)
            assert partition.saved == 1
            await asyncio.to_thread(own_valkey.start)
            await worker.until_saved(2)
            assert worker.emitter.steps(b"k") == [1, 2]
            assert worker.crashes == []

    asyncio.run(main())


# -- how far the pipeline may run ahead ------------------------------------------------------------


def test_pipeline_runs_a_few_micro_batches_ahead_of_the_acks_and_no_further(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*(event(i, b"k") for i in range(100)))
        async with running(model, log, valkey.url, max_events=10) as worker:
            worker.emitter.gate.clear()
            owner = worker.assign(0)
            # What one turn is emitting, and as much again behind it.
            most = 10 * 2 * MAX_UNSAVED_MICRO_BATCHES
            await worker.until(lambda: worker.emitter.sending == 1 and not owner.room())
            assert 10 * MAX_UNSAVED_MICRO_BATCHES < owner.partition.applied <= most
            assert len(owner.waiting) == 100 - owner.partition.applied
            worker.emitter.gate.set()
            await worker.until_saved(100)
            assert worker.emitter.steps(b"k") == list(range(1, 101))

    asyncio.run(main())


class SizedStore(Store):
    """Remembers how large each save was."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sizes: list[int] = []

    async def save(self, *args: Any) -> Any:
        payload: Payload = args[-1]
        self.sizes.append(sum(map(len, [*payload.keys, *payload.values, *payload.cleared])))
        return await super().save(*args)


def sizes_of(worker: Worker) -> list[int]:
    assert isinstance(worker.store, SizedStore)
    return worker.store.sizes


@pytest.mark.parametrize("save_every_s", [0.0, 0.02])
def test_largest_states_allowed_leave_room_to_go_on(
    tmp_path: Path,
    log: MemoryLog,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    save_every_s: float,
) -> None:
    # A sixteenth of the real limits: the largest states of 16 KiB take their time to step.
    monkeypatch.setattr("keyfold.worker.saver.MAX_SAVE_BYTES", MAX_SAVE_BYTES // 16)
    monkeypatch.setattr("keyfold.worker.saver.MAX_TAKE_BYTES", MAX_TAKE_BYTES // 16)

    async def main() -> None:
        model = Model(make_tiny_bundle(tmp_path, hidden=128))  # 1 KiB a key
        log.append(*(event(i, b"k%d" % i) for i in range(1200)))
        options: dict[str, Any] = {"save_every_s": save_every_s, "store_class": SizedStore}
        async with running(model, log, valkey.url, **options) as worker:
            owner = worker.assign(0)
            assert 350 < owner._saver.room() < 390
            await worker.until_saved(1200)
            assert len(worker.emitter.sent) == 1200
            assert max(sizes_of(worker)) <= MAX_SAVE_BYTES // 16

    asyncio.run(main())


def test_save_is_never_larger_than_redis_should_bear(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyfold.worker.saver.MAX_SAVE_BYTES", 700)  # 9 states and keys
    monkeypatch.setattr("keyfold.worker.saver.MAX_TAKE_BYTES", 175)

    async def main() -> None:
        log.append(*(event(i, b"k%d" % i) for i in range(60)))
        options: dict[str, Any] = {"save_every_s": 60.0, "store_class": SizedStore}
        async with running(model, log, valkey.url, **options) as worker:
            worker.assign(0)
            # Half full is enough for a save: it never waits for an event that cannot be applied.
            await worker.until(lambda: worker.owners[0].partition.saved > 60 - 9)
            assert max(sizes_of(worker)) <= 700

    asyncio.run(main())


@pytest.mark.parametrize("key_bytes", [1024, MAX_KEY_BYTES])
def test_long_keys_count_like_states(
    tmp_path: Path, log: MemoryLog, valkey: Valkey, key_bytes: int
) -> None:
    """The worst case: a save just below half full when as much as possible is taken."""

    async def main() -> None:
        model = Model(make_tiny_bundle(tmp_path, hidden=256))
        keys = (b"%d" % i for i in range(10_000))
        half = (
            MAX_SAVE_BYTES // 2 // (key_bytes + StateCodec(model.bundle.manifest).bytes_per_state)
        )
        log.append(*(event(i, next(keys).ljust(key_bytes)) for i in range(half)))
        options: dict[str, Any] = {"save_every_s": 600.0, "store_class": SizedStore}
        async with running(model, log, valkey.url, 0, **options) as worker:
            partition = worker.owners[0].partition
            await worker.until(lambda: partition.acked == half)
            assert partition.saved == 0
            more = range(half, half + 10_000_000 // key_bytes // 3)
            log.append(*(event(i, next(keys).ljust(key_bytes)) for i in more))
            await worker.until(lambda: partition.saved > 0)
            assert MAX_SAVE_BYTES // 2 < max(sizes_of(worker)) <= MAX_SAVE_BYTES + MAX_KEY_BYTES

    asyncio.run(main())


# -- write-behind ----------------------------------------------------------------------------------


def test_write_behind_emits_at_once_and_saves_several_micro_batches_together(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0, save_every_s=600.0) as worker:
            partition = worker.owners[0].partition
            worker.owners[0]._saver._last_save_s = asyncio.get_running_loop().time()
            for number in range(6):
                await worker.until(lambda n=number: partition.acked == n + 1)  # type: ignore[misc]
                log.append(event(number + 1, b"k"))
            await worker.until(lambda: partition.acked == 7)
            saved_before = worker.metrics.saves
            assert saved_before <= 1
            owner = worker.owners[0]
            await worker.revoke(0)
            assert owner.partition.saved == 7
            assert worker.metrics.saves == saved_before + 1
            assert worker.emitter.steps(b"k") == list(range(1, 8))

    asyncio.run(main())


def test_write_behind_saves_when_its_time_has_come_without_further_events(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0, save_every_s=0.05) as worker:
            await worker.until_saved(1)
            log.append(event(1, b"k"))
            await worker.until_saved(2)
            assert await watermark(worker) == 2

    asyncio.run(main())


class NotingStore(Store):
    """Remembers the order in which partitions were saved first, and when."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.first: dict[int, float] = {}

    async def save(self, *args: Any) -> Any:
        self.first.setdefault(args[1], asyncio.get_running_loop().time())
        return await super().save(*args)


def test_write_behind_spreads_the_partitions_saves_over_the_interval(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    every_s = 0.8

    async def main() -> None:
        log.counts = {log.topic: 8, "out": 8, "dead": 1}
        for number in range(8):
            log.append(event(0, b"k"), partition=number)
        options: dict[str, Any] = {"save_every_s": every_s, "store_class": NotingStore}
        async with running(model, log, valkey.url, **options) as worker:
            begun = asyncio.get_running_loop().time()
            worker.assign(*range(8))
            for number in range(8):
                await worker.until_saved(1, number)
            store = worker.store
            assert isinstance(store, NotingStore)
            assert list(store.first) == [7, 6, 5, 4, 3, 2, 1, 0]
            for number, at in store.first.items():
                assert at - begun >= every_s * (1 - number / 8) - 0.001

    asyncio.run(main())
