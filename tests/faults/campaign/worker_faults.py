"""Faults that strike workers: killed, frozen, told to go, joined by others.

Each is a function of the stage and the planned fault. Used through faults.py.
"""

from __future__ import annotations

import signal

from campaign.schedule import Fault
from campaign.stage import Stage
from campaign.workers import Run


def kill(stage: Stage, fault: Fault) -> None:
    """SIGKILL a worker."""
    run = _victim(stage, fault)
    if run is None:
        return
    partitions = stage.owned_by(run)
    run.intended = "SIGKILL"
    run.child.kill()
    stage.struck(fault, partitions)


def kill_at_point(stage: Stage, fault: Fault) -> None:
    """Tell a worker to kill itself at a point; run.py notes the strike when it is dead."""
    run = _victim(stage, fault)
    if run is not None:
        run.order.with_suffix(".new").write_text(fault.point)
        run.order.with_suffix(".new").rename(run.order)


def freeze(stage: Stage, fault: Fault) -> None:
    """Stop a worker with SIGSTOP and let it go on later."""
    run = _victim(stage, fault)
    if run is None:
        return
    partitions = stage.owned_by(run)
    run.child.signal(signal.SIGSTOP)
    stage.struck(fault, partitions)
    stage.later(fault.lasts_s, lambda: run.child.signal(signal.SIGCONT))


def sigterm(stage: Stage, fault: Fault) -> None:
    """Ask a worker to stop."""
    run = _victim(stage, fault)
    if run is None:
        return
    partitions = stage.owned_by(run)
    run.intended = "SIGTERM"
    run.child.signal(signal.SIGTERM)
    stage.struck(fault, partitions)


def storm(stage: Stage, fault: Fault) -> None:
    """Let workers join and leave, by turns in good order and killed."""
    stage.struck(fault)
    for turn in range(2):
        begin_s = turn * fault.lasts_s / 2
        how = stage.random.choice((signal.SIGTERM, signal.SIGKILL))
        stage.later(begin_s, lambda how=how: _join_and_leave(stage, fault, how), heals=False)  # type: ignore[misc]


def _join_and_leave(stage: Stage, fault: Fault, how: int) -> None:
    run = stage.workers.start()
    stage.workers.extras.append(run)
    run.intended = signal.Signals(how).name
    stage.later(fault.lasts_s, lambda: run.child.signal(how))


def foreign_bundle(stage: Stage, fault: Fault) -> None:
    """Let a worker with another bundle join for a while."""
    run = stage.workers.start(worker__bundle=stage.scene.foreign_bundle.path)
    run.serves = False
    run.intended = "foreign"
    stage.workers.extras.append(run)
    stage.struck(fault)
    stage.later(fault.lasts_s, lambda: run.child.signal(signal.SIGTERM))


def _victim(stage: Stage, fault: Fault) -> Run | None:
    """Return the slot's worker, or another one when it is away just now."""
    slots = stage.workers.slots
    first = fault.worker % len(slots)
    for slot in (*slots[first:], *slots[:first]):
        if slot.run is not None and slot.run.child.exit_code is None:
            slot.back_s = fault.back_s
            return slot.run
    return None
