"""The turn that follows a partition's micro-batches: emit, wait for the acks, save.

Owns what was applied and not saved yet: the outputs to emit and how much may still be applied. It
asks worker/partition.py what to save and what Redis's answer means. Used by worker/owner.py, which
runs the turns one after the other while the pipeline applies further micro-batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from keyfold.worker.emit import Outputs
from keyfold.worker.partition import Fingerprint, Partition, Phase, Record, SavePlan
from keyfold.worker.slots import Rows
from keyfold.worker.store import MAX_SAVE_BYTES, Payload
from keyfold.worker.surroundings import Surroundings, retrying

MAX_UNSAVED_MICRO_BATCHES = 4  # the pipeline runs at most so far ahead of the acks


class Saver:
    """Outputs and changed states of one partition on their way out."""

    def __init__(self, partition: Partition, shared: Surroundings) -> None:
        self._partition, self._shared = partition, shared
        self._emissions: list[Outputs] = []
        self._micro_batches = 0  # applied, not acked
        self._events = 0  # applied since the last snapshot
        self._last_save_s = 0.0  # by the event loop's clock
        self._most_events = MAX_SAVE_BYTES // shared.codec.bytes_per_state

    def room(self) -> int:
        """Return how many events may be applied now without outgrowing one save."""
        if self._micro_batches >= MAX_UNSAVED_MICRO_BATCHES:
            return 0
        return max(self._most_events - self._events, 0 if self._events else 1)

    def applied(self, records: Sequence[Record], rows: Rows, outputs: Outputs) -> None:
        """Note that records are in the slots (rows changed) and their outputs are to be emitted."""
        last = records[-1]
        self._shared.slots.mark(self._partition.number, rows)
        self._partition.apply(last.offset + 1, Fingerprint.of(last))
        self._emissions.append(outputs)
        self._events += len(records)
        self._micro_batches += 1

    def forget(self) -> None:
        """Drop everything: it belonged to a fence that is no more."""
        self._emissions = []
        self._events = self._micro_batches = 0

    async def turn(self, wait: Callable[[float], Awaitable[object]]) -> None:
        """Emit everything applied so far, wait for the acks, save. Raises NotOwner, KafkaError.

        `wait(seconds)` returns earlier when more was applied or the phase changed.
        """
        await self._write_behind(wait)
        partition, shared = self._partition, self._shared
        plan = partition.plan_save()
        if plan is None:
            return
        # Both at one micro-batch's end: the states below plan.w1 and the outputs of its events.
        with shared.metrics.timed("encode"):
            payload = self._snapshot()
        await self._emit(plan.w1)
        await self._save(plan, payload)
        self._last_save_s = asyncio.get_running_loop().time()

    async def _write_behind(self, wait: Callable[[float], Awaitable[object]]) -> None:
        """Until a save is due, emit at once and let further micro-batches join the save."""
        loop = asyncio.get_running_loop()
        due_s = self._last_save_s + self._shared.settings.save_every_s
        while loop.time() < due_s and self._partition.phase is Phase.RUN:
            if self._emissions:
                await self._emit(self._partition.applied)
            if self._events >= self._most_events // 2:
                return
            await wait(due_s - loop.time())

    async def _emit(self, upto: int) -> None:
        """Send the outputs of everything applied, that is of the events below `upto`."""
        emissions, self._emissions = self._emissions, []
        self._micro_batches = 0
        self._shared.wake_pipeline()
        with self._shared.metrics.timed("emit"):
            await self._shared.emitter.send(self._partition.number, emissions)
        self._partition.ack(upto)

    def _snapshot(self) -> Payload:
        """Copy the changed states out of the slots."""
        slots, number = self._shared.slots, self._partition.number
        rows = slots.changed(number)
        states = slots.snapshot(number, rows)
        self._events = 0
        keys = [slots.keys[row] for row in rows.tolist()]
        values = self._shared.codec.pack(keys, states)
        if states.steps.all():
            return Payload((), keys, values)
        cold = (states.steps == 0).tolist()  # reset by a tombstone and not stepped since
        kept = [i for i, reset in enumerate(cold) if not reset]
        return Payload(
            [key for key, reset in zip(keys, cold, strict=True) if reset],
            [keys[i] for i in kept],
            [values[i] for i in kept],
        )

    async def _save(self, plan: SavePlan, payload: Payload) -> None:
        """Send the compare-and-set until Redis has said what it holds."""
        partition, shared, fence = self._partition, self._shared, self._partition.fence
        if fence is None:
            return
        with shared.metrics.timed("save"):
            # A lost reply leaves the outcome unknown; the compare-and-set may be sent again.
            held = await retrying(
                f"{partition}: save",
                lambda: shared.store.save(partition.topic, partition.number, fence, plan, payload),
                lambda: partition.phase in (Phase.RUN, Phase.DRAIN),
            )
        if held is None:
            return
        partition.judge_save(plan, held)
        if partition.saved == plan.w1:
            shared.metrics.saves += 1
            shared.metrics.saved_states += len(payload.keys)
