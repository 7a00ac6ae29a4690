"""Takes one partition through its phases, whose order is worker/phases.py's.

Owns a partition's task and its waiting records. It never seeks (the intake does), never touches the
model, and leaves the turn "emit, acks, save" to worker/saver.py and what ACQUIRE and audits ask to
worker/answers.py. Created by worker/intake.py on assignment and fed by it; emptied by
worker/pipeline.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from keyfold.worker import phases
from keyfold.worker.answers import Answers
from keyfold.worker.emit import Outputs
from keyfold.worker.errors import Crash
from keyfold.worker.handover.listener import PROPOSAL_S, Listener
from keyfold.worker.partition import Partition
from keyfold.worker.phases import Questions
from keyfold.worker.protocol import Held, Phase, Record, Topic
from keyfold.worker.records import Records, Waiting
from keyfold.worker.saver import MAX_TAKE_BYTES, Saver
from keyfold.worker.slots import Rows
from keyfold.worker.surroundings import Surroundings, raise_if_refused, wait_to_retry
from keyfold.worker.transactions import TransactionFailed

log = logging.getLogger(__name__)

AUDIT_S = 1.0  # how often an idle partition compares Redis with what it expects
HALT_RETRY_S = 5.0  # how often a halted partition looks whether it was resolved
CANCEL_AGAIN_S = 1.0  # a library may swallow a cancellation


class Owner:
    """The task and the waiting records of one owned partition."""

    def __init__(self, partition: Partition, shared: Surroundings) -> None:
        self.partition, self._shared = partition, shared
        self._saver, self._answers = Saver(partition, shared), Answers(partition, shared)
        self._listener = Listener(partition, self._answers)
        self.waiting = Waiting()
        self.open = False  # the position is ours: fetched records may be offered
        self._changed = asyncio.Event()  # something happened: look at the phase again
        self._log_end = 0
        self._audit_due_s = 0.0  # by the event loop's clock
        self._hinted = 0  # W as Kafka was last told
        self._halted_for = ""  # the HALT that was last logged
        self._task: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return str(self.partition)

    # -- called by the intake ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin with ACQUIRE."""
        self.partition.acquire()
        self._task = asyncio.create_task(self._run(), name=f"owner {self.partition}")
        self._task.add_done_callback(self._ended)

    def offer(self, records: Sequence[Record]) -> None:
        """Take fetched records of this partition."""
        before = self.partition.phase
        accepted = self.partition.offer(Records.of(records))
        if accepted:
            self.waiting.add(Records.of(accepted))
            self._shared.wake_pipeline()
        if self.partition.phase is not before:
            self._note_unverified()
            self._changed.set()

    def sought(self) -> None:
        """Note that the position is where request_seek asked it to be."""
        self.open = True
        self.partition.sought()
        self._changed.set()

    def passed(self, position: int) -> None:
        """Note that the position stands here though no record came: markers, aborted records."""
        if not self.waiting and self.partition.pass_to(position):
            self._changed.set()

    def out_of_range(self, offset: int) -> None:
        """Note that the broker refused the position."""
        self.open = False
        self.partition.out_of_range(offset)
        self._changed.set()

    async def drain(self, deadline_s: float) -> None:
        """Save what was applied, within the deadline, and give the partition up."""
        self.open = False
        self._drop_waiting()
        self.partition.drain()
        self._changed.set()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=deadline_s)
            if late and deadline_s:
                log.warning("%s: not drained within %.1f s; a replay follows", self, deadline_s)
            while late:
                # Only awaits of I/O are cut here; Redis commands run to their end by themselves.
                self._task.cancel()
                _, late = await asyncio.wait([self._task], timeout=CANCEL_AGAIN_S)
        self.partition.release()
        self._forget()
        await self._shared.emitter.close(self.partition.number)

    def saw_log_end(self, offset: int) -> None:
        """Note the log's end."""
        self._log_end = offset

    def hint_due(self) -> bool:
        """Whether W has moved since Kafka was last told of it; asking counts as telling."""
        due = self.partition.fence is not None and self.partition.saved > self._hinted
        self._hinted = max(self._hinted, self.partition.saved)
        return due

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the records that wait to be applied, about."""
        return self.waiting.bytes

    @property
    def halted(self) -> bool:
        """Whether the partition is in HALT, or is only trying whether it still has to be."""
        return bool(self._halted_for) or self.partition.phase is Phase.HALT

    @property
    def lag(self) -> int:
        """Records between W and the log's end as it was last seen."""
        return max(self._log_end - self.partition.saved, 0)

    # -- called by the pipeline --------------------------------------------------------------------

    def room(self) -> int:
        """Return how many events may be applied now."""
        partition, waiting = self.partition, self.waiting
        if partition.phase is not Phase.RUN or not waiting:
            return 0
        first = waiting.first_offset
        upto = None if first is None else partition.voice.upto(first)
        room = self._saver.room()
        return room if upto is None else min(room, waiting.below(upto))

    def take(self, most: int, most_bytes: int | None = None) -> Records:
        """Take up to `most` waiting records, less where they are large, at least one."""
        taken = self.waiting.take(most, min(most_bytes or MAX_TAKE_BYTES, MAX_TAKE_BYTES))
        self.partition.begin(int(taken.offsets[0]), int(taken.offsets[-1]) + 1)
        return taken

    def applied(
        self, records: Records, rows: Rows, outputs: Outputs, stream_ms: int | None
    ) -> None:
        """Note that records are in the slots (rows changed) and their outputs are to be emitted.

        `stream_ms` is the partition's stream time after them.
        """
        self._saver.applied(records, rows, outputs, stream_ms)
        self._changed.set()

    def judge_held(self, held: Held, since: int) -> bool:
        """Judge what Redis held at some instant since W was `since`; False: RUN is over."""
        try:
            good = self.partition.judge_held(held, since)
        except Crash as error:
            self._shared.crash(error)
            return False
        if not good:
            self._changed.set()
        return good

    def halt(self, why: str) -> None:
        """Stop this partition until an operator resolves it."""
        self.partition.halt(why)
        self._changed.set()

    # -- the task ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        turns: dict[Phase, Callable[[], Awaitable[object]]] = {
            Phase.ACQUIRE: self._acquire,
            Phase.SEEK: self._wait,
            Phase.RUN: self._turn_or_audit,
            Phase.REWIND: self._rewind,
            Phase.DRAIN: self._finish,
            Phase.HALT: self._stay_halted,
        }
        while self.partition.phase is not Phase.UNASSIGNED:
            await turns[self.partition.phase]()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever ended the task with an error ends the worker: nothing may be half done."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._shared.crash(error)

    async def _wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something changed; False when the time ran out first."""
        try:
            # Not wait_for: Python 3.11's swallows a cancellation that meets the event.
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def _acquire(self) -> None:
        """ACQUIRE, trying again until Kafka and Redis have answered."""
        tries = 0
        while self.partition.phase is Phase.ACQUIRE:
            try:
                await self._acquire_once()
                return
            except (RedisError, KafkaError, OSError) as error:
                raise_if_refused(error)
                tries = await wait_to_retry(f"{self}: acquire", error, tries)

    async def _acquire_once(self) -> None:
        self.open = False
        self._forget()
        self._changed.clear()
        await self._answers.give(phases.acquire(self.partition), Phase.ACQUIRE)
        if self.partition.phase is Phase.SEEK:
            self._hinted, self._log_end = self.partition.saved, self._answers.log_end
            self._note_unverified()
            self._shared.log.request_seek(self, self._answers.seek_to)

    async def _turn_or_audit(self) -> None:
        if not self.partition.voice.heard:
            await self._listen()
        if self.partition.applied > self.partition.saved:
            await self._turn()
            await self._look_around(phases.look_at_topic)
        elif not await self._wait(PROPOSAL_S if self._listener.urgent else AUDIT_S):
            await self._look_around(phases.audit)
        else:
            return
        if self._halted_for and self.partition.phase is Phase.RUN:
            # Only now: a save or an audit has shown that the cause is gone.
            log.warning("%s: no longer halted (was: %s)", self, self._halted_for)
            self._halted_for = ""

    async def _look_around(self, look: Callable[[Partition, Topic], Questions]) -> None:
        """Look, once a second, at what may happen under a partition."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._audit_due_s:
            self._audit_due_s = now_s + AUDIT_S
            await self._answers.give(look(self.partition, self._answers.topic), Phase.RUN)
        await self._listen_if_due()

    async def _listen_if_due(self) -> None:
        if self._listener.due:
            await self._listen()

    async def _wait_behind(self, timeout_s: float) -> None:
        """Wait within a turn, for so long at most, until something changed or is to be heard."""
        await self._wait(min(timeout_s, max(self._listener.due_in_s, 0)))

    async def _listen(self) -> None:
        await self._listener.listen(self.waiting.first_offset)
        self._shared.wake_pipeline()

    async def _rewind(self) -> None:
        log.error(
            "%s: Redis lost writes (watermark was %d): replaying from what it holds",
            self, self.partition.saved,
        )  # fmt: skip
        self._shared.metrics.rewinds += 1
        self.partition.acquire()

    async def _finish(self) -> None:
        """DRAIN: save what was applied, then be done."""
        if self.partition.applied > self.partition.saved:
            await self._turn()
        else:
            self.partition.release()

    async def _turn(self) -> None:
        try:
            await self._saver.turn(self._wait_behind, self._listen_if_due)
        except TransactionFailed as error:
            # Whether it ended well only a new ACQUIRE can tell; while draining: the next owner's.
            log.warning("%s: %s", self, error)
            if self.partition.phase is Phase.RUN:
                self.partition.acquire()
            elif self.partition.phase is Phase.DRAIN:
                self.partition.release()
            # Else RUN was left meanwhile (REWIND, HALT): that leads to a new ACQUIRE, too.

    async def _stay_halted(self) -> None:
        self.open = False
        self._forget()
        if self.partition.halted != self._halted_for:
            self._halted_for = self.partition.halted
            self._shared.metrics.halts += 1
            log.error("%s: HALT: %s", self, self._halted_for)
        if not await self._wait(HALT_RETRY_S) and self.partition.phase is Phase.HALT:
            self.partition.acquire()

    def _note_unverified(self) -> None:
        if self.partition.unverified:
            self.partition.unverified = False
            self._shared.metrics.unverified += 1
            log.warning("%s: the last applied record is not in the log any more", self)

    def _forget(self) -> None:
        """Drop everything in memory: it belonged to a fence that is no more."""
        self._shared.slots.drop(self.partition.number)
        self._drop_waiting()
        self._saver.forget()
        self._listener.forget()

    def _drop_waiting(self) -> None:
        self.waiting.clear()
