"""10,000 random schedules of the real phases on models of Kafka and Redis: no invariant breaks.

A failure prints the seed, the last events and the command that runs that schedule alone. More of
them: `make simulate N=100000 SEED=1`.
"""

from __future__ import annotations

import pytest

from keyfold.worker import phases
from keyfold.worker.protocol import Phase
from simulator import faults
from simulator.moves import run
from simulator.oracle import HALTS
from simulator.schedules import Tally, run_many
from simulator.world import World

SCHEDULES = 10_000
CHUNKS = 10
FIRST_SEED = 1

# What must have happened in the default schedules, or they prove less than they seem to.
HAPPENED = {
    "acquire begun again", "begun behind an emit floor", "compaction", "crash: killed",
    "crash: not owner",
    "crash: output not acked", "crash: start not set", "drain", "drain cut",
    "expired state collected", "fenced producer refused", "fetch out of range", "frozen",
    "group offset lost", "group offset of a stale member refused", "hint", "key expired",
    "key lost", "late command", "late command refused", "late outputs of a dead worker",
    "late save of a stale owner refused", "load found lost writes", "log truncated", "offset gap",
    "offset gap at the end", "output repeated", "passed without records", "rebalance",
    "reply lost", "request late", "request lost", "retention", "retention past W", "rewind",
    "rollback", "save", "save on a watermark that moved back refused",
    "save repeated after its reply was lost", "silent replay", "slow reply", "snapshot", "thawed",
    "topic grown", "topic recreated", "total loss", "transaction", "transaction expired",
    "transaction failed", "two owners", "bundle switched",
    "operator: reset", "operator: rebuild", "operator: restore", "operator: adopt",
    "operator: mark-and-continue", "operator: on_bundle_change",
    *(f"halt: {cause}" for cause, _ in HALTS.values()),
}  # fmt: skip

CHANGES = {
    (Phase.UNASSIGNED, Phase.ACQUIRE), (Phase.ACQUIRE, Phase.SEEK), (Phase.ACQUIRE, Phase.HALT),
    (Phase.SEEK, Phase.RUN), (Phase.SEEK, Phase.HALT), (Phase.SEEK, Phase.ACQUIRE),
    (Phase.RUN, Phase.REWIND), (Phase.RUN, Phase.ACQUIRE), (Phase.RUN, Phase.HALT),
    (Phase.REWIND, Phase.ACQUIRE), (Phase.HALT, Phase.ACQUIRE),
}  # fmt: skip


@pytest.fixture(scope="module")
def tally() -> Tally:
    """Return what the schedules of this module covered; each chunk adds its part."""
    return Tally()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_breaks_an_invariant(chunk: int, tally: Tally) -> None:
    """Run a tenth of the schedules."""
    each = SCHEDULES // CHUNKS
    first = FIRST_SEED + chunk * each
    tally.add_all(run_many(range(first, first + each)))


def test_the_schedules_covered_every_fault_question_and_change_of_phase(tally: Tally) -> None:
    """Look at what the schedules above did."""
    if tally.schedules < SCHEDULES:
        pytest.skip("the schedules did not all run before this test")
    assert not HAPPENED - tally.happened.keys()
    # Proposals are test_pair.py's.
    asked = {kind.__name__ for kind in phases.Question.__args__} - {"SetHandovers"}
    assert not asked - tally.asked.keys()
    assert not CHANGES - tally.changes.keys()


def test_the_same_seed_is_the_same_schedule() -> None:
    """Run one schedule twice."""
    first, second = World(7, traced=True), World(7, traced=True)
    run(first)
    run(second)
    assert first.events
    assert [str(event) for event in first.events] == [str(event) for event in second.events]


def test_without_faults_no_partition_halts_and_none_rewinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run schedules that know no fault."""
    monkeypatch.setattr(faults, "FAULTS", {})
    tally = run_many(range(200))
    assert tally.happened["save"]
    assert not [what for what in tally.happened if what.startswith("halt") or what == "rewind"]
