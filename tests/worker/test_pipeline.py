"""One micro-batch's path, on a real model and a real Valkey, without Kafka.

Holds what becomes of each record (prediction, dead letter, reset), what is loaded when, that shares
are fair, and that what is read from Redis beside other saves never makes a wrong state.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_log import MemoryLog, Rec, Worker, event, running
from naive_worker import LogRecord, serve
from tiny_bundle import make_tiny_bundle

from keyfold.worker.model import Model
from keyfold.worker.protocol import Phase
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import Loaded, Store
from local.services import Valkey

COUNTS = {"out": 2, "dead": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), tombstone="reset"))


@pytest.fixture
def log(unique_name: Callable[[str], str]) -> MemoryLog:
    topic = unique_name("in")
    return MemoryLog(topic, {topic: 2, **COUNTS})


def offline(
    model: Model, log: MemoryLog, partition: int = 0
) -> tuple[list[Any], dict[bytes, bytes]]:
    """Return the predictions and stored states that a plain loop over the log leads to."""
    records = [LogRecord(r.offset, r.timestamp, r.key, r.value) for r in log.records[partition]]
    served = serve(model.bundle, log.topic, partition, records)
    return [json.loads(payload or b"") for _, payload in served.outputs], served.states


async def check(worker: Worker, partition: int = 0) -> None:
    """Compare all that was emitted and saved with the offline fold."""
    predictions, states = offline(worker.model, worker.log, partition)
    sent = [payload for p, _, payload in worker.emitter.sent if p == partition]
    assert sent == predictions
    assert await worker.stored(partition) == states


def stream(count: int, keys: int, seed: int = 0, first: int = 0) -> list[Rec]:
    random = np.random.default_rng(seed)
    chosen = random.zipf(1.3, count) % keys
    return [
        event(first + i, b"k%d" % k, float(a), float(b))
        for i, (k, a, b) in enumerate(
            zip(chosen, random.normal(0, 1, count), random.normal(0, 1, count), strict=True)
        )
    ]


# -- what becomes of a record ----------------------------------------------------------------------


def test_stream_is_served_as_the_offline_fold(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*stream(3000, 200))
        async with running(model, log, valkey.url, 0, max_events=256) as worker:
            await worker.until_saved(3000)
            await check(worker)
            assert worker.crashes == []

    asyncio.run(main())


def test_restarted_worker_goes_on_from_the_saved_states(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        events = stream(1000, 50)
        log.append(*events[:400])
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(400)
        log.append(*events[400:])
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            await second.until_saved(1000)
            second.emitter.sent[:0] = first.emitter.sent
            await check(second)
            assert second.metrics.events == 600

    asyncio.run(main())


POISON = {
    "null key": (event(1, None), "the record's key is null"),
    "null key and value": (Rec(1, None, None), "the record's key is null"),
    "empty value": (Rec(1, b"k", b""), "not valid JSON"),
    "not UTF-8": (Rec(1, b"k", b"\xff"), "not valid JSON"),
    "NaN": (Rec(1, b"k", b'{"a":NaN,"b":1,"time":1}'), "not valid JSON"),
    "overflow": (Rec(1, b"k", b'{"a":1e39,"b":1,"time":1}'), "field 'a' overflows float32"),
    "time": (Rec(1, b"k", b'{"a":1,"b":1,"time":1e17}'), "the event time is out of range"),
    "too deep": (
        Rec(1, b"k", b'{"a":1,"b":1,"time":1,"z":' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "nested",
    ),
}


@pytest.mark.parametrize("case", POISON)
def test_poison_record_goes_to_the_dead_letters_and_the_stream_goes_on(
    model: Model, log: MemoryLog, valkey: Valkey, case: str
) -> None:
    record, reason = POISON[case]

    async def main() -> None:
        log.append(event(0, b"k"), record, event(2, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(3)
            assert [(p, o) for p, o, _ in worker.emitter.letters] == [(0, 1)]
            assert reason in worker.emitter.letters[0][2]
            await check(worker)

    asyncio.run(main())


def test_poison_record_at_the_log_s_end_moves_the_watermark(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(Rec(5, None, b""))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(6)
            assert await worker.stored() == {}
            assert len(worker.emitter.letters) == 1

    asyncio.run(main())


def test_any_bytes_are_a_key(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        keys = [b"", b"\xff\xfe", b"#W", b":", "ключ".encode(), b"\x00", b"%d"]
        log.append(*(event(i, key) for i, key in enumerate(keys * 2)))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(14)
            await check(worker)
            assert [key for _, key, _ in worker.emitter.sent] == keys * 2

    asyncio.run(main())


def test_gaps_between_offsets_are_no_events(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(event(3, b"k"), event(9, b"k"), event(40, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(41)
            await check(worker)
            assert worker.emitter.steps(b"k") == [1, 2, 3]

    asyncio.run(main())


def test_keys_of_two_partitions_are_different_keys(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*stream(500, 20, seed=1), partition=0)
        log.append(*stream(500, 20, seed=2), partition=1)
        async with running(model, log, valkey.url, 0, 1, max_events=64) as worker:
            await worker.until_saved(500, 0)
            await worker.until_saved(500, 1)
            await check(worker, 0)
            await check(worker, 1)

    asyncio.run(main())


# -- tombstones ------------------------------------------------------------------------------------


def test_tombstone_between_two_events_of_one_micro_batch_resets_the_key(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(
            event(0, b"k"), event(1, b"z"), Rec(2, b"k", None), event(3, b"k"), event(4, b"k"),
            Rec(5, b"k", None), Rec(6, b"k", None), event(7, b"k"), event(8, b"z"),
        )  # fmt: skip
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(9)
            assert worker.emitter.steps(b"k") == [1, 1, 2, 1]
            assert worker.emitter.steps(b"z") == [1, 2]
            await check(worker)
            assert len(worker.slots) == 2
            assert worker.emitter.letters == []

    asyncio.run(main())


def test_reset_key_has_no_stored_state_until_its_next_event(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"), event(1, b"z"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(2)
            assert set(await worker.stored()) == {b"k", b"z"}
            log.append(Rec(2, b"k", None))
            await worker.until_saved(3)
            assert set(await worker.stored()) == {b"z"}
            log.append(event(3, b"k"))
            await worker.until_saved(4)
            await check(worker)

    asyncio.run(main())


def test_tombstone_of_a_key_that_is_not_resident_resets_it(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"), event(1, b"z"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(2)
        log.append(Rec(2, b"k", None), Rec(3, b"never", None), event(4, b"z"))
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            await second.until_saved(5)
            second.emitter.sent[:0] = worker.emitter.sent
            await check(second)

    asyncio.run(main())


def test_reset_key_is_not_read_back_while_its_save_is_in_flight(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """One key may stay resident: the reset one is idle, its old state still in Redis."""

    async def main() -> None:
        log.append(event(0, b"k"), event(1, b"k"))
        async with running(model, log, valkey.url, 0, max_keys=1, store_class=HeldStore) as worker:
            await worker.until_saved(2)
            store = worker.store
            assert isinstance(store, HeldStore)
            store.saves.clear()  # from here on saves wait before they are sent
            log.append(Rec(2, b"k", None))
            await worker.until(lambda: store.waiting == 1)
            applied = worker.owners[0].partition
            for offset in (3, 4, 5):  # other keys push it out of memory
                log.append(event(offset, b"z%d" % offset))
                await worker.until(lambda o=offset: applied.applied == o + 1)  # type: ignore[misc]
            log.append(event(6, b"k"))
            await worker.until(lambda: applied.applied == 7)
            store.saves.set()
            await worker.until_saved(7)
            assert worker.emitter.steps(b"k") == [1, 2, 1]
            await check(worker)

    asyncio.run(main())


# -- loads beside saves ----------------------------------------------------------------------------


class HeldStore(Store):
    """A store whose saves wait before they are sent and whose replies to loads can be held."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.saves, self.replies = asyncio.Event(), asyncio.Event()
        self.saves.set()
        self.replies.set()
        self.waiting = 0  # saves held back
        self.read = 0  # loads that have Redis's answer

    async def save(self, *args: Any) -> Any:
        self.waiting += 1
        await self.saves.wait()
        self.waiting -= 1
        return await super().save(*args)

    async def load(self, topic: str, partition: int, keys: Sequence[bytes]) -> Loaded:
        loaded = await super().load(topic, partition, keys)
        self.read += 1
        await self.replies.wait()
        return loaded


def test_load_whose_reply_comes_after_that_of_a_later_save_is_no_loss(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Load and save go over two connections: a large reply arrives after a later, small one."""

    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0, store_class=HeldStore) as worker:
            await worker.until_saved(1)
            store, partition = worker.store, worker.owners[0].partition
            assert isinstance(store, HeldStore)
            store.saves.clear()
            log.append(event(1, b"k"))
            await worker.until(lambda: store.waiting == 1)
            store.replies.clear()
            before = store.read
            log.append(event(2, b"cold"))
            await worker.until(lambda: store.read > before)  # read at watermark 1
            store.saves.set()
            await worker.until(lambda: partition.saved == 2)
            store.replies.set()
            await worker.until_saved(3)
            assert worker.metrics.rewinds == 0
            assert len(worker.emitter.ids()) == len(set(worker.emitter.ids()))
            await check(worker)

    asyncio.run(main())


def test_load_after_redis_lost_writes_rewinds_before_anything_is_emitted(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(1)
            before = await worker.copy_of_redis()
            log.append(event(1, b"z"))
            await worker.until_saved(2)
            worker.slots.evict(0, {0: 2})
            worker.slots.tick()
            await worker.roll_back(before)
            log.append(event(2, b"z"), event(3, b"k"))
            await worker.until_rewound(4)
            by_id = {p["id"]: p for p in offline(model, log)[0]}
            assert all(by_id[p["id"]] == p for _, _, p in worker.emitter.sent)
            assert by_id.keys() == set(worker.emitter.ids())
            assert await worker.stored() == offline(model, log)[1]

    asyncio.run(main())


def test_damaged_state_halts_its_partition_and_names_the_damage(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(event(0, b"k"), event(1, b"z"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(2)
            await worker.store.redis.hset(worker.store.name(log.topic, 0), b":k", b"damage")
        log.append(event(2, b"k"), partition=0)
        log.append(event(0, b"other"), partition=1)
        async with running(model, log, valkey.url, 0, 1) as second:
            await second.until_phase(Phase.HALT, 0)
            await second.until_saved(1, 1)  # the others go on
            size = StateCodec(model.bundle.manifest).bytes_per_state
            halted = second.owners[0].partition.halted
            assert halted.startswith(f"a stored state is damaged: expected {size} bytes, got 6; ")
            assert "keyfold-state restore" in halted
            assert [p for p, _, _ in second.emitter.sent] == [1]

    asyncio.run(main())


def test_evicted_keys_come_back_with_their_states(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*stream(2000, 300))
        options = {"max_keys": 10, "max_events": 50}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(2000)
            await check(worker)
            assert worker.metrics.evicted > 100
            assert worker.metrics.rewinds == 0

    asyncio.run(main())


def test_write_behind_serves_the_same_fold(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*stream(2000, 100))
        options: dict[str, Any] = {"save_every_s": 0.03, "max_events": 50, "max_keys": 20}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(2000)
            await check(worker)

    asyncio.run(main())


def test_revoked_partition_among_resident_keys_crashes_nothing(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Its owner is not listed any more, its slots are still there, and there are too many keys."""

    async def main() -> None:
        log.topic, log.counts = log.topic, {log.topic: 6, "out": 6, "dead": 1}
        log.append(*(event(i, b"k%d" % i) for i in range(50)), partition=5)
        log.append(event(0, b"k"), partition=0)
        options: dict[str, Any] = {"max_keys": 10, "store_class": HeldStore}
        async with running(model, log, valkey.url, 0, 5, **options) as worker:
            await worker.until_saved(50, 5)
            await worker.until_saved(1, 0)
            store = worker.store
            assert isinstance(store, HeldStore)
            store.saves.clear()
            log.append(*(event(50 + i, b"k%d" % i) for i in range(40)), partition=5)
            await worker.until(lambda: store.waiting == 1)
            revoked = asyncio.create_task(worker.revoke(5))
            applied = worker.owners[0].partition
            log.append(event(1, b"k"), partition=0)
            await worker.until(lambda: applied.applied == 2)
            log.append(event(2, b"k"), partition=0)
            await worker.until(lambda: applied.applied == 3)
            store.saves.set()
            await revoked
            await worker.until_saved(3, 0)
            assert await worker.stored(5) == offline(model, log, 5)[1]

    asyncio.run(main())


# -- the rest --------------------------------------------------------------------------------------


def test_bundle_that_rejects_tombstones_keeps_the_key_s_state(
    tmp_path: Path, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        model = Model(make_tiny_bundle(tmp_path))
        log.append(event(0, b"k"), Rec(1, b"k", None), event(2, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(3)
            assert worker.emitter.letters == [(0, 1, "the record's value is null")]
            assert worker.emitter.steps(b"k") == [1, 2]
            await check(worker)

    asyncio.run(main())
