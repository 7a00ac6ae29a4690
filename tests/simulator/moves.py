"""Who moves next: one task from an await point to the next, a fault, Kafka, or the group.

Owns the order of one schedule and its end, where a single worker must catch up without faults.
Called by schedules.py.
"""

from __future__ import annotations

from bisect import bisect

from keyfold.worker import phases
from keyfold.worker.errors import NotOwner, StartUnset
from keyfold.worker.protocol import Phase
from simulator import faults
from simulator.oracle import Violation
from simulator.owner import Owner
from simulator.tasks import Task
from simulator.worker import Worker
from simulator.world import World

STEP_MS = 10  # of the clock, per move
END_ROUNDS = 1500  # in which a single worker must catch up without faults
OTHERS = 0.12  # of all moves: Kafka's and the group's


def run(world: World) -> World:
    """Run a schedule, then let one worker catch up. Raises Violation."""
    for _ in range(world.length):
        move(world)
    finish(world)
    return world


def move(world: World) -> None:
    """Let one thing happen. Raises Violation."""
    draw, faulty = world.random, world.fault_rate
    appending = faulty + world.append_rate
    world.moves += 1
    world.now_ms += STEP_MS
    dice, tasks = draw(), world.tasks
    if dice < faulty:
        _fault(world)
    elif dice < appending:
        world.append()
    elif dice < appending + OTHERS or not tasks:
        _others(world)
    else:
        task = tasks[int(draw() * len(tasks))]
        if not task.worker.frozen:
            _move(world, task)


def _move(world: World, task: Task) -> None:
    """Move a task to its next await point."""
    moves, worker = task.moves, task.worker
    if moves is None:
        return
    try:
        next(moves)
    except StopIteration:
        world.ended(task)
    except NotOwner:
        world.crash(worker, "not owner")
        return
    except StartUnset:
        world.crash(worker, "start not set")
        world.start = "earliest"
        return
    except (RuntimeError, KeyError) as error:
        # KeyError: an event whose key has no slot.
        raise Violation(f"the protocol's own check: {error!r}") from error
    owner = worker.owner
    if owner is not None and owner.partition.phase is not owner.seen:
        _note_phase(world, owner)


def _note_phase(world: World, owner: Owner) -> None:
    phase = owner.partition.phase
    world.changes[owner.seen, phase] += 1
    owner.seen = phase
    world.trace("phase", owner.worker, phase.value, owner.partition.saved)
    if phase is Phase.HALT:
        cause = world.oracle.halted(owner.partition.halted)
        world.count[f"halt: {cause}"] += 1
        world.trace("HALT", owner.worker, cause)
    elif phase is Phase.REWIND:
        world.count["rewind"] += 1


def _fault(world: World) -> None:
    if not world.workers:
        world.start_worker()
    fault = world.faults[bisect(world.weights, world.random() * world.weights[-1])]
    world.trace("fault", None, fault.__name__)
    fault(world)


# -- Kafka and the group ---------------------------------------------------------------------------


def _others(world: World) -> None:
    draw = world.random
    _deliver(world)
    if world.orphans and draw() < 0.3:
        world.trace("late command", None)
        world.count["late command"] += 1
        world.try_to(world.orphans.pop(int(draw() * len(world.orphans))))
    if world.assigned is None or world.assigned.owner is None:
        _assign_somebody(world)
    for worker in list(world.workers):
        if faults.halted_worker(worker):
            if draw() < 0.1:
                world.resolve(worker)
        elif worker is not world.assigned and not worker.frozen and draw() < 0.1:
            world.drain(worker)  # it has learnt that it is out of the group


def _deliver(world: World) -> None:
    """Let outputs arrive, or the ack of one fail."""
    draw = world.random
    sending = [worker for worker in world.workers if worker.outbox]
    if sending:
        worker = world.choice(sending)
        worker.deliver()
        if world.lossy and draw() < world.lossy / 4:
            world.crash(worker, "output not acked")
    if world.late and draw() < 0.3:
        sent = world.late.pop()
        world.count["late outputs of a dead worker"] += 1
        arrived = sent.outputs[: 1 + int(draw() * len(sent.outputs))]
        world.oracle.emitted(sent.lineage, arrived, sent.stale)


def _assign_somebody(world: World) -> None:
    if not world.workers:
        world.start_worker()
    able = [w for w in world.workers if not w.frozen and w.owner is None and w.draining is None]
    if able and world.random() < 0.5:
        world.assign(world.choice(able))


# -- the end ---------------------------------------------------------------------------------------


def finish(world: World) -> None:
    """Without faults, one worker must catch up with the log."""
    _leave_one(world)
    audited = world.asked[phases.AskTopic] + 2
    for _ in range(END_ROUNDS):
        world.moves += 1
        world.now_ms += STEP_MS
        for task in list(world.tasks):
            _move(world, task)
        if not world.workers or world.assigned is None or world.assigned.owner is None:
            world.assign(world.workers[0] if world.workers else world.start_worker())
        worker = world.workers[0]
        while worker.outbox:
            worker.deliver()
        if faults.halted_worker(worker):
            world.resolve(worker)
        elif _waits_for_a_record(world, worker):
            world.append()
        elif not _caught_up(world, worker):
            audited = world.asked[phases.AskTopic] + 2
        elif world.asked[phases.AskTopic] >= audited:
            break  # after a whole audit: nothing happened that it has not seen
    world.coordinator.settle()
    world.oracle.at_the_end(world.redis.hash)


def _leave_one(world: World) -> None:
    """End all faults and all workers but the owner, or a fresh one."""
    world.lossy, world.slow, world.gives_up = 0.0, 0.0, 0.3
    last = world.assigned
    if last is None or last.bundle != world.bundle or world.random() < 0.5:
        last = world.start_worker()
    for worker in [worker for worker in world.workers if worker is not last]:
        world.crash(worker, "end")
    for do in world.orphans:
        world.try_to(do)
    world.orphans, world.late = [], []
    last.frozen = False


def _waits_for_a_record(world: World, worker: Worker) -> bool:
    """Say whether the log is too short, which only the next record tells."""
    held, owner = world.redis.hash, worker.owner
    seeks = owner is not None and owner.partition.phase is Phase.SEEK
    return seeks and held is not None and held.watermark > world.log.end


def _caught_up(world: World, worker: Worker) -> bool:
    held, owner = world.redis.hash, worker.owner
    return (
        held is not None
        and owner is not None
        and owner.partition.phase is Phase.RUN
        and held.watermark == owner.partition.saved == world.log.end
    )
