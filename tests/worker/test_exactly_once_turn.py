"""A partition whose outputs go out in transactions: what is emitted, with which group offset, once.

Runs the worker's real parts on a real Valkey; the transactions only remember, and fail as a test
tells them. Whatever happens, no id is in two transactions and none is left out. Kafka's own part is
in test_transactions.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from memory_log import MemoryLog, Rec, Worker, event, events, running
from naive_worker import LogRecord, serve
from tiny_bundle import make_tiny_bundle

from keyfold.worker import owner as owner_module
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.protocol import INIT_METADATA, GroupOffset, Phase
from keyfold.worker.store import Store
from local.services import Valkey

ONCE = Rules(exactly_once=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), tombstone="reset"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "AUDIT_S", 0.02)
    monkeypatch.setattr(owner_module, "HALT_RETRY_S", 0.05)


async def check(*workers: Worker) -> None:
    """Compare all workers' predictions, one after the other, with the offline fold of the log."""
    log = workers[-1].log
    records = [LogRecord(r.offset, r.timestamp, r.key, r.value) for r in log.records[0]]
    served = serve(workers[-1].model.bundle, log.topic, 0, records)
    wanted = [json.loads(payload or b"") for _, payload in served.outputs]
    assert [payload for worker in workers for _, _, payload in worker.emitter.sent] == wanted
    assert await workers[-1].stored() == served.states


def uptos(worker: Worker) -> list[int]:
    """Return the group offsets of a worker's transactions."""
    return [upto.offset for upto in worker.emitter.uptos if upto is not None]


# -- the group offset ------------------------------------------------------------------------------


def test_every_transaction_moves_the_group_offset_to_what_is_saved_next(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0, rules=ONCE, max_events=2) as worker:
            await worker.until_saved(5)
            assert uptos(worker)[-1] == 5
            assert {upto and upto.metadata for upto in worker.emitter.uptos} == {"keyfold:r0"}
            assert log.offsets[0] == GroupOffset(5, "keyfold:r0")
            assert (await worker.meta())["#C"] == "5"
            await check(worker)

    asyncio.run(main())


def test_group_offset_s_metadata_tells_since_which_reset_it_counts(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0, rules=ONCE) as first:
            await first.until_saved(5)
            name = first.store.name(log.topic, 0)
            # An operator's reset to 0 that has everything emitted again.
            await first.store.redis.hdel(name, ":k0", ":k1", ":k2")
            begin = {"#W": 0, "#L": "", "#S": "", "#C": "", "#R": 1, "#K": 0, "#E": 9}
        await _set(valkey, log, begin)
        async with running(model, log, valkey.url, 0, nonce="second", rules=ONCE) as second:
            await second.until_saved(5)
            assert log.offsets[0] == GroupOffset(5, "keyfold:r1")
            await check(second)

    asyncio.run(main())


async def _set(valkey: Valkey, log: MemoryLog, fields: dict[Any, Any]) -> None:
    store = Store.connect(valkey.url, 5.0, log.topic)
    await store.redis.hset(store.name(log.topic, 0), mapping=fields)
    await store.close()


def test_group_offset_moves_though_nothing_is_to_be_emitted(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Tombstones and markers: without a group offset beyond them W would be beyond C."""

    async def main() -> None:
        log.append(event(0, b"k"), Rec(1, b"k", None))
        async with running(model, log, valkey.url, 0, rules=ONCE, max_events=1) as worker:
            await worker.until_saved(2)
            assert log.offsets[0].offset == 2
            log.ends[0] = 7
            await worker.until_saved(7)
            assert log.offsets[0] == GroupOffset(7, "keyfold:r0")
            assert len(worker.emitter.sent) == 1

    asyncio.run(main())


def test_new_group_begins_with_a_group_offset_that_is_no_transaction_s(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        async with running(model, log, valkey.url, 0, rules=ONCE) as worker:
            await worker.until_phase(Phase.RUN)
            assert log.offsets[0] == GroupOffset(0, INIT_METADATA)
            assert worker.transactions.opened == 1
            log.append(*events(0, 3))
            await worker.until_saved(3)
            await check(worker)

    asyncio.run(main())


# -- a transaction that ended before its save ------------------------------------------------------


def test_replay_of_what_a_transaction_has_put_out_is_silent(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, rules=ONCE) as first:
            await first.until_saved(3)
            before = await first.copy_of_redis()
            log.append(*events(3, 8))
            await first.until_saved(8)
        async with running(model, log, valkey.url, rules=ONCE, nonce="second") as second:
            await second.roll_back(before)  # as if the worker had died before its save
            log.append(*events(8, 11))
            second.assign(0)
            await second.until_saved(11)
            assert second.emitter.ids()[0] == f"{log.topic}:0:8:0"
            assert min(uptos(second)) > 8  # C never goes back
            await check(first, second)

    asyncio.run(main())


def test_silent_replay_is_saved_without_a_transaction(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, rules=ONCE) as first:
            await first.until_saved(3)
            before = await first.copy_of_redis()
            log.append(*events(3, 8))
            await first.until_saved(8)
        async with running(
            model, log, valkey.url, rules=ONCE, nonce="second", max_events=2
        ) as second:
            await second.roll_back(before)
            second.assign(0)
            await second.until_saved(8)
            assert second.emitter.uptos == []
            await check(first, second)

    asyncio.run(main())


def test_long_silent_replay_under_write_behind_goes_on_without_acks(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Nothing is emitted, so nothing is acked: that must not count as running ahead."""

    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, rules=ONCE) as first:
            await first.until_saved(3)
            before = await first.copy_of_redis()
            log.append(*events(3, 60))
            await first.until_saved(60)
        options: dict[str, Any] = {"max_events": 1, "save_every_s": 600.0, "nonce": "second"}
        async with running(model, log, valkey.url, rules=ONCE, **options) as second:
            await second.roll_back(before)
            owner = second.assign(0)
            await second.until(lambda: owner.partition.acked == 60)
            assert second.emitter.uptos == []
            await second.revoke(0)
            assert owner.partition.saved == 60
            await check(first, second)

    asyncio.run(main())


# -- transactions that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "unknown"])
def test_failed_transaction_acquires_again_and_nothing_is_out_or_saved_twice(
    model: Model, log: MemoryLog, valkey: Valkey, how: str
) -> None:
    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, rules=ONCE) as worker:
            await worker.until_saved(3)
            worker.transactions.fail = [how, how]
            log.append(*events(3, 9))
            await worker.until_saved(9)
            # What is known to be out after the first one needs no second transaction.
            assert worker.transactions.fail == ([] if how == "lost" else [how])
            assert worker.transactions.opened == (3 if how == "lost" else 2)
            assert worker.metrics.rewinds == 0
            assert worker.crashes == []
            worker.transactions.fail = []
            log.append(*events(9, 12))
            await worker.until_saved(12)
            await check(worker)
            assert worker.transactions.opened - 1 == (await _fence(worker)) - 1

    asyncio.run(main())


def test_failed_transaction_of_a_partition_that_rewinds_meanwhile_does_not_lose_it(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    """Given up instead, it would be assigned here and served by nobody."""

    async def main() -> None:
        log.append(*events(0, 3))
        async with running(model, log, valkey.url, 0, rules=ONCE) as worker:
            await worker.until_saved(3)
            copy = await worker.copy_of_redis()
            log.append(*events(3, 6))
            await worker.until_saved(6)
            worker.emitter.gate.clear()
            worker.transactions.fail = ["unknown"]
            log.append(*events(6, 8))
            await worker.until(lambda: worker.emitter.sending == 1)
            await worker.roll_back(copy)
            log.append(event(8, b"a key that has to be loaded"))
            await worker.until_phase(Phase.REWIND)
            worker.emitter.gate.set()
            await worker.until_saved(9)
            await check(worker)

    asyncio.run(main())


async def _fence(worker: Worker) -> int:
    return (await worker.store.hold(worker.log.topic, 0)).number


@pytest.mark.parametrize("how", ["lost", "unknown"])
def test_failed_transaction_while_draining_gives_the_partition_up(
    model: Model, log: MemoryLog, valkey: Valkey, how: str
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, rules=ONCE) as first:
            first.emitter.gate.clear()
            owner = first.assign(0)
            first.transactions.fail = ["unknown" if how == "unknown" else "", how]
            await first.until(lambda: first.emitter.sending == 1)
            log.append(*events(5, 8))
            await first.until(lambda: owner.partition.applied == 8)
            revoked = asyncio.create_task(first.revoke(0))
            await first.until(lambda: owner.partition.phase is Phase.DRAIN)
            first.emitter.gate.set()
            await asyncio.wait_for(revoked, 2.0)
            assert owner.partition.phase is Phase.UNASSIGNED
            assert await _fence(first) == 1  # the next owner's
            assert first.crashes == []
        async with running(model, log, valkey.url, 0, rules=ONCE, nonce="second") as second:
            await second.until_saved(8)
            await check(first, second)

    asyncio.run(main())


def test_group_offset_that_is_gone_halts_until_it_is_back(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 5))
        async with running(model, log, valkey.url, 0, rules=ONCE) as first:
            await first.until_saved(5)
        kept = log.offsets.pop(0)
        log.append(*events(5, 8))
        async with running(model, log, valkey.url, 0, rules=ONCE, nonce="second") as second:
            await second.until_phase(Phase.HALT)
            assert second.owners[0].partition.halted.startswith("exactly-once outputs: the group")
            assert second.emitter.sent == []
            log.offsets[0] = kept
            await second.until_saved(8)
            await check(first, second)

    asyncio.run(main())


# -- all together ----------------------------------------------------------------------------------


class Life:
    """Random events of a partition's life."""

    def __init__(self, log: MemoryLog, seed: int) -> None:
        self.log, self.draw = log, np.random.default_rng(seed)
        self.copies: list[bytes] = []  # of Redis, to be rolled back to

    async def settle(self, worker: Worker) -> None:
        """Wait until the whole log is saved."""
        end, part = self.log.records[0][-1].offset + 1, worker.owners[0].partition
        await worker.until(lambda: part.saved >= end and part.phase is Phase.RUN)

    async def go(self, worker: Worker) -> None:
        """Let a worker live until it is killed or has seen enough."""
        for _ in range(8):
            first = self.log.records[0][-1].offset + 1 + int(self.draw.integers(0, 3))
            self.log.append(*events(first, first + int(self.draw.integers(1, 40))))
            what = str(self.draw.choice(["settle", "lost", "unknown", "back", "revoke", "kill"]))
            if what == "kill":
                return
            if what == "settle":
                await self.settle(worker)
                self.copies.append(await worker.copy_of_redis())
            elif what == "back" and self.copies:
                await worker.roll_back(self.copies[-1])
            elif what == "revoke":
                await worker.revoke(0, deadline_s=float(self.draw.choice([0.0, 5.0])))
                worker.assign(0)
            elif what != "back":
                worker.transactions.fail.append(what)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_every_prediction_is_out_exactly_once(
    model: Model, log: MemoryLog, valkey: Valkey, seed: int
) -> None:
    """Failing transactions, rollbacks, revocations and new owners, in random order."""
    life, workers = Life(log, seed), list[Worker]()

    async def main() -> None:
        log.append(*events(0, 3))
        for number in range(4):
            options: dict[str, Any] = {"nonce": f"n{number}", "max_events": 15}
            options["save_every_s"] = (number + seed) % 2 * 0.005
            async with running(model, log, valkey.url, 0, rules=ONCE, **options) as worker:
                workers.append(worker)
                await life.go(worker)
                assert worker.crashes == []
        async with running(model, log, valkey.url, 0, rules=ONCE, nonce="last") as last:
            await life.settle(last)
            workers.append(last)
            await check(*workers)

    asyncio.run(main())
