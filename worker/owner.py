"""Takes one partition through its phases: asks worker/partition.py, does the I/O it decides.

Owns a partition's task, its waiting records, and the turn "emit, wait for acks, save" that follows
the pipeline's micro-batches. It never seeks (the intake does) and never touches the model. Created
by worker/intake.py on assignment, fed by it, emptied by worker/pipeline.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from keyfold.worker.emit import Emitter, Outputs
from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.metrics import Metrics
from keyfold.worker.partition import (
    INIT_METADATA,
    Acquired,
    Fingerprint,
    GroupOffset,
    Held,
    Partition,
    Phase,
    Record,
    Refused,
    SavePlan,
)
from keyfold.worker.slots import Rows, Slots
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import MAX_SAVE_BYTES, Payload, Store

log = logging.getLogger(__name__)

AUDIT_S = 1.0  # how often an idle partition compares Redis with what it expects
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # waits between tries; the last repeats
HALT_RETRY_S = 5.0  # how often a halted partition looks whether it was resolved
MAX_UNSAVED_MICRO_BATCHES = 4  # the pipeline runs at most so far ahead of the saves
RECORD_OVERHEAD_BYTES = 200  # of one fetched record in memory, beside its value

T = TypeVar("T")


class Log(Protocol):
    """What an owner needs of Kafka, on its own partition."""

    async def group_offset(self, topic: str, partition: int) -> GroupOffset | None:
        """Return C, None when the group has none."""

    async def set_group_offset(self, topic: str, partition: int, at: GroupOffset) -> None:
        """Set C; it is a hint, but for INIT_METADATA."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset still in the log and the next one to be written."""

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return each topic's number of partitions, 0 when it does not exist."""

    def request_seek(self, owner: Owner, offset: int) -> None:
        """Have the intake move the position; it calls owner.sought() afterwards."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an owner needs of the configuration."""

    output: str  # topic of predictions, must have the input's number of partitions
    dead_letter: str  # topic of rejects, must exist
    start: str  # "", "earliest" or "latest"
    save_every_s: float  # 0: each turn
    nonce: str  # this worker's
    bundle: str  # bundle id


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all owners of a worker share."""

    store: Store  # Redis
    slots: Slots  # resident states
    codec: StateCodec  # their stored form
    emitter: Emitter  # Kafka, out
    log: Log  # Kafka, positions
    metrics: Metrics  # counters
    settings: Settings  # what was configured
    wake_pipeline: Callable[[], None]  # there is something to do
    crash: Callable[[BaseException], None]  # fail-stop


class Owner:
    """The task and the waiting records of one owned partition."""

    def __init__(self, partition: Partition, shared: Surroundings) -> None:
        self.partition, self._shared = partition, shared
        self.waiting: deque[Record] = deque()
        self.waiting_bytes = 0
        self.open = False  # the position is ours: fetched records may be offered
        self._saving: SavePlan | None = None  # sent, outcome not known yet
        self._emissions: list[Outputs] = []
        self._unsaved_events = 0  # applied since the last snapshot
        self._unsaved_micro_batches = 0
        self._changed = asyncio.Event()  # something happened: look at the phase again
        self._log_end = 0
        self._hinted = 0  # W as Kafka was last told
        self._last_save = 0.0
        self._halted_for = ""  # the HALT that was last logged
        self._task: asyncio.Task[None] | None = None

    # -- called by the intake ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin with ACQUIRE."""
        self.partition.acquire()
        self._task = asyncio.create_task(self._run(), name=f"owner {self.partition}")

    def offer(self, records: Sequence[Record]) -> None:
        """Take fetched records of this partition."""
        before = self.partition.phase
        accepted = self.partition.offer(records)
        if accepted:
            self.waiting.extend(accepted)
            self.waiting_bytes += sum(map(_size, accepted))
            self._shared.wake_pipeline()
        if self.partition.phase is not before:
            self._note_verification()
            self._changed.set()

    def sought(self) -> None:
        """Note that the position is where request_seek asked it to be."""
        self.open = True
        self.partition.sought()
        self._changed.set()

    async def out_of_range(self, offset: int) -> None:
        """Note that the broker refused the position."""
        self.open = False
        start, _ = await self._shared.log.bounds(self.partition.topic, self.partition.number)
        self.partition.out_of_range(offset, start)
        self._changed.set()

    async def drain(self, deadline_s: float) -> None:
        """Save what was applied, within the deadline, and give the partition up."""
        self.open = False
        self.waiting.clear()
        self.waiting_bytes = 0
        self.partition.drain()
        self._changed.set()
        if self._task is not None:
            _, pending = await asyncio.wait([self._task], timeout=deadline_s)
            for task in pending:
                # Only awaits of I/O are cut here; Redis commands run to their end by themselves.
                log.warning("%s: not drained within %.1f s; a replay follows", self, deadline_s)
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.partition.release()
        self._forget()

    # -- called by the pipeline --------------------------------------------------------------------

    def room(self) -> int:
        """Return how many events may be applied now without outgrowing one save."""
        if (
            self.partition.phase is not Phase.RUN
            or self._unsaved_micro_batches >= MAX_UNSAVED_MICRO_BATCHES
        ):
            return 0
        most = MAX_SAVE_BYTES // self._shared.codec.bytes_per_state
        return max(most - self._unsaved_events, 0 if self._unsaved_events else 1)

    def take(self, most: int) -> list[Record]:
        """Take up to `most` waiting records."""
        waiting = self.waiting
        taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        self.waiting_bytes -= sum(map(_size, taken))
        return taken

    def applied(self, records: Sequence[Record], rows: Rows, outputs: Outputs) -> None:
        """Note that records are in the slots (rows changed) and their outputs are to be emitted."""
        last = records[-1]
        self._shared.slots.mark(self.partition.number, rows)
        self.partition.apply(last.offset + 1, Fingerprint.of(last))
        self._emissions.append(outputs)
        self._unsaved_events += len(records)
        self._unsaved_micro_batches += 1
        self._changed.set()

    def judge_held(self, held: Held) -> bool:
        """Judge what Redis holds; False: the partition has left RUN."""
        try:
            good = self.partition.judge_held(held, self._saving)
        except Crash as error:
            self._shared.crash(error)
            return False
        if not good:
            self._changed.set()
        return good

    def halt(self, why: str) -> None:
        """Stop this partition until an operator resolves it."""
        self.partition.halt(f"{why}; {self.partition.reset_command()}")
        self._changed.set()

    async def retrying(
        self, doing: str, call: Callable[[], Awaitable[T]], still: Callable[[], bool]
    ) -> T | None:
        """Call Redis until it answers, while `still` holds; None when it does no more."""
        tries = 0
        while still():
            try:
                return await call()
            except (RedisError, OSError) as error:
                tries = await self._wait_to_retry(doing, error, tries)
        return None

    # -- the task ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        return str(self.partition)

    def hint_due(self) -> bool:
        """Whether W has moved since Kafka was last told of it; asking counts as telling."""
        due = self.partition.fence is not None and self.partition.saved > self._hinted
        self._hinted = max(self._hinted, self.partition.saved)
        return due

    @property
    def lag(self) -> int:
        """Records between W and the log's end as it was last seen."""
        return max(self._log_end - self.partition.saved, 0)

    def saw_log_end(self, offset: int) -> None:
        """Note the log's end."""
        self._log_end = offset

    async def _run(self) -> None:
        turns: dict[Phase, Callable[[], Awaitable[object]]] = {
            Phase.ACQUIRE: self._acquire,
            Phase.SEEK: self._wait,
            Phase.RUN: self._emit_and_save,
            Phase.REWIND: self._rewind,
            Phase.DRAIN: self._finish,
            Phase.HALT: self._stay_halted,
        }
        tries = 0
        while self.partition.phase is not Phase.UNASSIGNED:
            try:
                await turns[self.partition.phase]()
                tries = 0
            except (RedisError, KafkaError, OSError) as error:
                if isinstance(error, KafkaError) and self.partition.phase is not Phase.ACQUIRE:
                    self._shared.crash(error)  # outputs that are not acked: fail-stop, then replay
                    return
                tries = await self._wait_to_retry(self.partition.phase.value, error, tries)
            except (Crash, RuntimeError) as error:
                self._shared.crash(error)
                return

    async def _wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something changed; False when the time ran out first."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def _wait_to_retry(self, doing: str, error: Exception, tries: int) -> int:
        wait = RETRY_S[min(tries, len(RETRY_S) - 1)]
        log.warning("%s: %s: %s; trying again in %.1f s", self, doing, _name(error), wait)
        await asyncio.sleep(wait)
        return tries + 1

    async def _acquire(self) -> None:
        self.open = False
        self._forget()
        self._changed.clear()
        partition, shared = self.partition, self._shared
        topic, number = partition.topic, partition.number
        start, end = await shared.log.bounds(topic, number)
        reply = await self._take_fence(start, end)
        if partition.phase is not Phase.ACQUIRE:
            return  # revoked meanwhile; the fence is harmless
        self._log_end = end
        offset = partition.acquired(reply, start)
        if offset is None:
            return
        if self._halted_for:
            log.warning("%s: no longer halted (was: %s)", self, self._halted_for)
            self._halted_for = ""
        log.info(
            "%s: acquired at watermark %d (log %d to %d, fence %d)",
            self, partition.saved, start, end, partition.fence.number if partition.fence else 0,
        )  # fmt: skip
        self._note_verification()
        shared.log.request_seek(self, offset)

    async def _take_fence(self, log_start: int, log_end: int) -> Acquired | Refused:
        partition, shared, settings = self.partition, self._shared, self._shared.settings
        topic, number = partition.topic, partition.number
        count = await self._check_topics()
        refused = await shared.store.check_partition_count(topic, count)
        if refused is not None:
            return refused
        reply = await shared.store.acquire(topic, number, settings.nonce, settings.bundle, None)
        if not (isinstance(reply, Refused) and reply.what == "missing"):
            return reply
        group_offset = await shared.log.group_offset(topic, number)
        start = {"earliest": log_start, "latest": log_end}.get(settings.start)
        begin = partition.may_start_at(group_offset, start)
        if begin is None:
            return reply
        # Kafka remembers the beginning first: from here on a state missing in Redis is a loss.
        await shared.log.set_group_offset(topic, number, GroupOffset(begin, INIT_METADATA))
        return await shared.store.acquire(topic, number, settings.nonce, settings.bundle, begin)

    async def _check_topics(self) -> int:
        settings, topic = self._shared.settings, self.partition.topic
        names = (topic, settings.output, settings.dead_letter)
        counts = await self._shared.log.partition_counts(names)
        for name in names:
            if not counts[name]:
                raise TopicError(
                    f"topic {name!r}: expected it to exist, got none; create it "
                    "(the worker never creates topics)"
                )
        if counts[settings.output] != counts[topic]:
            raise TopicError(
                f"topic {settings.output!r}: expected {counts[topic]} partitions like the input "
                f"{topic!r}, got {counts[settings.output]}"
            )
        return counts[topic]

    async def _emit_and_save(self) -> None:
        """One turn: emit everything applied so far, wait for the acks, save."""
        partition = self.partition
        if partition.applied == partition.saved:
            if not await self._wait(AUDIT_S) and partition.phase is Phase.RUN:
                await self._audit()
            return
        await self._hold_back_save()
        await self._turn()

    async def _hold_back_save(self) -> None:
        """With write-behind, emit at once but let further micro-batches join the save."""
        loop = asyncio.get_running_loop()
        due = self._last_save + self._shared.settings.save_every_s
        most = MAX_SAVE_BYTES // self._shared.codec.bytes_per_state
        while loop.time() < due and self.partition.phase is Phase.RUN:
            upto, emissions = self.partition.applied, self._take_emissions()
            if emissions:
                await self._emit(upto, emissions)
            self._unsaved_micro_batches = 0
            self._shared.wake_pipeline()
            if self._unsaved_events >= most // 2:
                return
            await self._wait(due - loop.time())

    async def _turn(self) -> None:
        partition, shared = self.partition, self._shared
        plan, fence = partition.plan_save(), partition.fence
        if plan is None or fence is None:
            return
        with shared.metrics.timed("encode"):
            payload = self._snapshot()
        emissions = self._take_emissions()
        self._unsaved_events = self._unsaved_micro_batches = 0
        shared.wake_pipeline()
        await self._emit(plan.w1, emissions)
        self._saving = plan
        try:
            await self._save_until_known(plan, payload)
        finally:
            self._saving = None
        self._last_save = asyncio.get_running_loop().time()

    def _snapshot(self) -> Payload:
        """Copy the changed states at a micro-batch's end."""
        slots, number = self._shared.slots, self.partition.number
        rows = slots.changed(number)
        states = slots.snapshot(number, rows)
        keys = [slots.keys[row] for row in rows.tolist()]
        values = self._shared.codec.pack(keys, states)
        cold = states.steps == 0
        if not cold.any():
            return Payload((), keys, values)
        cleared = [key for key, reset in zip(keys, cold.tolist(), strict=True) if reset]
        kept = [i for i, reset in enumerate(cold.tolist()) if not reset]
        return Payload(cleared, [keys[i] for i in kept], [values[i] for i in kept])

    def _take_emissions(self) -> list[Outputs]:
        emissions, self._emissions = self._emissions, []
        return emissions

    async def _emit(self, upto: int, emissions: Sequence[Outputs]) -> None:
        with self._shared.metrics.timed("emit"):
            await self._shared.emitter.send(self.partition.number, emissions)
        self.partition.ack(upto)

    async def _save_until_known(self, plan: SavePlan, payload: Payload) -> None:
        """Send the compare-and-set until Redis has said what it holds."""
        partition, shared, fence = self.partition, self._shared, self.partition.fence
        if fence is None:
            return
        with shared.metrics.timed("save"):
            # A lost reply leaves the outcome unknown; the compare-and-set may be sent again.
            held = await self.retrying(
                "save",
                lambda: shared.store.save(partition.topic, partition.number, fence, plan, payload),
                lambda: partition.phase in (Phase.RUN, Phase.DRAIN),
            )
        if held is None:
            return
        partition.judge_save(plan, held)
        if partition.saved == plan.w1:
            shared.metrics.saves += 1
            shared.metrics.saved_states += len(payload.keys)

    async def _audit(self) -> None:
        """Find a rollback of Redis, or another owner, under an idle partition."""
        partition = self.partition
        held = await self._shared.store.hold(partition.topic, partition.number)
        if partition.phase is Phase.RUN and partition.applied == partition.saved:
            partition.judge_held(held)

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

    async def _stay_halted(self) -> None:
        self.open = False
        self._forget()
        if self.partition.halted != self._halted_for:
            self._halted_for = self.partition.halted
            self._shared.metrics.halts += 1
            log.error("%s: HALT: %s", self, self._halted_for)
        if not await self._wait(HALT_RETRY_S):
            self.partition.acquire()

    def _note_verification(self) -> None:
        if self.partition.unverified:
            self.partition.unverified = False
            self._shared.metrics.unverified += 1
            log.warning("%s: the last applied record is not in the log any more", self)

    def _forget(self) -> None:
        """Drop everything in memory: it belonged to a fence that is no more."""
        self._shared.slots.drop(self.partition.number)
        self.waiting.clear()
        self.waiting_bytes = 0
        self._emissions = []
        self._unsaved_events = self._unsaved_micro_batches = 0


def _size(record: Record) -> int:
    return RECORD_OVERHEAD_BYTES + len(record.value or b"")


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
