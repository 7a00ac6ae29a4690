"""The turn that follows a partition's micro-batches: emit, wait for the acks, save.

Owns what was applied and not saved yet: the outputs to emit, the states to save and how much may
still be applied. The order of a turn is worker/phases.py's, whose questions are answered here. Used
by worker/owner.py, which runs the turns one after the other while the pipeline applies further
micro-batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np

from keyfold.worker import phases
from keyfold.worker.emit import Outputs
from keyfold.worker.partition import Partition
from keyfold.worker.phases import Emit, Question, Questions, Save
from keyfold.worker.protocol import Fingerprint, Held, Phase, SavePlan
from keyfold.worker.records import Records
from keyfold.worker.redis.packing import Written
from keyfold.worker.slots import Rows
from keyfold.worker.store import MAX_SAVE_BYTES, Expired, Payload
from keyfold.worker.surroundings import Surroundings, retrying

MAX_UNSAVED_MICRO_BATCHES = 4  # the pipeline runs at most so far ahead of the acks
# Of one partition's records, keys included, in one micro-batch: a save has room for them.
MAX_TAKE_BYTES = MAX_SAVE_BYTES // 4
LEAST_SCANNED = 128  # fields looked at for expired states by a save
SPREAD = 8  # write-behind: partitions save at so many different moments of the interval
NOTHING = Payload((), (), ())


class Saver:
    """Outputs and changed states of one partition on their way out."""

    def __init__(self, partition: Partition, shared: Surroundings) -> None:
        self._partition, self._shared = partition, shared
        self._emissions: list[Outputs] = []
        self._payload = NOTHING  # of the save that is planned
        self._micro_batches = 0  # applied, not acked
        self._bytes = 0  # of states and keys applied since the last snapshot, at most
        self._cursor = 0  # where the scan for expired states goes on
        # By the event loop's clock. Partitions' saves are spread over the interval.
        self._last_save_s = asyncio.get_running_loop().time() - (
            shared.settings.save_every_s * (partition.number % SPREAD) / SPREAD
        )

    def room(self) -> int:
        """Return how many events may be applied now without outgrowing one save."""
        if self._micro_batches >= MAX_UNSAVED_MICRO_BATCHES or self._full:
            return 0
        room_bytes = MAX_SAVE_BYTES - MAX_TAKE_BYTES - self._bytes
        return max(room_bytes // self._shared.codec.bytes_per_state, 1)

    @property
    def _full(self) -> bool:
        """Whether the next save is large enough: one more micro-batch's keys still fit behind."""
        return self._bytes >= MAX_SAVE_BYTES // 2

    def applied(
        self, records: Records, rows: Rows, outputs: Outputs, stream_ms: int | None
    ) -> None:
        """Note that records are in the slots (rows changed) and their outputs are to be emitted.

        `stream_ms` is the partition's stream time after them.
        """
        last = records[-1]
        self._shared.slots.mark(self._partition.number, rows, last.offset + 1)
        self._partition.apply(last.offset + 1, Fingerprint.of(last), stream_ms)
        self._emissions.append(outputs)
        self._bytes += len(records) * self._shared.codec.bytes_per_state + records.key_bytes
        self._micro_batches += 1

    def forget(self) -> None:
        """Drop everything: it belonged to a fence that is no more."""
        self._emissions, self._payload = [], NOTHING
        self._bytes = self._micro_batches = self._cursor = 0

    async def turn(
        self, wait: Callable[[float], Awaitable[object]], listen: Callable[[], Awaitable[object]]
    ) -> None:
        """Emit everything applied so far, wait for the acks, save. Raises NotOwner, KafkaError.

        `wait(seconds)` returns earlier when more was applied, the phase changed, or `listen` has
        something to do.
        """
        await self._write_behind(wait, listen)
        plan = self._partition.plan_save()
        if plan is None:
            return
        # Both at one micro-batch's end: the states below plan.w1 and the outputs of its events.
        with self._shared.metrics.timed("encode"):
            self._payload = self._snapshot(plan)
        self._drop_silent(plan.w1)
        await self._answer(phases.turn(self._partition, plan))
        self._last_save_s = asyncio.get_running_loop().time()

    async def _write_behind(
        self, wait: Callable[[float], Awaitable[object]], listen: Callable[[], Awaitable[object]]
    ) -> None:
        """Until a save is due, emit at once and let further micro-batches join the save.

        A save is due at once where a handover waits for it.
        """
        loop = asyncio.get_running_loop()
        due_s = self._last_save_s + self._shared.settings.save_every_s
        while loop.time() < due_s and self._partition.phase is Phase.RUN and not self._full:
            await listen()
            if self._partition.phase is not Phase.RUN or self._partition.stands:
                return
            if self._partition.acked < self._partition.applied:
                upto = self._partition.applied
                self._drop_silent(upto)
                await self._answer(phases.emit(self._partition, upto))
            else:
                await wait(due_s - loop.time())

    def _drop_silent(self, upto: int) -> None:
        """Make room where nothing will be emitted: a replay of what a transaction put out."""
        if self._partition.outputs_upto(upto) is None:
            self._emissions, self._micro_batches = [], 0
            self._shared.wake_pipeline()

    async def _answer(self, questions: Questions) -> None:
        """Do what a phase asks for, one after the other."""
        answer: object = None
        while True:
            try:
                question = questions.send(answer)
            except StopIteration:
                return
            answer = await self._do(question)

    async def _do(self, question: Question) -> Held | None:
        match question:
            case Emit():
                await self._emit(question)
                return None
            case Save():
                return await self._save(question.plan)
        raise RuntimeError(f"{self._partition}: expected a turn's question, got {question}")

    async def _emit(self, question: Emit) -> None:
        """Send the outputs of everything applied, that is of the events below `upto`."""
        emissions, self._emissions = self._emissions, []
        self._micro_batches = 0
        self._shared.wake_pipeline()
        with self._shared.metrics.timed("emit"):
            await self._shared.emitter.send(self._partition.number, emissions, question.upto)

    def _snapshot(self, plan: SavePlan) -> Payload:
        """Copy the changed states out of the slots."""
        slots, number = self._shared.slots, self._partition.number
        rows = slots.changed(number)
        states = slots.snapshot(number, rows)
        self._bytes = 0
        keys = [slots.keys[row] for row in rows.tolist()]
        expired = self._expired(plan, len(keys))
        none = states.steps == 0  # reset, or nothing but rejects, and not stepped since
        if self._partition.lost_upto:
            # Behind a lost range a reset key keeps a state of no steps: without it nobody would
            # know after a restart that the key is truly cold, its lost events notwithstanding.
            none &= states.offsets < 0
        cleared: list[bytes] = []
        if none.any():
            kept = np.flatnonzero(~none)
            cleared = [keys[i] for i in np.flatnonzero(none).tolist()]
            keys, states = [keys[i] for i in kept.tolist()], states.of(kept)
        stored = self._shared.codec.stored(keys, states)
        if isinstance(stored, Written):
            return Payload(cleared, keys, (), expired, stored)
        return Payload(cleared, keys, stored, expired)

    def _expired(self, plan: SavePlan, saved: int) -> Expired | None:
        """Say which states this save collects: those that their next event would reset anyway.

        Looking at twice as many fields as are saved keeps up with any churn of keys.
        """
        after_ms = self._shared.settings.reset_after_ms
        if after_ms is None or plan.stream_ms is None or self._partition.lost_upto:
            return None
        return Expired(plan.stream_ms - after_ms, self._cursor, 2 * saved + LEAST_SCANNED)

    async def _save(self, plan: SavePlan) -> Held | None:
        """Send the compare-and-set until Redis has said what it holds."""
        partition, shared, fence = self._partition, self._shared, self._partition.fence
        payload, self._payload = self._payload, NOTHING
        if fence is None:
            return None
        with shared.metrics.timed("save"):
            # A lost reply leaves the outcome unknown; the compare-and-set may be sent again.
            reply = await retrying(
                f"{partition}: save",
                lambda: shared.store.save(partition.topic, partition.number, fence, plan, payload),
                lambda: partition.phase in (Phase.RUN, Phase.DRAIN),
            )
        if reply is None:
            return None
        held, self._cursor = reply
        if held.watermark == plan.w1:
            shared.metrics.saves += 1
            shared.metrics.saved_states += len(payload.keys)
        return held
