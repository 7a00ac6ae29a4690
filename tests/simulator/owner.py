"""A partition's task in one simulated worker: asks worker/phases.py, answers with the models.

Mirrors the order of worker/owner.py, worker/saver.py and worker/answers.py: what is awaited there
is a `yield` here, where the world may do anything before it goes on. Decides nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keyfold.worker.errors import NotOwner
from keyfold.worker.handover.ownership import GIVE_UP_S
from keyfold.worker.partition import Partition
from keyfold.worker.phases import (
    AskHandovers,
    AskHeld,
    AskLog,
    Emit,
    OpenOutputs,
    Question,
    Questions,
    Save,
    Seek,
    SetGroupOffset,
    SetHandovers,
)
from keyfold.worker.protocol import GroupOffset, Held, Phase, Topic
from simulator.answers import ANSWERS
from simulator.kafka import Fenced
from simulator.model import Lineage, Output, Record
from simulator.store import AcquiredFrom, Payload
from simulator.tasks import Steps, Task, TransactionFailed, Unanswered, call

if TYPE_CHECKING:
    from simulator.worker import Worker

MOST_MICRO_BATCHES = 3  # applied, not acked
RUNNING = (Phase.RUN, Phase.DRAIN)


class Owner:
    """One partition in one worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.world = worker, worker.world
        parts = self.world.parts
        self.partition: Partition = parts.partition(
            "in", 0, self.world.group, rules=self.world.rules
        )
        self.waiting: deque[Record] = deque()
        self.outputs: list[Output] = []  # to be emitted
        self.micro_batches = 0  # applied, not acked
        self.open = False  # fetched records may be offered
        self.topic = Topic(0, "")  # as it was when the fence was taken
        self.lineage: Lineage | None = None  # what this worker folds, for the oracle
        self.producer = 0  # epoch of the transactional producer; 0: none
        self.hinted = 0
        self.generation = self.world.generation  # of the group, when it was assigned
        self.seen = Phase.UNASSIGNED  # phase last seen by the world
        self.task = Task(worker)
        self.partition.acquire()
        self.task.moves = self.run()

    # -- phases ------------------------------------------------------------------------------------

    def run(self) -> Steps:
        """Go through the phases until the partition is given up."""
        partition = self.partition
        while True:
            phase = partition.phase
            if phase is Phase.RUN:
                yield from self._turn_or_audit()
            elif phase is Phase.SEEK:
                yield
            elif phase is Phase.ACQUIRE:
                yield from self._acquire()
            elif phase is Phase.REWIND:
                yield
                if partition.phase is Phase.REWIND:
                    partition.acquire()
            elif phase is Phase.DRAIN:
                if partition.applied > partition.saved:
                    yield from self._turn()
                else:
                    partition.release()
            elif phase is Phase.HALT:
                yield from self._stay_halted()
            else:
                return

    def _acquire(self) -> Steps:
        while self.partition.phase is Phase.ACQUIRE:
            try:
                yield from self._acquire_once()
            except (Unanswered, TransactionFailed):
                self.world.count["acquire begun again"] += 1
                yield

    def _acquire_once(self) -> Steps:
        self.open = False
        self.forget()
        yield from self._give(self.world.parts.acquire(self.partition), Phase.ACQUIRE)
        if self.partition.phase is Phase.SEEK:
            self.hinted = self.partition.saved
            self.partition.unverified = False
            self.request_seek(self._seek_to)

    _seek_to = 0

    def request_seek(self, offset: int) -> None:
        """Have the intake move the position before its next fetch."""
        self.worker.seek = (self, offset)

    def _give(self, questions: Questions, phase: Phase) -> Steps:
        answer: object = None
        while self.partition.phase is phase:
            try:
                question = questions.send(answer)
            except StopIteration:
                return
            answer = yield from self._answer(question)

    def _stay_halted(self) -> Steps:
        self.open = False
        self.forget()
        yield
        if self.partition.phase is Phase.HALT and self.world.random() < 0.3:
            self.partition.acquire()

    def _turn_or_audit(self) -> Steps:
        world, partition = self.world, self.partition
        if not partition.voice.heard or world.random() < self._listens:
            yield from self._listen()
        if partition.applied > partition.saved:
            yield from self._turn()
            if world.random() < 0.1:
                look = world.parts.look_at_topic(partition, self.topic)
                yield from self._give(look, Phase.RUN)
        elif world.random() < 0.15:
            yield from self._give(world.parts.audit(partition, self.topic), Phase.RUN)
        else:
            yield

    @property
    def _listens(self) -> float:
        return 0.1 if self.partition.voice.proposal is None else 0.5

    def _listen(self) -> Steps:
        world, partition = self.world, self.partition
        if self.waiting:
            partition.stand_before(self.waiting[0].offset)
        proposal = partition.voice.proposal
        stands = proposal is not None and partition.applied >= proposal.offset
        stood_s = GIVE_UP_S if stands and world.random() < world.gives_up else 0.0
        with contextlib.suppress(Unanswered):
            yield from self._give(world.parts.listen(partition, stood_s), Phase.RUN)

    def _turn(self) -> Steps:
        try:
            yield from self._turn_once()
        except TransactionFailed:
            self.world.count["transaction failed"] += 1
            self.give_up_turn()

    def give_up_turn(self) -> None:
        """Begin anew after a failed transaction, but for what has left RUN meanwhile."""
        if self.partition.phase is Phase.RUN:
            self.partition.acquire()
        elif self.partition.phase is Phase.DRAIN:
            self.partition.release()

    def _turn_once(self) -> Steps:
        partition, world = self.partition, self.world
        while world.random() < world.write_behind and partition.phase is Phase.RUN:
            if world.random() < self._listens / 3:
                yield from self._listen()
            if partition.phase is not Phase.RUN or partition.stands:
                break
            if partition.acked < partition.applied:
                self._drop_silent(partition.applied)
                yield from self._answer_all(world.parts.emit(partition, partition.applied))
            else:
                yield
        plan = partition.plan_save()
        if plan is None:
            return
        self._payload = self._snapshot(plan.stream_ms)
        self._drop_silent(plan.w1)
        yield from self._answer_all(world.parts.turn(partition, plan))

    _payload = Payload({}, ())

    def _drop_silent(self, upto: int) -> None:
        if self.partition.outputs_upto(upto) is None:
            if self.partition.emit_from > self.partition.saved:
                self.world.count["silent replay"] += 1
            self.outputs, self.micro_batches = [], 0

    def _snapshot(self, stream: int | None) -> Payload:
        worker, world = self.worker, self.world
        states, cleared = {}, []
        for key in worker.changed:
            state = worker.slots[key]
            if state is None or not state.history:
                cleared.append(key)
            else:
                states[key] = state
        worker.changed = set()
        after = world.reset_after
        collect = None if after is None or stream is None else stream - after
        return Payload(states, cleared, collect)

    def _answer_all(self, questions: Questions) -> Steps:
        answer: object = None
        while True:
            try:
                question = questions.send(answer)
            except StopIteration:
                return
            answer = yield from self._answer(question)

    # -- answers -----------------------------------------------------------------------------------

    def _answer(self, question: Question) -> Steps:
        kind = type(question)
        self.world.asked[kind] += 1
        needed = self.partition.phase is Phase.ACQUIRE or kind is AskLog
        match question:
            case Seek():
                self._seek_to = question.offset
                return None
            case Emit():
                outputs, self.outputs, self.micro_batches = self.outputs, [], 0
                if self.world.exactly_once:
                    return (yield from self._transaction(question.upto, outputs))
                return (yield from self._emit(outputs))
            case Save():
                return (yield from self._save(question))
            case AskHeld() | AskHandovers() | SetHandovers():
                return (yield from self._in_run(question))
        try:
            # A group member's requests go through one connection, in order.
            late = kind is not SetGroupOffset
            answer = yield from self._ask_once(ANSWERS[kind](self, question), late)
        except Unanswered:
            if needed:
                raise
            return None  # an audit: the next look will tell
        if type(answer) is AcquiredFrom:
            self.lineage = answer.lineage
        elif kind is OpenOutputs:
            self.producer = answer
        return answer

    def _in_run(self, question: AskHeld | AskHandovers | SetHandovers) -> Steps:
        """Ask Redis until it answers or RUN is left."""
        redis, common = self.world.redis, self.world.common

        def do() -> Any:
            if isinstance(question, AskHeld):
                return redis.held()
            if isinstance(question, AskHandovers):
                return common.handovers
            return common.swap(question.before, question.after)

        return (yield from call(self.task, do, lambda: self.partition.phase is Phase.RUN))

    def _ask_once(self, do: Callable[[], Any], may_come_late: bool = True) -> Steps:
        """Ask Kafka or Redis. Raises Unanswered, whether it happened or not."""
        world, task = self.world, self.task
        task.inflight = do if may_come_late else None
        yield
        task.inflight = None
        if world.lossy and world.random() < world.lossy:
            world.lose(do, may_come_late=may_come_late)
            yield
            raise Unanswered
        answer = do()
        yield from world.delay()
        return answer

    def _save(self, question: Save) -> Steps:
        fence, payload, plan = self.partition.fence, self._payload, question.plan
        if fence is None:
            return None
        redis, partition = self.world.redis, self.partition
        held: Held | None = yield from call(
            self.task, lambda: redis.save(fence, plan, payload), lambda: partition.phase in RUNNING
        )
        return held

    def _emit(self, outputs: list[Output]) -> Steps:
        """Send and wait for every ack."""
        if outputs and self.lineage is not None:
            sent = self.worker.send(self.lineage, outputs, self._is_stale())
            while sent.outputs:
                yield
        yield

    def _is_stale(self) -> bool:
        """Say whether another owner has taken the fence."""
        held, fence = self.world.redis.hash, self.partition.fence
        return held is not None and (fence is None or held.nonce != fence.nonce)

    def _transaction(self, to: GroupOffset, outputs: list[Output]) -> Steps:
        """Offset first, then outputs, then the end; any failure drops the producer."""
        epoch, self.producer = self.producer, 0
        coordinator, lineage = self.world.coordinator, self.lineage
        if not epoch or lineage is None:
            raise TransactionFailed
        half = len(outputs) // 2
        yield from self._send(lambda: coordinator.begin(epoch, to, lineage))
        if half:
            yield from self._send(lambda: coordinator.send(epoch, outputs[:half]))
        yield from self._send(lambda: coordinator.send(epoch, outputs[half:]))
        yield from self._send(lambda: coordinator.end(epoch))
        self.producer = epoch
        self.world.count["transaction"] += 1

    def _send(self, do: Callable[[], None]) -> Steps:
        try:
            yield from self._ask_once(do)
        except Unanswered:
            raise TransactionFailed from None
        except Fenced:
            self.world.count["fenced producer refused"] += 1
            raise NotOwner("another producer was opened") from None

    # -- ends --------------------------------------------------------------------------------------

    def drain(self, patience: int) -> Steps:
        """Save what was applied and give the partition up, within `patience` moves."""
        self.open = False
        self.waiting.clear()
        self.partition.drain()
        while patience and self.task.moves is not None:
            patience -= 1
            yield
        if self.task.moves is not None:
            self.world.count["drain cut"] += 1
            self.world.kill(self.task)
        self.partition.release()
        self.forget()
        self.producer = 0
        self.world.hint(self)

    def forget(self) -> None:
        """Drop everything in memory."""
        self.worker.drop_slots()
        self.waiting.clear()
        self.outputs, self.micro_batches = [], 0
