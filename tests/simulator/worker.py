"""One simulated worker: its intake, its pipeline, its producer, and the slots.

Mirrors worker/intake.py (one task owns the position; a seek never overlaps a fetch) and
worker/pipeline.py (load, judge what Redis held, fold, hand over). What is awaited there is a
`yield` here. Decides nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from keyfold.worker.protocol import Fence, Fingerprint, Phase
from simulator.kafka import OutOfRange
from simulator.model import REJECT, Lineage, Output, Record, State, expired, step, stream_after
from simulator.owner import MOST_MICRO_BATCHES, Owner
from simulator.tasks import Steps, Task, call

if TYPE_CHECKING:
    from simulator.world import World

MOST_WAITING = 8  # records; above it nothing is fetched
COLD_GAP = State((), -1, 0, 0, True)  # a key whose past retention may have taken


class Sent:
    """Outputs on their way to the output log."""

    __slots__ = ("lineage", "outputs", "stale")

    def __init__(self, lineage: Lineage, outputs: list[Output], stale: bool) -> None:
        self.lineage, self.outputs = lineage, outputs
        self.stale = stale  # another worker had taken the fence when they were sent


class Worker:
    """One worker."""

    def __init__(self, world: World, number: int, bundle: int) -> None:
        self.world, self.number, self.bundle = world, number, bundle
        self.nonce = f"worker{number}"
        self.alive = True
        self.frozen = False
        self.owner: Owner | None = None
        self.draining: Task | None = None
        self.seek: tuple[Owner, int] | None = None  # asked of the intake
        self.position = 0
        self.lost_position = False  # the log was replaced: the next fetch is refused
        self.slots: dict[bytes, State | None] = {}
        self.marked: dict[bytes, int] = {}  # key -> end of the micro-batch that changed it last
        self.changed: set[bytes] = set()  # keys changed since the last snapshot
        self.outbox: deque[Sent] = deque()
        self.intake_task = Task(self)
        self.pipeline_task = Task(self)
        self.intake_task.moves = self.intake()
        self.pipeline_task.moves = self.pipeline()

    # -- intake ------------------------------------------------------------------------------------

    def intake(self) -> Steps:
        """Fetch for ever."""
        world = self.world
        while True:
            if self.seek is not None:
                yield from self._seek()
            owner = self.owner
            if owner is None or not owner.open or len(owner.waiting) > MOST_WAITING:
                yield
                continue
            yield  # the request is under way
            try:
                records = self._fetch()
            except OutOfRange:
                yield from self._out_of_range(owner, self.position)
                continue
            yield from world.delay(100)  # the reply is under way
            if owner.open and self.owner is owner:
                if records:
                    world.trace("fetched", self, [record.offset for record in records])
                    owner.waiting.extend(owner.partition.offer(records))
                if not owner.waiting:
                    self._pass_to(owner)

    def _fetch(self) -> list[Record]:
        """Read from the position on, and move it. Raises OutOfRange."""
        log = self.world.log
        if self.lost_position:
            self.lost_position = False
            if self.position > log.start:
                raise OutOfRange
        most = 1 + int(self.world.random() * 5)
        records, self.position = log.fetch(self.position, most)
        return records

    def _pass_to(self, owner: Owner) -> None:
        if owner.partition.pass_to(self.position):
            self.world.count["passed without records"] += 1
            self.world.trace("passed", self, self.position)

    def _seek(self) -> Steps:
        asked, self.seek = self.seek, None
        if asked is None:
            return
        owner, offset = asked
        if self.owner is not owner:
            return
        yield
        self.position = offset
        owner.open = True
        owner.partition.sought()

    def _out_of_range(self, owner: Owner, offset: int) -> Steps:
        yield
        if not owner.open or self.owner is not owner:
            return
        owner.open = False
        yield
        self.world.count["fetch out of range"] += 1
        owner.partition.out_of_range(offset)

    # -- pipeline ----------------------------------------------------------------------------------

    def pipeline(self) -> Steps:
        """Take micro-batches for ever."""
        world = self.world
        while True:
            owner = self.owner
            if (
                owner is None
                or not owner.waiting
                or owner.partition.phase is not Phase.RUN
                or owner.micro_batches >= MOST_MICRO_BATCHES
            ):
                yield
                continue
            fence = owner.partition.fence
            records = self._take(owner, 1 + int(world.random() * 4))
            if not records:
                yield
                continue
            missing = {
                r.key: None for r in records if r.key is not None and r.key not in self.slots
            }
            if missing:
                yield from self._load(owner, fence, list(missing))
            if _valid(owner, fence):
                self._apply(owner, records)
                self._evict(owner)
            yield

    def _take(self, owner: Owner, most: int) -> list[Record]:
        partition, waiting = owner.partition, owner.waiting
        upto = partition.voice.upto(waiting[0].offset)
        records: list[Record] = []
        while waiting and len(records) < most and (upto is None or waiting[0].offset < upto):
            records.append(waiting.popleft())
        if records:
            partition.begin(records[0].offset, records[-1].offset + 1)
        return records

    def _load(self, owner: Owner, fence: Fence | None, keys: list[bytes]) -> Steps:
        world, partition = self.world, owner.partition
        since = partition.saved
        loaded = yield from call(
            self.pipeline_task, lambda: world.redis.load(keys), lambda: _valid(owner, fence)
        )
        if loaded is None or not _valid(owner, fence):
            return
        held, states = loaded
        if not partition.judge_held(held, since):
            world.count["load found lost writes"] += 1
            return
        lost_upto = partition.lost_upto
        for key, state in states.items():
            if lost_upto and (state is None or state.offset < lost_upto):
                state = COLD_GAP if state is None else state._replace(gap=True)
            self.slots[key] = state

    def _apply(self, owner: Owner, records: list[Record]) -> None:
        """Fold records into the slots and hand over what is to be emitted and saved."""
        partition, slots = owner.partition, self.slots
        stream, upto = partition.stream_ms, records[-1].offset + 1
        for record in records:
            key = record.key
            stream = stream_after(stream, record)
            if key is None:
                continue
            if record.value is None:
                slots[key] = None
                self._mark(key, upto)
                continue
            history, gap = None, False
            if record.value != REJECT:
                state = self.fold(slots[key], record, stream or 0)
                slots[key] = state
                self._mark(key, upto)
                history, gap = state.history, state.gap
            if record.offset >= partition.emit_from:
                owner.outputs.append(Output(record.offset, key, history, gap))
        self.world.trace("applied", self, [record.offset for record in records])
        partition.apply(upto, Fingerprint.of(records[-1]), stream)
        owner.micro_batches += 1

    def fold(self, state: State | None, record: Record, stream: int) -> State:
        """Step one event."""
        reset_after = self.world.reset_after
        if state is not None and expired(state, record, stream, reset_after):
            self.world.count["key expired"] += 1
        return step(state, record, stream, self.bundle, reset_after)

    def _mark(self, key: bytes, upto: int) -> None:
        self.changed.add(key)
        self.marked[key] = upto

    def _evict(self, owner: Owner) -> None:
        if self.world.random() < 0.3:
            saved = owner.partition.saved
            idle = [
                key
                for key in self.slots
                if key not in self.changed and self.marked.get(key, 0) <= saved
            ]
            for key in idle[:2]:
                del self.slots[key]

    def drop_slots(self) -> None:
        """Forget every key."""
        self.slots, self.marked, self.changed = {}, {}, set()

    # -- the at-least-once producer ----------------------------------------------------------------

    def send(self, lineage: Lineage, outputs: list[Output], stale: bool = False) -> Sent:
        """Queue outputs."""
        sent = Sent(lineage, list(outputs), stale)
        self.outbox.append(sent)
        return sent

    def deliver(self) -> None:
        """Let some of the oldest outputs arrive."""
        sent = self.outbox[0]
        count = 1 + int(self.world.random() * len(sent.outputs))
        arrived, sent.outputs = sent.outputs[:count], sent.outputs[count:]
        if not sent.outputs:
            self.outbox.popleft()
        self.world.oracle.emitted(sent.lineage, arrived, sent.stale)


def _valid(owner: Owner, fence: Fence | None) -> bool:
    partition = owner.partition
    return partition.phase is Phase.RUN and partition.fence is fence
