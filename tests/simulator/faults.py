"""What goes wrong in a schedule: each fault changes the world at one instant.

Which faults a schedule knows, and how often they come, is drawn once at its beginning, so that rare
ones meet each other. Limits that the protocol has by design are kept here, each with its reason.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from keyfold.worker.protocol import Phase, Topic

if TYPE_CHECKING:
    from simulator.store import Hash
    from simulator.worker import Worker
    from simulator.world import World


def crash(world: World) -> None:
    """A worker is killed."""
    world.crash(world.choice(world.workers), "killed")


def freeze(world: World) -> None:
    """A worker stops for a while, without knowing; the group takes its partition away."""
    worker = world.choice(world.workers)
    if not worker.frozen:
        worker.frozen = True
        world.count["frozen"] += 1
        if world.assigned is worker and world.random() < 0.8:
            world.assigned = None


def thaw(world: World) -> None:
    """A frozen worker goes on with what it believed."""
    frozen = [worker for worker in world.workers if worker.frozen]
    if frozen:
        world.choice(frozen).frozen = False
        world.count["thawed"] += 1


def join(world: World) -> None:
    """A worker joins."""
    if len(world.workers) < 3:
        world.start_worker()


def rebalance(world: World) -> None:
    """The group gives the partition to another worker, or anew to the same."""
    world.revoke()
    world.count["rebalance"] += 1


def split(world: World) -> None:
    """The group gives the partition away while its owner still believes in it."""
    others = [w for w in world.workers if w is not world.assigned and w.owner is None]
    if others:
        world.assign(world.choice(others))
        world.count["two owners"] += 1


def roll_back(world: World) -> None:
    """Redis fails over to a replica that lags."""
    redis = world.redis
    choice = 1 + int(world.random() * max(len(redis.past) - 1, 0))
    if choice >= len(redis.past):
        return
    redis.roll_back(choice)
    world.orphans.clear()  # they were on their way to the old master
    world.count["rollback"] += 1
    if redis.hash is None:
        world.happened.add("rollback to nothing")


def lose_all(world: World) -> None:
    """Redis loses everything."""
    if world.exactly_once and world.coordinator.group is None:
        return  # both memories of what is out would be gone
    if world.redis.hash is not None:
        world.redis.lose_all()
        world.orphans.clear()
        world.happened.add("total loss")
        world.count["total loss"] += 1


def lose_key(world: World) -> None:
    """Redis loses one key's state."""
    held = world.redis.hash
    if held is not None and held.states:
        world.redis.lose_key(world.choice(sorted(held.states)))
        world.happened.add("key lost")
        world.count["key lost"] += 1


def retain(world: World) -> None:
    """Retention moves the log's start, sometimes past W."""
    log, held = world.log, world.redis.hash
    if world.blind:
        return
    watermark = held.watermark if held is not None else log.start
    past = "retention past W" in world.allowed and world.random() < 0.3
    most = log.end if past else min(watermark, log.end)
    if most > log.start:
        log.start += 1 + int(world.random() * (most - log.start))
        world.count["retention"] += 1
        if log.start > watermark:
            world.count["retention past W"] += 1
    # A rollback may still bring back a watermark below it.
    world.happened.add("retention past W")


def compact(world: World) -> None:
    """Compaction takes records, below every watermark that may still be folded from.

    Above, the log since the last saved state would not be retained, which the promise asks for.
    """
    held = [one for one in world.redis.past if one is not None]
    held += [snapshot for snapshot, _ in world.snapshots]
    if world.redis.hash is not None:
        held.append(world.redis.hash)
    group = world.coordinator.group
    if not held or None in world.redis.past or group is None or world.blind:
        return  # blind: without the record at #L nothing tells the logs apart
    upto = min(one.watermark for one in held)
    below = [o for o in world.log.offsets if world.log.start <= o < upto]
    for offset in below:
        if world.random() < 0.5 or offset == below[-1]:
            world.log.gone.add(offset)
    if below:
        world.count["compaction"] += 1


def grow(world: World) -> None:
    """The topic gets another partition."""
    world.topic = Topic(world.topic.partitions + 1, world.topic.identity)
    world.happened.add("topic grown")
    world.count["topic grown"] += 1


def recreate(world: World) -> None:
    """The topic is deleted and made anew."""
    identity = f"id{int(world.random() * 1e6)}" if world.topic.identity else ""
    if identity and world.random() < 0.3:
        # A mirror of the old one, record by record.
        world.topic = Topic(world.topic.partitions, identity)
    elif not replace_log(world, 0):
        return
    else:
        world.topic = Topic(world.topic.partitions, identity)
        for _ in range(int(world.random() * 10)):
            world.append()
    world.happened.add("topic recreated")
    world.count["topic recreated"] += 1


def truncate(world: World) -> None:
    """The log loses its end, with records that were folded (an unclean leader election).

    With exactly-once outputs C then tells of events that are no more. The fingerprint finds that
    out, but not where another bundle begins anew or a rollback goes below: limits, left out here.
    """
    held = world.redis.hash
    if held is None or held.last is None or held.last.offset <= world.log.start:
        return
    if world.exactly_once and (world.rules.bundle_change != "halt" or _unsigned(world)):
        return
    keep = held.last.offset - int(world.random() * min(5, held.last.offset - world.log.start))
    if replace_log(world, keep):
        for _ in range(int(world.random() * 6)):
            world.append()
        world.happened.add("log truncated")
        world.count["log truncated"] += 1


def replace_log(world: World, keep: int) -> bool:
    """Go on with another log that shares the records below `keep`; False: not now.

    What runs at that moment is refused its position once: Kafka cannot replace a log without the
    fetches under way failing. A worker that is frozen from before until the new log is longer than
    its position would not notice before its next audit: a limit of logs without topic ids.
    """
    unsigned = _unsigned(world)
    if world.blind or any(one.states or one.watermark > keep for one in unsigned):
        return False  # nothing tells the logs apart: no record was applied since `adopt`
    if keep:  # what came before the last shared record fits both logs: a limit, left out
        world.redis.past = deque(
            (one for one in world.redis.past if one and one.last and one.last.offset >= keep),
            maxlen=world.redis.KEPT,
        )
    world.log = world.log.cut(keep)
    world.coordinator.expire()
    world.coordinator.settle()
    if not keep:
        world.coordinator.group = None  # Kafka forgets the group offsets of a topic with it
    if not keep or not world.exactly_once:
        world.era += 1  # other events under the same ids
        world.era_of = defaultdict(lambda era=world.era: era)  # type: ignore[misc]
    _shake(world, unsigned)
    return True


def _unsigned(world: World) -> list[Hash]:
    """Return what Redis holds or may come back to that no record's fingerprint belongs to."""
    return [
        one for one in (world.redis.hash, *world.redis.past) if one is not None and one.last is None
    ]


def _shake(world: World, unsigned: list[Hash]) -> None:
    """Let everything that was under way towards the old log fail."""
    world.blind = True
    for worker in world.workers:
        worker.lost_position = True
    for one in unsigned:
        # Nothing is saved of the old log: the same state is one of the new log.
        one.lineage = world.begun(one.watermark, one.bundle, one.floor)
    if unsigned:
        for worker in list(world.workers):
            world.crash(worker, "restarted")
    world.orphans.clear()  # a late end of a transaction would tell of the old log


def lose_group_offset(world: World) -> None:
    """Another program sets the group offset, or it expires."""
    held, coordinator = world.redis.hash, world.coordinator
    if not world.exactly_once or held is None or held.committed is None:
        return  # before the first save nothing says that C was ever set
    coordinator.settle()
    coordinator.group = None
    world.redis.past.clear()
    world.redis.wrote()
    world.happened.add("group offset lost")
    world.count["group offset lost"] += 1


def expire_transaction(world: World) -> None:
    """The coordinator aborts a transaction that takes too long."""
    if world.coordinator.expire():
        world.count["transaction expired"] += 1


def settle(world: World) -> None:
    """The coordinator writes the markers."""
    world.coordinator.settle()


def switch_bundle(world: World) -> None:
    """New workers come with another bundle."""
    if world.bundle < 4:
        world.bundle += 1
        world.happened.add("bundle switched")
        world.count["bundle switched"] += 1
        world.start_worker()


def take_snapshot(world: World) -> None:
    """An operator's snapshot of the partition."""
    held = world.redis.hash
    if held is not None and held.keys == len(held.states):
        world.snapshots.append((held.copy(), world.redis.topic))
        world.snapshots = world.snapshots[-3:]
        world.count["snapshot"] += 1


def skip(world: World) -> None:
    """The log ends with what readers never see."""
    if not world.blind:
        world.log.skip(1 + int(world.random() * 3))
        world.count["offset gap at the end"] += 1


def hint(world: World) -> None:
    """A worker tells Kafka W."""
    worker = world.assigned
    owner = None if worker is None or worker.frozen else worker.owner
    if owner is not None and owner.partition.phase is Phase.RUN:
        world.hint(owner)


def halted_worker(worker: Worker) -> bool:
    """Say whether a worker's partition is in HALT."""
    return worker.owner is not None and worker.owner.partition.phase is Phase.HALT


# Always there; the number is how often, against the others.
ORDINARY: dict[Callable[[World], None], float] = {
    join: 2, rebalance: 0.5, thaw: 3, hint: 5, settle: 3, take_snapshot: 0.5, skip: 2,
}  # fmt: skip
# Each schedule knows some of them.
FAULTS: dict[Callable[[World], None], float] = {
    crash: 3, freeze: 2, split: 2, roll_back: 2, lose_all: 0.3, lose_key: 0.4, retain: 1,
    compact: 1, grow: 0.2, recreate: 0.3, truncate: 0.3, lose_group_offset: 0.4,
    expire_transaction: 1, switch_bundle: 0.5,
}  # fmt: skip
