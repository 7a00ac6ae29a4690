"""One partition through its phases: acquire, run, rewind, halt, drain, against a real Valkey.

Kafka is a list in memory that a test can cut, empty or fill anew. Whatever happens, what is emitted
must be the offline fold: no id with two payloads, no event left out. Waits are conditions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import KafkaConnectionError
from memory_log import MemoryLog, Rec, Worker, event, events, running
from naive_worker import LogRecord, serve
from tiny_bundle import make_tiny_bundle

from keyfold.worker import owner as owner_module
from keyfold.worker.errors import NotOwner, StartUnset, TopicError
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.protocol import INIT_METADATA, GroupOffset, Phase
from keyfold.worker.state.store_admin import Admin, Emission, new_meta
from keyfold.worker.store import Loaded, Store
from local.services import Valkey


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "AUDIT_S", 0.02)
    monkeypatch.setattr(owner_module, "HALT_RETRY_S", 0.05)


async def check(*workers: Worker) -> None:
    """Compare what all workers emitted and what Redis holds with the offline fold of the log."""
    log = workers[-1].log
    records = [LogRecord(r.offset, r.timestamp, r.key, r.value) for r in log.records[0]]
    served = serve(workers[-1].model.bundle, log.topic, 0, records)
    wanted = {p["id"]: p for p in (json.loads(payload or b"") for _, payload in served.outputs)}
    sent = [payload for worker in workers for _, _, payload in worker.emitter.sent]
    assert [p for p in sent if p != wanted.get(p["id"])] == []  # no other payload under an id
    assert {p["id"] for p in sent} == wanted.keys()  # none lost
    assert await workers[-1].stored() == served.states
    assert (await workers[-1].fields())[b"#L"].decode() == served.meta["#L"]


# -- ACQUIRE ---------------------------------------------------------------------------------------


def test_worker_without_start_and_state_refuses(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, start="") as worker:
            await worker.until(lambda: worker.crashes)
            assert isinstance(worker.crashes[0], StartUnset)
            assert await worker.meta() == {}
            assert log.offsets == {}

    asyncio.run(main())


@pytest.mark.parametrize(("start", "begin"), [("earliest", 4), ("latest", 9)])
def test_new_group_begins_at_the_configured_end_of_the_log(
    model: Model, log: MemoryLog, valkey: Valkey, start: str, begin: int
) -> None:
    async def main() -> None:
        log.append(*events(4, 9))
        log.starts[0] = 4
        async with running(model, log, valkey.url, 0, start=start) as worker:
            await worker.until_phase(Phase.RUN)
            assert log.offsets[0] == GroupOffset(begin, INIT_METADATA)
            assert (await worker.meta())["#B"] == str(begin)
            log.append(*events(9, 12))
            await worker.until_saved(12)
            assert worker.emitter.ids()[0] == f"{log.topic}:0:{begin}:0"

    asyncio.run(main())


def test_kafka_knows_of_the_beginning_before_redis_does(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    set_offset, acquire = MemoryLog.set_group_offset, Store.acquire

    async def noted_set(self: MemoryLog, *args: Any) -> None:
        order.append("kafka")
        await set_offset(self, *args)

    async def noted_acquire(self: Store, *args: Any) -> Any:
        order.append("redis" if args[-1] is not None else "look")
        return await acquire(self, *args)

    monkeypatch.setattr(MemoryLog, "set_group_offset", noted_set)
    monkeypatch.setattr(Store, "acquire", noted_acquire)

    async def main() -> None:
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_phase(Phase.RUN)
        assert order == ["look", "kafka", "redis"]

    asyncio.run(main())


def test_worker_that_died_between_kafka_and_redis_begins_at_the_same_offset(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 6))
        log.offsets[0] = GroupOffset(2, INIT_METADATA)
        async with running(model, log, valkey.url, 0, start="latest") as worker:
            await worker.until_saved(6)
            assert worker.emitter.ids()[0] == f"{log.topic}:0:2:0"

    asyncio.run(main())


def test_missing_topic_stops_the_worker_by_name(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        del log.counts["dead"]
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until(lambda: worker.crashes)
            assert isinstance(worker.crashes[0], TopicError)
            assert "topic 'dead': expected it to exist" in str(worker.crashes[0])

    asyncio.run(main())


def test_output_topic_with_another_partition_count_stops_the_worker(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.counts["out"] = 2
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until(lambda: worker.crashes)
            assert "topic 'out': expected 1 partitions like the input" in str(worker.crashes[0])

    asyncio.run(main())


def test_acquire_is_tried_again_when_kafka_or_redis_fail(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        log.failures = [KafkaConnectionError("broker"), TimeoutError("thread")]
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(3)
            await check(worker)
            assert worker.crashes == []

    asyncio.run(main())


def test_error_nobody_thought_of_stops_the_worker(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.failures = [LookupError("a bug")]
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until(lambda: worker.crashes)
            assert isinstance(worker.crashes[0], LookupError)

    asyncio.run(main())


def test_broker_that_is_away_for_a_moment_stops_no_idle_worker(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(3)
            log.failures = [KafkaConnectionError("no broker"), TimeoutError("no answer")]
            await worker.until(lambda: not log.failures or worker.crashes)
            log.append(*events(3, 6))
            await worker.until(lambda: worker.owners[0].partition.saved == 6 or worker.crashes)
            assert worker.crashes == []
            await check(worker)

    asyncio.run(main())


def test_broker_that_does_not_know_the_topic_for_a_moment_stops_no_idle_worker(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # Metadata of a broker that has just become controller may lack topics.
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(3)
            known, log.counts = log.counts, {}
            asked = log.counted
            await worker.until(lambda: log.counted > asked + 1 or worker.crashes)
            log.counts = known
            log.append(*events(3, 6))
            await worker.until(lambda: worker.owners[0].partition.saved == 6 or worker.crashes)
            assert worker.crashes == []

    asyncio.run(main())


# -- HALT ------------------------------------------------------------------------------------------


def test_redis_emptied_under_a_committed_group_halts_and_nothing_restarts_from_zero(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            await log.set_group_offset(log.topic, 0, GroupOffset(5, ""))  # the hint
            name = worker.store.name(log.topic, 0)
            kept = await worker.copy_of_redis()
            await worker.store.redis.delete(name)
            await worker.until_phase(Phase.HALT)
            assert worker.owners[0].partition.halted.startswith("the state is gone from Redis")
            log.append(*events(5, 9))
            asked = log.asked
            await worker.until(lambda: log.asked > asked + 2)
            await worker.until_phase(Phase.HALT)
            assert len(worker.emitter.sent) == 5
            assert not await worker.store.redis.exists(name)
            assert worker.metrics.halts == 1
            # The operator restores Redis: no restart is needed.
            await worker.roll_back(kept)
            await worker.until_saved(9)
            await check(worker)
            assert worker.crashes == []

    asyncio.run(main())


def test_halted_partition_goes_on_after_the_operator_s_reset(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        log.offsets[0] = GroupOffset(5, "")
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_phase(Phase.HALT)
            with Admin.connect(valkey.url, 5.0, worker.group) as admin:
                admin.install(log.topic, 0, new_meta(0, model.bundle.id), Emission(floor=0))
            await worker.until_saved(5)
            await check(worker)

    asyncio.run(main())


def test_events_lost_to_retention_halt(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.records[0], log.starts[0] = events(8, 12), 8
        async with running(model, log, valkey.url, 0) as second:
            await second.until_phase(Phase.HALT)
            assert (
                "the log starts at offset 8 but the state ends at 5"
                in second.owners[0].partition.halted
            )
            assert second.emitter.sent == []

    asyncio.run(main())


def test_topic_created_anew_halts(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.records[0] = [event(i, b"new") for i in range(9)]
        async with running(model, log, valkey.url, 0) as second:
            await second.until_phase(Phase.HALT)
            assert "is not the one last applied" in second.owners[0].partition.halted
            assert second.emitter.sent == []

    asyncio.run(main())


def test_shorter_log_halts_once_the_broker_refuses_the_position(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.records[0] = events(0, 2)
        async with running(model, log, valkey.url, 0) as second:
            owner = second.owners[0]
            await second.until(lambda: owner.open)
            second.fetching = False
            owner.out_of_range(4)
            assert not owner.open, "records of the refused position might be offered"
            await second.until_phase(Phase.HALT)
            assert "the log ends before offset 4" in owner.partition.halted
            # Tried again: the same fetch is refused, and that is no other HALT.
            second.fetching = True
            await second.until(lambda: owner.open)
            owner.out_of_range(4)
            await second.until_phase(Phase.HALT)
            assert second.metrics.halts == 1
            log.append(*events(2, 7))  # the log is put back
            await second.until_saved(7)
            assert second.crashes == []

    asyncio.run(main())


def test_refused_position_asks_kafka_nothing_where_the_intake_waits_for_it(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """One partition without a leader must not keep the fetches of all others waiting."""

    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            worker.fetching = False
            owner, asked = worker.owners[0], log.asked
            log.failures = [KafkaConnectionError("no leader")] * 2
            log.starts[0] = 5
            # No await: in the present turn of the loop nothing can have been asked.
            owner.out_of_range(5)
            assert (owner.partition.phase, owner.open) == (Phase.ACQUIRE, False)
            assert (log.asked, len(log.failures)) == (asked, 2)
            await worker.until_phase(Phase.HALT)  # by the owner's own task, in its own time
            assert log.failures == []
            assert worker.crashes == []

    asyncio.run(main())


def test_changed_partition_count_halts(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.counts |= {log.topic: 2, "out": 2}
        async with running(model, log, valkey.url, 0, 1) as second:
            await second.until_phase(Phase.HALT, 0)
            await second.until_phase(Phase.HALT, 1)
            assert "expected 2, got 1 in Redis" in second.owners[1].partition.halted

    asyncio.run(main())


def test_changed_partition_count_is_seen_under_an_idle_partition(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """DESIGN section 5, IDLE: once a second compare N with what it was."""

    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            log.counts |= {log.topic: 2, "out": 2}
            await worker.until(lambda: worker.owners[0].partition.phase is Phase.HALT, 3.0)

    asyncio.run(main())


def test_topic_created_anew_under_an_idle_partition_is_seen_within_an_audit(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Nothing else would tell: a new topic of the same name has the same partitions."""

    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            log.identity = "id-2"
            await worker.until_phase(Phase.HALT)
            assert worker.owners[0].partition.halted.startswith(
                "the topic was created anew: expected topic id id-2, got id-1 in Redis"
            )
            log.identity = "id-1"  # the operator adopts it, or it was another broker's word
            log.append(*events(5, 7))
            await worker.until_saved(7)
            await check(worker)

    asyncio.run(main())


def test_topic_created_anew_under_a_partition_that_is_never_idle_is_seen_too(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "AUDIT_S", 0.3)  # longer than any two events are apart

    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(1)
            partition = worker.owners[0].partition
            log.identity = "id-2"
            for offset in range(1, 1000):
                log.append(event(offset, b"k"))
                await worker.until(
                    lambda o=offset: partition.saved > o or partition.phase is not Phase.RUN  # type: ignore[misc]
                )
                if partition.phase is not Phase.RUN:
                    break
            await worker.until(lambda: worker.metrics.halts == 1)
            assert len(worker.emitter.sent) < 1000

    asyncio.run(main())


def test_broker_that_tells_no_topic_ids_halts_nobody(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            log.identity = ""
            counted, asked = log.counted, log.asked
            await worker.until(lambda: log.counted > counted + 3)
            assert worker.owners[0].partition.phase is Phase.RUN
            assert log.asked == asked  # no further ACQUIRE

    asyncio.run(main())


def test_key_state_that_vanishes_under_an_idle_partition_halts_within_an_audit(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            name = worker.store.name(log.topic, 0)
            value = await worker.store.redis.hget(name, ":k1")
            await worker.store.redis.hdel(name, ":k1")
            await worker.until_phase(Phase.HALT)
            assert worker.owners[0].partition.halted.startswith(
                "key states are missing or too many: expected 3, got 2 in Redis"
            )
            log.append(*events(5, 7))
            asked = log.asked
            await worker.until(lambda: log.asked > asked + 2)
            assert len(worker.emitter.sent) == 5
            await worker.store.redis.hset(name, ":k1", value)
            await worker.until_saved(7)
            await check(worker)

    asyncio.run(main())


def test_position_moved_by_markers_alone_moves_the_watermark(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            log.ends[0] = 9
            await worker.until_saved(9)
            assert (await worker.meta())["#W"] == "9"
            await check(worker)  # the fingerprint is still that of the last record
            log.append(*events(9, 12))
            await worker.until_saved(12)
            await check(worker)
            assert worker.metrics.rewinds == 0
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            log.ends[0] = 15
            await second.until_saved(15)
            assert second.metrics.unverified == 0
            assert second.emitter.sent == []

    asyncio.run(main())


def test_partition_that_is_fetched_in_vain_is_not_woken_and_so_is_audited(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # The intake tells the position after each fetch: word of an unmoved one must wake nobody.
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            owner = worker.owners[0]
            worker.fetching = False  # told by hand from here on
            owner._changed.clear()
            for position in (5, 4, 0):
                owner.passed(position)
            assert not owner._changed.is_set()
            assert (owner.partition.applied, owner.partition.saved) == (5, 5)

    asyncio.run(main())


def test_other_bundle_halts_and_leaves_the_states(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
            before = await first.fields()
        async with running(model, log, valkey.url, 0, bundle="another") as second:
            await second.until_phase(Phase.HALT)
            assert "the state belongs to another bundle" in second.owners[0].partition.halted
            assert await second.fields() == before

    asyncio.run(main())


@pytest.mark.parametrize(("change", "begin"), [("rebuild", 0), ("reset", 5)])
def test_other_bundle_takes_over_without_emitting_anything_again_where_the_operator_decided_so(
    tmp_path: Path, model: Model, log: MemoryLog, valkey: Valkey, change: str, begin: int
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.append(*events(5, 9))
        other = Model(make_tiny_bundle(tmp_path, seed=1))
        rules = Rules(bundle_change=change)
        async with running(other, log, valkey.url, 0, nonce="second", rules=rules) as second:
            await second.until_saved(9)
            assert second.emitter.ids() == [f"{log.topic}:0:{offset}:0" for offset in range(5, 9)]
            # What it emits is its own fold from where it began.
            records = [
                LogRecord(r.offset, r.timestamp, r.key, r.value) for r in log.records[0][begin:]
            ]
            served = serve(other.bundle, log.topic, 0, records)
            wanted = [json.loads(payload or b"") for _, payload in served.outputs][5 - begin :]
            assert [payload for _, _, payload in second.emitter.sent] == wanted
            assert await second.stored() == served.states

    asyncio.run(main())


# -- REWIND ----------------------------------------------------------------------------------------


def test_rollback_of_redis_under_an_idle_partition_is_seen_and_replayed(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            before = await worker.copy_of_redis()
            log.append(*events(5, 9))
            await worker.until_saved(9)
            await worker.roll_back(before)
            await worker.until_rewound(9)
            await check(worker)
            assert len(worker.emitter.sent) == 13  # four of them twice, same payload
            assert worker.crashes == []

    asyncio.run(main())


def test_rollback_while_outputs_wait_for_acks_is_replayed(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            before = await worker.copy_of_redis()
            log.append(*events(5, 9))
            await worker.until_saved(9)
            worker.emitter.gate.clear()
            log.append(*events(9, 12))
            await worker.until(lambda: worker.emitter.sending == 1)
            await worker.roll_back(before)
            worker.emitter.gate.set()
            await worker.until_rewound(12)
            await check(worker)

    asyncio.run(main())


def test_rollback_below_the_fence_is_a_rewind_and_no_other_owner(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
            before = await first.copy_of_redis()
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            log.append(*events(5, 9))
            await second.until_saved(9)
            await second.roll_back(before)
            await second.until_rewound(9)
            await check(first, second)
            assert second.crashes == []

    asyncio.run(main())


# -- two owners ------------------------------------------------------------------------------------


def test_worker_that_lost_its_partition_unknowingly_stops_and_harms_nothing(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as stale:
            await stale.until_saved(5)
            stale.fetching = False  # paused, not revoked
            async with running(model, log, valkey.url, 0, nonce="new") as new:
                log.append(*events(5, 9))
                await new.until_saved(9)
                stale.fetching = True
                await stale.until(lambda: stale.crashes)
                assert isinstance(stale.crashes[0], NotOwner)
                log.append(*events(9, 12))
                await new.until_saved(12)
                await check(stale, new)
                assert new.crashes == []

    asyncio.run(main())


def test_worker_that_learns_in_a_load_that_it_is_not_the_owner_applies_nothing_more(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "AUDIT_S", 60.0)

    async def main() -> None:
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, 0) as stale:
            await stale.until_saved(1)
            name = stale.store.name(log.topic, 0)
            await stale.store.redis.hset(name, mapping={"#E": 99, "#O": "new"})
            # One key is resident, the other is not: its event must not be passed over in silence.
            log.append(event(1, b"k"), event(2, b"cold"), event(3, b"k"))
            await stale.until(lambda: stale.crashes)
            assert stale.owners[0].partition.applied == 1
            assert stale.emitter.ids() == [f"{log.topic}:0:0:0"]

    asyncio.run(main())


# -- DRAIN -----------------------------------------------------------------------------------------


def test_revoked_partition_saves_what_was_applied(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url) as worker:
            worker.emitter.gate.clear()
            owner = worker.assign(0)
            await worker.until(lambda: owner.partition.applied == 5)
            revoked = asyncio.create_task(worker.revoke(0))
            await worker.until(lambda: owner.partition.phase is Phase.DRAIN)
            assert len(worker.slots) == 3
            worker.emitter.gate.set()
            await revoked
            assert owner.partition.saved == 5
            assert owner.partition.phase is Phase.UNASSIGNED
            assert len(worker.slots) == 0
            await check(worker)

    asyncio.run(main())


def test_drain_ends_at_its_deadline_and_the_next_owner_replays(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url) as worker:
            worker.emitter.gate.clear()
            owner = worker.assign(0)
            await worker.until(lambda: worker.emitter.sending == 1)
            await worker.revoke(0, deadline_s=0.05)
            assert owner.partition.phase is Phase.UNASSIGNED
            assert owner._task is not None
            assert owner._task.done()
            assert len(worker.slots) == 0
            assert worker.crashes == []
            worker.emitter.gate.set()
            worker.assign(0)  # the same worker gets it back
            await worker.until_saved(5)
            await check(worker)

    asyncio.run(main())


def test_drain_ends_at_its_deadline_though_the_task_was_just_woken(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # Python 3.11's wait_for swallows a cancellation that meets the end of what it waits for.
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, save_every_s=1e9) as worker:
            owner = worker.assign(0)
            await worker.until(lambda: owner.partition.acked == 5)  # waits for the save to be due
            worker.emitter.gate.clear()
            revoked = asyncio.create_task(worker.revoke(0, deadline_s=0.0))
            done, _ = await asyncio.wait([revoked], timeout=1.0)
            worker.emitter.gate.set()
            await revoked
            assert done

    asyncio.run(main())


class HeldStore(Store):
    """A store whose replies to loads and to acquires can be held."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loads, self.acquires = asyncio.Event(), asyncio.Event()
        self.loads.set()
        self.acquires.set()
        self.held = 0

    async def load(self, topic: str, partition: int, keys: Sequence[bytes]) -> Loaded:
        loaded = await super().load(topic, partition, keys)
        self.held += 1
        await self.loads.wait()
        self.held -= 1
        return loaded

    async def acquire(self, *args: Any) -> Any:
        reply = await super().acquire(*args)
        self.held += 1
        await self.acquires.wait()
        self.held -= 1
        return reply


def test_partition_revoked_during_a_load_applies_nothing_and_leaves_no_slot(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, store_class=HeldStore) as worker:
            store = worker.store
            assert isinstance(store, HeldStore)
            store.loads.clear()
            owner = worker.assign(0)
            await worker.until(lambda: store.held == 1)
            await worker.revoke(0)
            worker.assign(0)
            await worker.until_phase(Phase.RUN)
            store.loads.set()  # the first load's reply arrives under the second fence
            await worker.until_saved(5)
            assert owner.partition.applied == 0
            assert len(worker.emitter.sent) == 5
            await check(worker)

    asyncio.run(main())


def test_partition_revoked_during_acquire_leaves_at_once(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        async with running(model, log, valkey.url, store_class=HeldStore) as worker:
            store = worker.store
            assert isinstance(store, HeldStore)
            store.acquires.clear()
            owner = worker.assign(0)
            await worker.until(lambda: store.held == 1)
            revoked = asyncio.create_task(worker.revoke(0))
            await worker.until(lambda: owner.partition.phase is Phase.UNASSIGNED)
            store.acquires.set()
            await asyncio.wait_for(revoked, 1.0)
            assert log.seeks == []

    asyncio.run(main())


@pytest.mark.parametrize("phase", [Phase.SEEK, Phase.HALT])
def test_partition_that_waits_leaves_at_once(
    model: Model, log: MemoryLog, valkey: Valkey, phase: Phase
) -> None:
    async def main() -> None:
        if phase is Phase.HALT:
            log.offsets[0] = GroupOffset(5, "")
        async with running(model, log, valkey.url, 0, fetching=False) as worker:
            await worker.until_phase(phase)
            await asyncio.wait_for(worker.revoke(0), 1.0)

    asyncio.run(main())


def test_loss_found_out_while_draining_ends_the_drain_and_takes_no_new_fence(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            before = await worker.copy_of_redis()
            log.append(*events(5, 7))
            await worker.until_saved(7)
            worker.emitter.gate.clear()
            log.append(*events(7, 9))
            await worker.until(lambda: worker.emitter.sending == 1)
            revoked = asyncio.create_task(worker.revoke(0))
            await asyncio.sleep(0)
            await worker.roll_back(before)
            worker.emitter.gate.set()
            await asyncio.wait_for(revoked, 2.0)
            assert (await worker.store.hold(log.topic, 0)).number == 1
        async with running(model, log, valkey.url, 0, nonce="second") as second:
            await second.until_saved(9)
            await check(worker, second)

    asyncio.run(main())


# -- all together ----------------------------------------------------------------------------------


class SlowStore(Store):
    """A store whose replies take their time, each a different one."""

    random = np.random.default_rng(0)

    async def _late(self, reply: Any) -> Any:
        await asyncio.sleep(float(self.random.choice([0.0, 0.001, 0.004])))
        return reply

    async def load(self, *args: Any) -> Any:
        return await self._late(await super().load(*args))

    async def save(self, *args: Any) -> Any:
        return await self._late(await super().save(*args))


class Life:
    """Random events of a partition's life."""

    def __init__(self, log: MemoryLog, seed: int) -> None:
        self.log, self.draw = log, np.random.default_rng(seed)
        self.copies: list[bytes] = []  # of Redis, to be rolled back to

    def grow(self, count: int) -> None:
        """Append events, tombstones and poison, with gaps between their offsets."""
        for _ in range(count):
            records = self.log.records.get(0)
            offset = (records[-1].offset + 1 if records else 0) + int(self.draw.integers(0, 2))
            key = b"k%d" % min(self.draw.zipf(1.5), 60)
            kind = self.draw.random()
            if kind < 0.08:
                self.log.append(Rec(offset, key, None))
            elif kind < 0.12:
                self.log.append(Rec(offset, key, b"poison"))
            else:
                a, b = self.draw.normal(0, 1, 2).tolist()
                self.log.append(event(offset, key, a, b))

    async def settle(self, worker: Worker) -> None:
        """Wait until the whole log is saved."""
        end, part = self.log.records[0][-1].offset + 1, worker.owners[0].partition
        await worker.until(lambda: part.saved >= end and part.phase is Phase.RUN)

    async def go(self, worker: Worker) -> None:
        """Let a worker live until it is killed or has seen enough."""
        await worker.until_phase(Phase.RUN)
        self.copies.append(await worker.copy_of_redis())
        for _ in range(12):
            self.grow(int(self.draw.integers(1, 120)))
            what = self.draw.choice(["settle", "copy", "rollback", "revoke", "cut", "kill"])
            if what == "kill":
                return
            if what == "settle":
                await self.settle(worker)
            elif what == "copy":
                self.copies.append(await worker.copy_of_redis())
            elif what == "rollback":
                await worker.roll_back(self.copies[-1])
            else:
                await worker.revoke(0, deadline_s=0.0 if what == "cut" else 5.0)
                worker.assign(0)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_predictions_are_the_offline_fold(
    tmp_path: Path, log: MemoryLog, valkey: Valkey, seed: int
) -> None:
    """Rollbacks, revocations, kills, evictions, tombstones and slow replies, in random order."""
    model = Model(make_tiny_bundle(tmp_path, tombstone="reset"))
    life = Life(log, seed)

    async def main() -> None:
        workers = []
        options: dict[str, Any] = {"store_class": SlowStore, "max_events": 40, "max_keys": 8}
        for number in range(5):
            options |= {"nonce": f"n{number}", "save_every_s": (number + seed) % 2 * 0.005}
            async with running(model, log, valkey.url, 0, **options) as worker:
                workers.append(worker)
                await (life.settle(worker) if number == 4 else life.go(worker))
                assert worker.crashes == []
                if number == 4:
                    await check(*workers)

    asyncio.run(main())


# -- the rest --------------------------------------------------------------------------------------


def test_halted_partition_says_so_once_and_not_again_at_each_try(
    model: Model, log: MemoryLog, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as first:
            await first.until_saved(5)
        log.records[0] = [event(i, b"new") for i in range(9)]
        async with running(model, log, valkey.url, 0) as second:
            await second.until_phase(Phase.HALT)
            asked = log.asked
            await second.until(lambda: log.asked > asked + 3)
            await second.until_phase(Phase.HALT)
            assert second.metrics.halts == 1

    asyncio.run(main())
    assert caplog.text.count("HALT: the record at offset") == 1
    assert "no longer halted" not in caplog.text


def test_kafka_is_told_of_a_watermark_once(model: Model, log: MemoryLog, valkey: Valkey) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            owner = worker.owners[0]
            assert owner.hint_due()
            assert not owner.hint_due()
            log.append(*events(5, 6))
            await worker.until_saved(6)
            assert owner.hint_due()

    asyncio.run(main())


def test_beginning_is_not_hinted_away_before_anything_was_saved(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # The hint has no metadata: it would turn "nothing was saved yet" into "states are lost".
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0, start="latest") as worker:
            await worker.until_phase(Phase.RUN)
            assert not worker.owners[0].hint_due()

    asyncio.run(main())


def test_lag_is_what_the_log_holds_beyond_the_watermark(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(5)
            worker.owners[0].saw_log_end(12)
            assert worker.owners[0].lag == 7
            worker.owners[0].saw_log_end(0)  # no word from the broker yet
            assert worker.owners[0].lag == 0

    asyncio.run(main())
