"""One schedule's world: Kafka, Redis, a clock, some workers, and one random source for all of it.

Owns what there is and what may be done to it; who moves next is moves.py's. The same seed gives the
same world.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

from keyfold.worker import phases
from keyfold.worker.errors import NotOwner
from keyfold.worker.handover import handing_over
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.protocol import Beginning, GroupOffset, Phase, Topic
from simulator import commands, faults
from simulator.kafka import Coordinator, Fenced, Log
from simulator.model import REJECT, Lineage, Record, Truth
from simulator.oracle import Oracle, Violation
from simulator.owner import Owner
from simulator.store import Hash, SimRedis
from simulator.tasks import Task, Unanswered
from simulator.worker import Worker

T = TypeVar("T")
Weights = dict[Callable[["World"], None], float]  # how often each fault comes
KEYS = (b"a", b"b", b"c", b"d", b"e")
TRACE = 400  # last events kept


@dataclass(frozen=True, slots=True)
class Parts:
    """What a world is built of; a negative control replaces one."""

    partition: type[Partition] = Partition
    redis: type[SimRedis] = SimRedis
    worker: type[Worker] = Worker
    owner: type[Owner] = Owner
    coordinator: type[Coordinator] = Coordinator
    tune: Callable[[World, Weights], None] = lambda world, weights: None  # of its schedules
    acquire: Callable[[Partition], phases.Questions] = phases.acquire
    emit: Callable[..., phases.Questions] = phases.emit
    turn: Callable[..., phases.Questions] = phases.turn
    audit: Callable[..., phases.Questions] = phases.audit
    look_at_topic: Callable[..., phases.Questions] = phases.look_at_topic
    listen: Callable[..., phases.Questions] = phases.listen
    command: Callable[[str, str], handing_over.Answered] = handing_over.hand_over


@dataclass(slots=True)
class Common:
    """What several groups have in common: each group has a world of its own around it."""

    log: Log  # the input
    handovers: Handovers  # whose predictions the outputs are: Redis, outside every group
    emitted: dict[int, set[str]]  # offset -> groups whose predictions of it are out
    former: Handovers | None = None  # the record before its last change
    forgotten: Handovers | None = None  # an agreement that Redis does not know at present

    def swap(self, before: Handovers, after: Handovers) -> Handovers:
        """Replace the record by compare-and-set."""
        if self.handovers == before:
            self.former, self.handovers = before, after
        return self.handovers

    @property
    def may_forget(self) -> bool:
        """Whether the last change was an agreement."""
        former = self.former
        return former is not None and len(former.seams) < len(self.handovers.seams)

    def forget(self) -> None:
        """Let Redis fail over to a replica that has not heard of the last change."""
        assert self.former is not None
        self.forgotten, self.handovers, self.former = self.handovers, self.former, None

    @property
    def agreed(self) -> Handovers:
        """Return whose predictions the outputs are, be it forgotten."""
        lost = self.forgotten
        if lost is not None and len(lost.seams) > len(self.handovers.seams):
            return lost
        return self.handovers


class World:
    """Everything of one schedule."""

    def __init__(
        self,
        seed: int,
        parts: Parts | None = None,
        traced: bool = False,
        common: Common | None = None,
        group: str = "group",
    ) -> None:
        self.parts, self.group = parts or Parts(), group
        self.common = common or Common(Log(), Handovers(), defaultdict(set))
        self.random = random.Random(seed).random
        self.count: dict[str, int] = defaultdict(int)
        self.asked: dict[type, int] = defaultdict(int)
        self.changes: dict[tuple[Phase, Phase], int] = defaultdict(int)
        self.events: list[tuple[Any, ...]] = []
        if not traced:
            self.trace = _no_trace  # type: ignore[method-assign]
        self.now_ms = 1_000_000
        self.moves = 0
        self.happened: set[str] = set()  # faults that may lead to a HALT
        self.skipped_upto = 0  # end of the last range of events given up as lost
        self.uids = 0
        self.era = 0  # grows when outputs begin anew
        self.era_of: dict[int, int] = defaultdict(int)  # number of resets -> era
        self.blind = False  # the log was replaced, and nobody has noticed yet
        self._draw_profile()
        self.log = self.common.log
        self.oracle = Oracle(self)
        self.coordinator = self.parts.coordinator(self.oracle.decided_outputs)
        self.topic = Topic(4, "id0" if self.random() < 0.7 else "")
        self.redis = self.parts.redis(self)
        self.snapshots: list[tuple[Hash, Topic | None]] = []
        self.orphans: list[Callable[[], object]] = []  # commands whose sender does not wait
        self.late: list[Any] = []  # outputs of dead workers still on their way
        self.workers: list[Worker] = []
        self.tasks: list[Task] = []
        self.assigned: Worker | None = None  # by the group
        self.generation = 0  # of the group
        self._numbers = 0
        self.beginning: tuple[Log, Beginning | None] | None = None  # of the last that began so
        self.bundle = 1
        for _ in range(0 if common else int(self.random() * 12)):
            self.append()
        self.start_worker()

    def _draw_profile(self) -> None:
        """Draw what kind of schedule this is."""
        draw = self.random
        self.exactly_once = draw() < 0.5
        # A number: the time of a record, ms.
        self.start = ("earliest", "earliest", "latest", "", str(self.now_ms))[int(draw() * 5)]
        # emit_from, as it is from the present that is told when it is asked; None: not set.
        self.emit_ahead = (None, None, 0, -100)[int(draw() * 4)]
        self.reset_after = (None, 300, 1500)[int(draw() * 3)]  # ms; None: never
        self.rules = Rules(
            self.exactly_once,
            ("halt", "rebuild", "reset")[int(draw() * 3)],
            draw() < 0.3,
        )
        self.write_behind = (0.0, 0.5, 0.85)[int(draw() * 3)]
        self.lossy = (0.0, 0.03, 0.15)[int(draw() * 3)]
        self.slow = (0.0, 0.05, 0.2)[int(draw() * 3)]  # replies
        self.length = 200 + int(draw() * 1000)  # moves
        self.fault_rate = (0.005, 0.015, 0.04)[int(draw() * 3)]
        self.append_rate = (0.03, 0.08)[int(draw() * 2)]
        self.gives_up = 0.005  # of an owner that stands at a proposal's offset, per look
        self.gaps = (0.0, 0.3)[int(draw() * 2)]
        self.allowed = {"retention past W"} if draw() < 0.3 else set()
        chosen = dict(faults.ORDINARY)
        chosen.update({f: w * 3 for f, w in faults.FAULTS.items() if draw() < 0.3})
        self.parts.tune(self, chosen)
        self.faults = list(chosen)
        self.weights = list(accumulate(chosen.values()))

    # -- what faults and models use ----------------------------------------------------------------

    def choice(self, of: Sequence[T]) -> T:
        """Return one of several."""
        return of[int(self.random() * len(of))]

    def trace(self, what: str, worker: Worker | None, *more: object) -> None:
        """Remember an event, when a schedule is replayed to be read."""
        name = "" if worker is None else worker.nonce
        self.events.append((self.moves, what, name, *more))
        if len(self.events) > TRACE:
            del self.events[0]

    def emits(self, offset: int) -> bool:
        """Say whether an event's prediction is this group's, as it is decided now."""
        handovers = self.common.agreed
        began_silent = self.rules.silent and not handovers.seams
        return not began_silent and handovers.emits(self.group, offset)

    def append(self) -> None:
        """Append a record to the log, perhaps behind something that readers never see."""
        draw, log = self.random, self.log
        if draw() < self.gaps and not self.blind:
            log.skip(1 + int(draw() * 3))
            self.count["offset gap"] += 1
        self.uids += 1
        kind = draw()
        value: bytes | None = b"%d" % self.uids
        if kind < 0.06:
            value = None
        elif kind < 0.1:
            value = REJECT
        lag = int(draw() * 400) if draw() < 0.3 else 0
        key = self.choice(KEYS)
        log.append(Record(log.end, self.now_ms, key, value, self.now_ms - lag, self.uids))

    def delay(self, most: int = 30) -> Generator[None, None, None]:
        """Wait for a reply, sometimes long."""
        yield
        if self.slow and self.random() < self.slow:
            self.count["slow reply"] += 1
            for _ in range(int(self.random() * most)):
                yield

    def era_after(self, lineage: Lineage) -> int:
        """Return the era of outputs when another bundle begins anew, perhaps on another log."""
        if lineage.log is self.log:
            return lineage.era
        if not self.exactly_once:
            self.era += 1
        return self.era

    def begun(self, begin: int, bundle: int, floor: int = 0, era: int | None = None) -> Lineage:
        """Return the truth of states that begin anew."""
        era = self.era if era is None else era
        return Lineage(self.log, begin, bundle, self.reset_after, era, floor)

    def begun_where_nothing_is(self, begin: Beginning, bundle: int) -> Lineage:
        """Return the truth of states that begin because Redis holds none."""
        beginning = (self.log, begin)
        if self.beginning not in (None, beginning):
            same_log = self.beginning[0] is self.log and "topic recreated" not in self.happened
            if same_log and self.beginning[1] is not None:
                raise Violation(f"begun at {begin}, silently, where {self.beginning[1]} was before")
            self.era += 1  # other events under the same ids, as an operator wanted
        self.beginning, self.era_of[0] = beginning, self.era
        return self.begun(begin.offset, bundle, begin.floor)

    def continued(
        self, held: Hash, start: int, lost_upto: int, era: int, floor: int = 0
    ) -> Lineage:
        """Return the truth of states that go on behind something given up."""
        floor = max(floor, held.floor)
        base = Truth(dict(held.states), held.stream, None)
        lineage = Lineage(
            self.log, start, held.bundle, self.reset_after, era, floor, base, lost_upto,
        )  # fmt: skip
        if lost_upto == held.lineage.lost_upto:
            lineage.restarted |= held.lineage.restarted
        return lineage

    def lose(self, do: Callable[[], object], may_come_late: bool = True) -> None:
        """Lose a request, its reply, or have the request come late."""
        kind = self.random()
        if kind < 0.4:
            self.count["request lost"] += 1
        elif kind < 0.75 or not may_come_late:
            self.count["reply lost"] += 1
            self.try_to(do)
        else:
            self.count["request late"] += 1
            self.orphans.append(do)

    def try_to(self, do: Callable[[], object]) -> None:
        """Let a command arrive whose sender does not wait for the answer."""
        try:
            do()
        except (Fenced, NotOwner, Unanswered):
            self.count["late command refused"] += 1

    def is_member(self, owner: Owner) -> bool:
        """Say whether the group takes a group offset from this owner."""
        return self.assigned is owner.worker and owner.generation == self.generation

    def hint(self, owner: Owner) -> None:
        """Tell Kafka W, if the group lets this member."""
        partition = owner.partition
        if self.exactly_once or not self.is_member(owner) or partition.fence is None:
            return
        if partition.saved > owner.hinted:
            owner.hinted = partition.saved
            self.coordinator.group = GroupOffset(partition.saved, "")
            self.count["hint"] += 1

    def resolve(self, worker: Worker) -> None:
        """Have the operator act on a HALT."""
        if worker.owner is not None:
            commands.resolve(self, worker.owner.partition.halted)
            if self.redis.hash is not None and self.redis.hash.lineage.log is self.log:
                self.blind = False
                self.redis.forget_other_logs()

    # -- workers -----------------------------------------------------------------------------------

    def start_worker(self) -> Worker:
        """Start a worker with the present bundle."""
        self._numbers += 1
        worker = self.parts.worker(self, self._numbers, self.bundle)
        self.workers.append(worker)
        self.trace("started", worker, worker.bundle)
        return worker

    def assign(self, worker: Worker) -> None:
        """Give a worker the partition, once it has given up what it believed."""
        if worker.owner is not None:
            self.drain(worker)
        if worker.draining is None:
            self.assigned = worker
            self.generation += 1
            worker.owner = self.parts.owner(worker)
            for task in (worker.intake_task, worker.pipeline_task, worker.owner.task):
                if task not in self.tasks:  # those of a worker without a partition do nothing
                    self.tasks.append(task)
            self.trace("assigned", worker)

    def revoke(self) -> None:
        """Take the partition away from the worker that has it; it drains if it can."""
        worker, self.assigned = self.assigned, None
        if worker is not None and not worker.frozen:
            self.drain(worker)

    def drain(self, worker: Worker) -> None:
        """Have a worker give the partition up."""
        owner = worker.owner
        if owner is None:
            return
        worker.owner = None
        task = worker.draining = Task(worker)
        task.moves = owner.drain(int(self.random() * 40))
        self.tasks.append(task)
        self.count["drain"] += 1
        self.trace("drains", worker)

    def kill(self, task: Task) -> None:
        """End a task; what it had sent may still arrive."""
        if task.moves is not None:
            task.moves.close()
            task.moves = None
            if task.inflight is not None and self.random() < 0.6:
                self.orphans.append(task.inflight)
        if task in self.tasks:
            self.tasks.remove(task)

    def ended(self, task: Task) -> None:
        """A task has come to its end by itself."""
        worker, task.moves = task.worker, None
        over = [task]
        if task is worker.draining:
            worker.draining = None
            over += [worker.intake_task, worker.pipeline_task]
        self.tasks = [task for task in self.tasks if task not in over]

    def crash(self, worker: Worker, why: str) -> None:
        """A worker is no more."""
        if not worker.alive:
            return
        worker.alive = False
        self.count[f"crash: {why}"] += 1
        self.trace("crashed", worker, why)
        for task in [task for task in self.tasks if task.worker is worker]:
            if not task.running:
                self.kill(task)
            else:
                task.moves = None
                self.tasks.remove(task)
        worker.intake_task.moves = worker.pipeline_task.moves = None
        self.workers.remove(worker)
        if worker.outbox and self.random() < 0.6:
            self.late.append(worker.outbox[0])
        if self.assigned is worker:
            self.assigned = None


def _no_trace(what: str, worker: Worker | None, *more: object) -> None:
    pass
