"""One owner and a handover, on a real Valkey: it stops, answers, goes on, and gives up waiting.

Kafka is a list in memory; the other group and the operator are written into the record here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from memory_log import MemoryLog, Worker, events, running

from keyfold.worker import owner as owner_module
from keyfold.worker.errors import Crash
from keyfold.worker.handover import listener as listener_module
from keyfold.worker.handover import ownership as handover_module
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import HandoverStore, handover_name
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.protocol import Phase
from keyfold.worker.store import Store
from local.services import Valkey

WAITS = Handovers().wait("new")  # the record when group "new" has begun, without outputs


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "AUDIT_S", 0.02)
    monkeypatch.setattr(listener_module, "LISTEN_S", 0.02)
    monkeypatch.setattr(listener_module, "PROPOSAL_S", 0.01)
    monkeypatch.setattr(owner_module, "PROPOSAL_S", 0.01)


class Record:
    """The record of handovers, as the others change it."""

    def __init__(self, worker: Worker) -> None:
        self._store = HandoverStore(worker.store.redis, worker.log.topic, "out")
        self._worker = worker
        self.is_now = Handovers()

    async def read(self) -> Handovers:
        self.is_now = await self._store.read(0)
        return self.is_now

    async def set(self, after: Handovers | None) -> None:
        """Replace the record as it was read last."""
        assert after is not None
        assert await self._store.swap(0, self.is_now, after) == after
        self.is_now = after

    async def agree(self) -> None:
        """Agree to what is proposed, as the operator's command does."""
        assert self.is_now.proposal is not None
        await self.set(self.is_now.decide(self.is_now.proposal.number))

    async def until(self, what: Any) -> Handovers:
        """Wait until the record is so."""
        seen: list[Handovers] = []

        async def look() -> None:
            while True:
                record = await self.read()
                if what(record):
                    seen.append(record)
                    return
                await asyncio.sleep(0.002)

        task = asyncio.create_task(look())
        try:
            await self._worker.until(lambda: seen)
        finally:
            task.cancel()
        return seen[0]

    async def until_ready(self, group: str) -> None:
        """Wait until one group, and no other, stands at the proposal's offset."""
        await self.until(lambda record: ready(record) == (group,))


def offsets(worker: Worker) -> list[int]:
    """Return the offsets whose predictions were emitted, in order."""
    return [int(id_.split(":")[-2]) for id_ in worker.emitter.ids()]


def ready(record: Handovers) -> tuple[str, ...]:
    return () if record.proposal is None else record.proposal.ready


def both_ready(at: int) -> Handovers:
    """Return the record when both groups stand at the offset of a proposal."""
    return WAITS.propose("old", "new", at).ready("old").ready("new")


def agreed_at(offset: int) -> Handovers:
    """Return the record when the outputs from an offset on are the new group's."""
    record = both_ready(offset).decide(2)
    assert record is not None
    return record


@asynccontextmanager
async def asked(
    model: Model, log: MemoryLog, valkey: Valkey, at: int, **options: Any
) -> AsyncIterator[tuple[Worker, Record]]:
    """Run group "old" until ten events are saved, then propose to hand over at an offset."""
    log.append(*events(0, 10))
    async with running(model, log, valkey.url, 0, group="old", **options) as worker:
        await worker.until_saved(10)
        record = Record(worker)
        await record.set(WAITS.propose("old", "new", at))
        yield worker, record


@pytest.mark.parametrize("exactly_once", [False, True])
def test_the_group_that_emits_stops_at_the_proposed_offset_and_then_folds_silently(
    model: Model, log: MemoryLog, valkey: Valkey, exactly_once: bool
) -> None:
    async def main() -> None:
        rules = Rules(exactly_once=exactly_once)
        async with asked(model, log, valkey, at=15, rules=rules) as (worker, record):
            heard = worker.owners[0].partition.voice
            await worker.until(lambda: heard.proposal is not None)
            log.append(*events(10, 30))
            await record.until_ready("old")
            assert worker.owners[0].partition.saved == 15
            assert offsets(worker) == [*range(15)]
            await record.set(record.is_now.ready("new"))
            await record.agree()
            await worker.until_saved(30)
            assert offsets(worker) == [*range(15)]
            assert (await worker.meta())["keys"] == "3"

    asyncio.run(main())


@pytest.mark.parametrize("exactly_once", [False, True])
def test_the_group_that_waits_is_silent_until_it_is_handed_the_outputs(
    model: Model, log: MemoryLog, valkey: Valkey, exactly_once: bool
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        rules = Rules(exactly_once=exactly_once, silent=True)
        async with running(model, log, valkey.url, 0, group="new", rules=rules) as worker:
            await worker.until_saved(10)
            record = Record(worker)
            await record.until(lambda r: r.waiting == ("new",))
            await record.set(record.is_now.propose("old", "new", 10))
            await record.until_ready("new")
            log.append(*events(10, 20))
            await record.set(record.is_now.ready("old"))
            assert worker.owners[0].partition.applied == 10
            await record.agree()
            await worker.until_saved(20)
            assert offsets(worker) == [*range(10, 20)]
        # A restart with settings that say something else replays nothing below the seam.
        log.append(*events(20, 25))
        rules = Rules(exactly_once=exactly_once)
        async with running(model, log, valkey.url, 0, group="new", rules=rules) as worker:
            await worker.until_saved(25)
            assert offsets(worker) == [*range(20, 25)]

    asyncio.run(main())


@pytest.mark.parametrize("exactly_once", [False, True])
def test_group_that_has_a_state_is_not_silenced_by_a_setting(
    model: Model,
    log: MemoryLog,
    valkey: Valkey,
    caplog: pytest.LogCaptureFixture,
    exactly_once: bool,
) -> None:
    async def main() -> None:
        for silent, upto in ((False, 10), (True, 20), (False, 30)):
            log.append(*events(upto - 10, upto))
            rules = Rules(exactly_once=exactly_once, silent=silent)
            async with running(model, log, valkey.url, 0, group="old", rules=rules) as worker:
                await worker.until_saved(upto)
                assert offsets(worker) == [*range(upto - 10, upto)]
                assert await Record(worker).read() == Handovers()
            said = "worker.emit_from = handover is ignored: the group has a state" in caplog.text
            assert said == (upto > 10)

    asyncio.run(main())


class _DiesBeforeItBegins(Store):
    async def acquire(self, *args: Any, **options: Any) -> Any:
        if args[4] is not None:
            raise Crash("killed")
        return await super().acquire(*args, **options)


@pytest.mark.parametrize("redis_lost_the_note", [False, True])
def test_group_that_is_killed_while_it_begins_silently_begins_silently_again(
    model: Model, log: MemoryLog, valkey: Valkey, redis_lost_the_note: bool
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        rules = Rules(silent=True)
        async with running(
            model, log, valkey.url, 0, group="new", rules=rules, store_class=_DiesBeforeItBegins
        ) as worker:
            await worker.until(lambda: worker.crashes)
            assert (await Record(worker).read()).waiting == ("new",)
            assert not await worker.meta()
            if redis_lost_the_note:
                await worker.store.redis.delete(handover_name(log.topic, "out", 0))
        # Noted is enough, whatever the settings say by then.
        rules = rules if redis_lost_the_note else Rules()
        async with running(model, log, valkey.url, 0, group="new", rules=rules) as worker:
            await worker.until_saved(10)
            assert offsets(worker) == []
            assert (await Record(worker).read()).waiting == ("new",)

    asyncio.run(main())


def test_replay_over_a_seam_emits_each_side_s_own_only(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 30))
        for group, mine in (("old", range(12)), ("new", range(12, 30))):
            async with running(model, log, valkey.url, group=group) as worker:
                if group == "old":
                    await Record(worker).set(agreed_at(12))
                log.offsets.clear()  # the other group's
                worker.assign(0)
                await worker.until_saved(30)
                assert offsets(worker) == [*mine]

    asyncio.run(main())


def test_who_waits_too_long_at_a_proposal_withdraws_it_and_goes_on(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_module, "GIVE_UP_S", 0.3)

    async def main() -> None:
        async with asked(model, log, valkey, at=10) as (worker, record):
            await record.until_ready("old")
            log.append(*events(10, 20))
            await record.until(lambda r: r.proposal is None)
            assert not record.is_now.seams
            await worker.until_saved(20)
            assert offsets(worker) == [*range(20)]

    asyncio.run(main())


@pytest.mark.parametrize("ahead", [False, True])
def test_write_behind_keeps_no_handover_waiting(
    model: Model, log: MemoryLog, valkey: Valkey, ahead: bool
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        async with running(model, log, valkey.url, 0, group="old", save_every_s=600.0) as worker:
            await worker.until(lambda: offsets(worker) == [*range(10)])
            partition = worker.owners[0].partition
            assert partition.saved == 0
            record = Record(worker)
            await record.set(WAITS.propose("old", "new", 15 if ahead else 10))
            await worker.until(lambda: partition.voice.proposal is not None)
            log.append(*events(10, 20 if ahead else 10))
            await record.until_ready("old")
            await record.set(record.is_now.ready("new"))
            await record.set(record.is_now.decide(2))
            log.append(*events(20 if ahead else 10, 25))
            await worker.until(lambda: partition.acked == 25)
            assert offsets(worker) == [*range(15 if ahead else 10)]

    asyncio.run(main())


def test_owner_that_takes_over_while_a_proposal_stands_stops_there_too(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        async with asked(model, log, valkey, at=10) as (_, record):
            await record.until_ready("old")
        log.append(*events(10, 20))
        async with running(model, log, valkey.url, 0, group="old", nonce="next") as worker:
            heard = worker.owners[0].partition.voice
            await worker.until(lambda: heard.heard and worker.owners[0].waiting)
            assert worker.owners[0].room() == 0
            record = Record(worker)
            assert ready(await record.read()) == ("old",)
            assert offsets(worker) == []

    asyncio.run(main())


def test_at_least_once_owner_refuses_a_proposal_below_what_a_killed_one_may_have_emitted(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        async with asked(model, log, valkey, at=10):
            pass
        # Killed before it has heard, and perhaps after it has emitted more.
        log.append(*events(10, 20))
        async with running(model, log, valkey.url, 0, group="old", nonce="next") as worker:
            record = Record(worker)
            await record.until(lambda r: r.proposal is not None and r.proposal.beyond == 20)

    asyncio.run(main())


def test_agreement_that_redis_forgot_is_made_again_whoever_ends_the_proposal(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        silent = Rules(silent=True)
        async with (
            running(model, log, valkey.url, 0, group="old") as old,
            running(model, log, valkey.url, group="new", rules=silent) as new,
        ):
            await old.until_saved(10)
            log.offsets.clear()
            new.assign(0)
            record = Record(new)
            await record.until(lambda r: r.waiting == ("new",))
            await new.until_saved(10)
            await record.set(record.is_now.propose("old", "new", 10))
            both = await record.until(lambda r: set(ready(r)) == {"old", "new"})
            log.append(*events(10, 20))
            assert both.proposal is not None
            number = both.proposal.number
            agreed = both.decide(number)
            assert agreed is not None
            # Only the taker hears of it before the primary is gone; the replica holds `both`, and
            # the command runs again, or the giver gives up.
            new.owners[0].partition.hear(agreed)
            new.pipeline.wake()
            await new.until_saved(20)
            await record.set(both.withdraw(number))
            log.append(*events(20, 30))
            await old.until_saved(30)
            await new.until_saved(30)
            assert offsets(old) == [*range(10)]
            assert offsets(new) == [*range(10, 30)]
            assert await record.read() == agreed

    asyncio.run(main())


def test_redis_that_went_on_without_an_agreement_is_told_and_another_agreement_halts(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        agreed = agreed_at(5)
        async with running(model, log, valkey.url, group="old") as worker:
            record = Record(worker)
            await record.set(agreed)
            worker.assign(0)
            await worker.until_saved(10)
            gone_on = WAITS.propose("old", "new", 10).withdraw(2)
            assert gone_on is not None
            gone_on = gone_on.propose("old", "new", 10)
            assert gone_on.revision == agreed.revision - 1
            for held in (gone_on, gone_on.ready("new")):  # an equal revision, too
                await record.set(held)
                await record.until(lambda r: r.seams == agreed.seams)
            other = gone_on.ready("old").ready("new").decide(4)
            await record.set(other)
            await worker.until_phase(Phase.HALT)
            assert worker.owners[0].partition.halted == (
                f"handovers: expected {worker.owners[0].partition.voice.record}, as this worker "
                f"has heard it, and what follows from it, got {other}: Redis lost an agreement, "
                "and another was made: outputs may be out twice or missing between the two "
                "(keyfold-verify tells); restart this worker to go on with what Redis holds"
            )
            assert offsets(worker) == [*range(5)]

    asyncio.run(main())


def test_what_redis_forgot_of_an_agreement_is_put_back(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*events(0, 10))
        async with running(model, log, valkey.url, group="old") as worker:
            record = Record(worker)
            await record.set(agreed_at(5))
            worker.assign(0)
            await worker.until_saved(10)
            await record.set(both_ready(5))  # a failover to a replica that lags
            await record.until(lambda r: r == agreed_at(5))
            assert offsets(worker) == [*range(5)]

    asyncio.run(main())
