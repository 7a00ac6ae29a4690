"""Worlds that each lack one safeguard: the simulator must catch every one of them.

Every control replaces one part of a world by a version without the safeguard; the product's code
has no switch for any of this. Run by test_controls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from keyfold.worker import phases
from keyfold.worker.partition import Partition, R
from keyfold.worker.phases import AskGroupOffset, Emit, Questions, Save
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    Fence,
    GroupOffset,
    Held,
    Phase,
    Record,
    Refused,
    SavePlan,
    Topic,
)
from simulator import faults
from simulator.kafka import Coordinator
from simulator.model import Output, State, step
from simulator.model import Record as Event
from simulator.owner import Owner
from simulator.store import Hash, SimRedis
from simulator.tasks import Steps
from simulator.worker import Worker
from simulator.world import Parts, Weights, World

# -- Redis's scripts -------------------------------------------------------------------------------


class NoCompareAndSet(SimRedis):
    """A save does not look at W."""

    def _watermark_fits(self, held: Hash, plan: SavePlan) -> bool:
        return True


class NoFence(SimRedis):
    """A save looks neither at the fence number nor at the nonce."""

    def _is_owner(self, held: Hash, fence: Fence) -> bool:
        return True


class NoBundleCheck(SimRedis):
    """The fence is given to any bundle."""

    def _same_bundle(self, held: Hash, bundle: int) -> bool:
        held.bundle = bundle
        return True


class NoKeyCount(SimRedis):
    """Nobody counts the states."""

    def _all_there(self, held: Hash) -> bool:
        return True

    def held(self) -> Held:
        held = super().held()
        return replace(held, keys=held.found)


class NoTopicCheck(SimRedis):
    """Nobody remembers which topic it was."""

    def check_topic(self, now: Topic) -> Refused | None:
        self.topic = self.topic or now
        return None


class RestoredApart(SimRedis):
    """A failover brings an older W back, but not the states beside it."""

    def roll_back(self, choice: int) -> None:
        states = {} if self.hash is None else self.hash.states
        super().roll_back(choice)
        if self.hash is not None:
            self.hash.states, self.hash.keys = states, len(states)


# -- Kafka -----------------------------------------------------------------------------------------


class NoProducerFence(Coordinator):
    """Opening a producer neither fences older ones nor ends what they left."""

    unstable = False

    def init(self) -> int:
        self.epoch = self.epoch or 1
        return self.epoch


# -- decisions -------------------------------------------------------------------------------------


class NoJudgedLoads(Partition):
    """What Redis held when states were loaded does not matter."""

    def judge_held(self, held: Held, since: int) -> bool:
        return self.phase is Phase.RUN


class NoFingerprint(Partition):
    """Any record may stand where the last applied one was."""

    def _verify(self, first: Record) -> None:
        self._to_verify = None
        self.next_offset, self.phase = self.saved, Phase.RUN


class PassesWaiting(Partition):
    """The position may be passed to while records wait to be applied."""

    def pass_to(self, position: int) -> bool:
        if self.phase is not Phase.RUN or position <= self.applied:
            return False
        self.next_offset = self.applied = position
        return True


class NoFloor(Partition):
    """A rebuild emits again what was out."""

    def acquired(self, reply: Acquired, *rest: Any) -> int | None:
        return super().acquired(replace(reply, floor=0), *rest)


class ForgetsFloor(Partition):
    """A group whose Redis lost everything before its first save begins without its emit floor."""

    def begins_again_at(self, group_offset: GroupOffset) -> Beginning | None:
        begin = super().begins_again_at(group_offset)
        return None if begin is None else Beginning(begin.offset)


class NoGroupOffset(Partition):
    """Exactly-once outputs: a replay does not look at what transactions put out."""

    def acquired(self, reply: Acquired, *rest: Any) -> int | None:
        offset = super().acquired(reply, *rest)
        self.emit_from = self.emit_floor = max(reply.watermark, reply.floor)
        return offset


class NoMarks(Partition):
    """Keys that may miss lost events are not marked."""

    def acquired(self, reply: Acquired, *rest: Any) -> int | None:
        return super().acquired(replace(reply, lost=()), *rest)


class SkipsRepeated(Partition):
    """A record that was fetched twice is applied twice."""

    def offer(self, records: Sequence[R]) -> Sequence[R]:
        accepted = super().offer(records)
        return records if accepted else accepted


class ForgetsRewind(Partition):
    """Lost writes are taken for a save that did not happen yet."""

    def _rewind(self) -> None:
        pass


# -- the order of a phase --------------------------------------------------------------------------


def save_before_emit(partition: Partition, plan: SavePlan) -> Questions:
    """Save first, emit afterwards."""
    to = partition.outputs_upto(plan.w1)
    partition.ack(plan.w1)
    held = cast("Held | None", (yield Save(plan)))
    if held is not None:
        partition.judge_save(plan, held)
    if to is not None:
        yield Emit(to)


def group_offset_before_outputs(partition: Partition) -> Questions:
    """Read C, and only then fence the former owner's producer."""
    questions = phases.acquire(partition)
    early = None
    if partition.rules.exactly_once:
        early = cast("GroupOffset | None", (yield AskGroupOffset()))
    answer: object = None
    while True:
        try:
            question = questions.send(answer)
        except StopIteration:
            return
        answer = yield question
        if isinstance(question, AskGroupOffset):
            answer = early


# -- what carries them out -------------------------------------------------------------------------


class ResumesAtGroupOffset(Owner):
    """The position comes from Kafka, not from Redis."""

    def request_seek(self, offset: int) -> None:
        group, partition = self.world.coordinator.group, self.partition
        if group is not None:
            offset = partition.next_offset = group.offset
            partition._to_verify = None
        super().request_seek(offset)


class SeeksDuringFetch(Owner):
    """The owner moves the position itself, whatever the intake is doing."""

    def request_seek(self, offset: int) -> None:
        self.worker.position, self.open = offset, True
        self.partition.sought()


class AcksBeforeFutures(Owner):
    """Outputs count as acked once they are queued."""

    def _emit(self, outputs: list[Output]) -> Steps:
        if outputs and self.lineage is not None:
            self.worker.send(self.lineage, outputs)
        yield


class KeepsSlots(Owner):
    """States in memory outlive RUN."""

    def forget(self) -> None:
        self.waiting.clear()
        self.outputs, self.micro_batches = [], 0


class ReleasesAlways(Owner):
    """A failed transaction gives the partition up, even in REWIND."""

    def give_up_turn(self) -> None:
        if self.partition.phase is Phase.RUN:
            self.partition.acquire()
        else:
            self.partition.release()


class OffsetOutsideTransaction(Owner):
    """C is set after the transaction, not in it."""

    def _transaction(self, to: GroupOffset, outputs: list[Output]) -> Steps:
        before = self.world.coordinator.group
        yield from super()._transaction(before or to, outputs)
        yield
        self.world.coordinator.settle()
        self.world.coordinator.group = to


class WallClock(Worker):
    """A state expires by the clock on the wall."""

    def fold(self, state: State | None, record: Event, stream: int) -> State:
        after = self.world.reset_after
        if state is not None and after is not None and self.world.now_ms - state.time > after:
            state = None
        return step(state, record, stream, self.bundle, None)


# -- schedules in which a safeguard matters more often than in others ------------------------------


def two_producers(world: World, weights: Weights) -> None:
    """Exactly-once, several owners at a time, slow replies."""
    world.exactly_once, world.rules = True, replace(world.rules, exactly_once=True)
    world.write_behind, world.slow, world.fault_rate = 0.85, 0.2, 0.03
    weights.clear()
    weights.update({faults.split: 4, faults.join: 2, faults.settle: 2})


def failing_transactions(world: World, weights: Weights) -> None:
    """Exactly-once, transactions that time out, a Redis that loses writes."""
    world.exactly_once, world.rules = True, replace(world.rules, exactly_once=True)
    world.fault_rate = 0.04
    weights.clear()
    weights.update({faults.roll_back: 1, faults.expire_transaction: 4, faults.settle: 2})


# -- all of them -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Control:
    """One safeguard and the world without it."""

    parts: Parts  # without the safeguard
    seen: str  # some words of a violation that shows it


CONTROLS = {
    "compare-and-set on W": Control(Parts(redis=NoCompareAndSet), "I1"),
    "fence and nonce": Control(Parts(redis=NoFence), "I5"),
    "bundle check": Control(Parts(redis=NoBundleCheck), "wrong output"),
    "key count": Control(Parts(redis=NoKeyCount), "wrong output"),
    "topic check": Control(Parts(redis=NoTopicCheck), "folded from"),
    "states and W lost together": Control(Parts(redis=RestoredApart), "wrong output"),
    "producer fenced by the next": Control(Parts(coordinator=NoProducerFence), "twice"),
    "loads judged against what Redis held": Control(Parts(partition=NoJudgedLoads), "wrong output"),
    "fingerprint": Control(Parts(partition=NoFingerprint), ""),
    "pass_to only while nothing waits": Control(Parts(partition=PassesWaiting), ""),
    "emit floor": Control(Parts(partition=NoFloor), "emit floor"),
    "silent replay up to C": Control(Parts(partition=NoGroupOffset), "out twice"),
    "marks after a lost range": Control(Parts(partition=NoMarks), "gap="),
    "records below the next offset dropped": Control(Parts(partition=SkipsRepeated), ""),
    "REWIND": Control(Parts(partition=ForgetsRewind), "liveness"),
    "emit before save": Control(Parts(turn=save_before_emit), "not out"),
    "emit floor noted in Kafka": Control(Parts(partition=ForgetsFloor), "begun at"),
    "C read after OpenOutputs": Control(
        Parts(acquire=group_offset_before_outputs, tune=two_producers), "twice"
    ),
    "resuming at W": Control(Parts(owner=ResumesAtGroupOffset), "I1"),
    "no seek during a fetch": Control(Parts(owner=SeeksDuringFetch), "wrong output"),
    "every future awaited": Control(Parts(owner=AcksBeforeFutures), "not out"),
    "slots dropped on REWIND": Control(Parts(owner=KeepsSlots), "wrong output"),
    "C inside the transaction": Control(Parts(owner=OffsetOutsideTransaction), "C"),
    "a failed transaction leaves REWIND alone": Control(
        Parts(owner=ReleasesAlways, tune=failing_transactions), "liveness"
    ),
    "expiry by event time": Control(Parts(worker=WallClock), "wrong output"),
}
