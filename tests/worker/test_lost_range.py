"""Events that retention took unseen: a halt by default, else predictions that say so.

Runs the real pipeline on a real Valkey. Which keys are marked follows from the log and the range
alone: a state from before the range may miss events, and so may a key without a state.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from memory_log import MemoryLog, Rec, Worker, running
from multiplier import make_multiplier

from keyfold.export.events import EventSpec
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.protocol import Phase
from keyfold.worker.state_codec import StateCodec
from local.services import Valkey

AFTER = 1000  # reset_after_ms
MARK = Rules(mark_lost=True)
GAP_FLAG = 5  # byte of a stored state that holds its flags
LOST, FIRST = 6, 10  # offsets 6 to 9 are lost


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    events = EventSpec(time_field="time", tombstone="reset", reset_after_ms=AFTER)
    return Model(make_multiplier(tmp_path_factory.mktemp("bundle"), events))


def event(offset: int, key: bytes, time: int | None = None, a: float = 2.0) -> Rec:
    members = {"a": a, "time": offset if time is None else time}
    return Rec(offset, key, json.dumps(members).encode(), 10**9)


def tombstone(offset: int, key: bytes) -> Rec:
    return Rec(offset, key, None, 10**9)


async def lose(model: Model, log: MemoryLog, url: str, *behind: Rec) -> None:
    """Fold two events each of k, z and y, then lose offsets 6 to 9 to retention."""
    log.append(*(event(i, (b"k", b"z", b"y")[i % 3]) for i in range(LOST)))
    async with running(model, log, url, 0) as worker:
        await worker.until_saved(LOST)
        assert not any("gap" in payload for _, _, payload in worker.emitter.sent)
    log.records[0], log.starts[0] = list(behind), FIRST


def said(worker: Worker) -> list[tuple[int, int, bool]]:
    """Return offset, steps and gap of every prediction."""
    found = []
    for _, _, payload in worker.emitter.sent:
        assert payload.get("gap", True) is True  # never false: the member is absent then
        assert "gap" not in payload or list(payload)[-1] == "gap"
        found.append((int(payload["id"].split(":")[-2]), payload["steps"], "gap" in payload))
    return found


def test_lost_range_halts_by_default_and_changes_nothing(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        await lose(model, log, valkey.url, event(10, b"k"))
        async with running(model, log, valkey.url, 0, nonce="second") as worker:
            await worker.until_phase(Phase.HALT)
            halted = worker.owners[0].partition.halted
            assert halted == worker.owners[0].partition.halts.events_lost(LOST, FIRST)
            meta = await worker.meta()
            assert (meta["#W"], meta["#G"], meta["keys"]) == ("6", "", "3")
            assert worker.emitter.sent == []

    asyncio.run(main())


def test_worker_told_so_goes_on_behind_the_range_and_remembers_it(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        await lose(model, log, valkey.url, event(10, b"k"), event(12, b"k"))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(13)
            assert said(worker) == [(10, 3, True), (12, 4, True)]
            assert worker.metrics.lost == FIRST - LOST
            assert (await worker.meta())["#G"] == "6-10"
        # The range outlives the worker that skipped it, and is skipped once only.
        log.append(event(13, b"z"))
        async with running(model, log, valkey.url, 0, nonce="third") as worker:
            await worker.until_saved(14)
            assert said(worker) == [(13, 3, True)]
            assert worker.metrics.lost == 0
            assert (await worker.meta())["#G"] == "6-10"

    asyncio.run(main())


def test_range_that_is_lost_while_the_partition_runs_is_skipped_too(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        log.append(*(event(i, b"k") for i in range(LOST)))
        async with running(model, log, valkey.url, 0, rules=MARK) as worker:
            await worker.until_saved(LOST)
            worker.fetching = False
            log.records[0], log.starts[0] = [event(10, b"k")], FIRST
            worker.owners[0].out_of_range(LOST)  # what the broker says of the next fetch
            worker.fetching = True
            await worker.until_saved(11)
            assert said(worker)[-1] == (10, LOST + 1, True)
            assert worker.crashes == []

    asyncio.run(main())


# The log behind the range, and what is said of each event: (offset, steps, gap).
CASES: dict[str, tuple[list[Rec], list[tuple[int, int, bool]]]] = {
    "a key with a state from before it": ([event(10, b"k")], [(10, 3, True)]),
    "a key that nobody knows": (
        [event(10, b"new"), event(11, b"new")], [(10, 1, True), (11, 2, True)]
    ),
    "not a key that a tombstone has reset": (
        [tombstone(10, b"k"), event(11, b"k"), event(12, b"k")], [(11, 1, False), (12, 2, False)]
    ),
    "not an unknown key that a tombstone has reset": (
        [tombstone(10, b"new"), event(11, b"new")], [(11, 1, False)]
    ),
    "a key until a tombstone resets it": (
        [event(10, b"k"), tombstone(11, b"k"), event(12, b"k")], [(10, 3, True), (12, 1, False)]
    ),
    "a key whose silence the range may have broken": (
        [event(10, b"k", 5000), event(11, b"k", 5001)], [(10, 1, True), (11, 2, True)]
    ),
    "a key whose silence began before it, told by stream time": (
        [event(10, b"new", 5000), event(11, b"k", 10)], [(10, 1, True), (11, 1, True)]
    ),
    "a key whose only event so far was not finite": (
        [event(10, b"new", 10, 0.0), event(11, b"new", 5000)], [(11, 1, True)]
    ),
    "not a key silent since an event behind it": (
        [event(10, b"k", 10), event(11, b"k", 5000), event(12, b"k", 5001)],
        [(10, 3, True), (11, 1, False), (12, 2, False)],
    ),
    "a key silent since an event behind it that was not finite": (
        [event(10, b"k", 10, 0.0), event(11, b"k", 5000)], [(11, 1, True)]
    ),
    "a key whose reset by silence was not finite": (
        [event(10, b"k", 5000, 0.0), event(11, b"k", 9000), event(12, b"k", 9001)],
        [(11, 1, True), (12, 2, True)],
    ),
    "not a key silent twice behind it": (
        [event(10, b"k", 10), event(11, b"k", 5000, 0.0), event(12, b"k", 9000)],
        [(10, 3, True), (12, 1, False)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("max_events", [1, 100])
@pytest.mark.parametrize("case", CASES)
def test_marked_is(
    model: Model, log: MemoryLog, valkey: Valkey, case: str, max_events: int
) -> None:
    behind, wanted = CASES[case]

    async def main() -> None:
        await lose(model, log, valkey.url, *behind)
        options: dict[str, Any] = {"nonce": "second", "rules": MARK, "max_events": max_events}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(behind[-1].offset + 1)
            assert said(worker) == wanted

    asyncio.run(main())


@pytest.mark.parametrize("case", CASES)
def test_mark_does_not_depend_on_who_was_in_memory(
    model: Model, log: MemoryLog, valkey: Valkey, case: str
) -> None:
    """Each event behind the range is served by another worker."""
    behind, wanted = CASES[case]

    async def main() -> None:
        await lose(model, log, valkey.url, behind[0])
        found = []
        for number, record in enumerate(behind):
            if number:
                log.append(record)
            async with running(model, log, valkey.url, 0, nonce=f"n{number}", rules=MARK) as worker:
                await worker.until_saved(record.offset + 1)
                found += said(worker)
        assert found == wanted

    asyncio.run(main())


def test_reset_key_keeps_a_state_without_steps_behind_a_lost_range(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # Without it nobody would know after a restart that the key is truly cold.
    async def main() -> None:
        await lose(model, log, valkey.url, tombstone(10, b"k"), event(11, b"z", 9000, 0.0))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(12)
            stored = await worker.stored()
            states = StateCodec(model.bundle.manifest).unpack(
                [b"k", b"z"], [stored[b"k"], stored[b"z"]], 12
            )
            assert states.steps.tolist() == [0, 0]
            assert states.offsets.tolist() == [10, 11]
            assert states.gaps.tolist() == [False, True]

    asyncio.run(main())


def test_key_whose_events_were_all_rejects_leaves_nothing_behind_a_lost_range(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        await lose(model, log, valkey.url, event(10, b"new", 10, 0.0))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(11)
            assert (await worker.stored()).keys() == {b"k", b"z", b"y"}

    asyncio.run(main())


def test_nothing_is_collected_behind_a_lost_range(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    # A state that is gone would make its key one that nobody knows, and marked.
    async def main() -> None:
        await lose(model, log, valkey.url, event(10, b"k", 10), event(11, b"z", 10**6))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(12)
            assert (await worker.stored()).keys() == {b"k", b"z", b"y"}

    asyncio.run(main())


def test_mark_is_stored_with_the_state_and_read_back(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        behind = event(10, b"k"), tombstone(11, b"z"), event(12, b"z")
        await lose(model, log, valkey.url, *behind)
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(13)
            flags = {key: value[GAP_FLAG] for key, value in (await worker.stored()).items()}
            # y was not used since: it is marked when it is, by its last offset.
            assert flags == {b"k": 1, b"z": 0, b"y": 0}
        log.append(event(13, b"k"), event(14, b"z"), event(15, b"y"))
        async with running(model, log, valkey.url, 0, nonce="third") as worker:
            await worker.until_saved(16)
            assert said(worker) == [(13, 4, True), (14, 2, False), (15, 3, True)]

    asyncio.run(main())


def test_second_range_marks_what_was_exact_behind_the_first(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        await lose(model, log, valkey.url, tombstone(10, b"z"), event(11, b"z"))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(12)
            assert said(worker) == [(11, 1, False)]
        log.records[0], log.starts[0] = [event(20, b"z")], 20
        async with running(model, log, valkey.url, 0, nonce="third", rules=MARK) as worker:
            await worker.until_saved(21)
            assert said(worker) == [(20, 2, True)]
            assert (await worker.meta())["#G"] == "6-10,12-20"

    asyncio.run(main())


def test_stream_time_goes_on_behind_a_lost_range(
    model: Model, log: MemoryLog, valkey: Valkey
) -> None:
    async def main() -> None:
        await lose(model, log, valkey.url, event(10, b"k", 3))
        async with running(model, log, valkey.url, 0, nonce="second", rules=MARK) as worker:
            await worker.until_saved(11)
            assert (await worker.meta())["#S"] == "5"  # of offset 5

    asyncio.run(main())
