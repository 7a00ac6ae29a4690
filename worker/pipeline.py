"""One micro-batch's path: decode, load, schedule and step, then hand over to emit and save.

Owns the order of the steps and what becomes of each record; the steps themselves live in events,
store, fold and owner. One task runs it for all partitions of the worker; between its awaits nothing
else touches the slots. Started and woken by worker/intake.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import (
    MAX_KEY_BYTES,
    Caused,
    Decoder,
    PredictionEncoder,
    why_no_key,
)
from keyfold.worker.emit import DeadLetter, Outputs
from keyfold.worker.fold import Fold, Rows
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.partition import Fence, Phase, Record
from keyfold.worker.slots import Slots, as_rows
from keyfold.worker.state_codec import StateCodec, StateCorrupt
from keyfold.worker.store import Store, pieces
from keyfold.worker.surroundings import retrying


@dataclass(frozen=True, slots=True)
class Share:
    """One partition's part of a micro-batch."""

    owner: Owner  # whose records they are
    fence: Fence | None  # under which they were taken; under another one they are void
    records: Sequence[Record]  # in offset order
    keys: Sequence[bytes | None]  # of the records
    first: int  # number of its first row in the micro-batch

    @property
    def valid(self) -> bool:
        """Whether the partition still runs under the same fence."""
        partition = self.owner.partition
        return partition.phase is Phase.RUN and partition.fence is self.fence

    @property
    def number(self) -> int:
        """The partition's number."""
        return self.owner.partition.number

    @property
    def rows(self) -> slice:
        """Its rows in the micro-batch."""
        return slice(self.first, self.first + len(self.records))


class Pipeline:
    """Runs the micro-batches of one worker."""

    def __init__(
        self, model: Model, slots: Slots, store: Store, metrics: Metrics, topic: str
    ) -> None:
        manifest = model.bundle.manifest
        self._slots, self._store, self._metrics = slots, store, metrics
        self._decoder = Decoder(manifest.events, manifest.features)
        self._fold = Fold(model, slots, metrics)
        self._encoder = PredictionEncoder(manifest.outputs, model.bundle.id, topic)
        self._codec = StateCodec(manifest)
        self._tombstones_reset = manifest.events.tombstone == "reset"
        self._outputs = len(manifest.outputs.names)
        self._work = asyncio.Event()

    def wake(self) -> None:
        """Note that there may be work."""
        self._work.set()

    async def run(
        self, owners: Callable[[], Sequence[Owner]], max_events: int, max_keys: int
    ) -> None:
        """Run micro-batches of at most `max_events` for ever, keeping about `max_keys` resident."""
        while True:
            self._work.clear()
            shares = take(owners(), max_events)
            if not shares:
                await self._work.wait()
                continue
            await self.micro_batch(shares)
            watermarks = {o.partition.number: o.partition.saved for o in owners()}
            self._metrics.evicted += self._slots.evict(max_keys, watermarks)
            await asyncio.sleep(0)  # let fetches, acks and saves move between micro-batches

    async def micro_batch(self, shares: Sequence[Share]) -> None:
        """Take one micro-batch along its path."""
        self._slots.tick()
        records = [record for share in shares for record in share.records]
        with self._metrics.timed("decode"):
            decoded = self._decoder.decode(
                [record.value for record in records], [record.timestamp for record in records]
            )
        with self._metrics.timed("load"):
            await asyncio.gather(*self._loads(shares))
        shares = [share for share in shares if share.valid]
        slots, rejects = np.full(len(records), -1, np.intp), decoded.rejects
        retired = [slot for share in shares for slot in self._place(share, slots, rejects)]
        rows = Rows(
            slots,
            decoded.x,
            np.array([record.offset for record in records], np.int64),
            decoded.times_ms,
            np.zeros((len(records), self._outputs), np.float32),
            np.zeros(len(records), np.int64),
            rejects,
        )
        self._fold.apply(rows)
        with self._metrics.timed("encode"):
            for share in shares:
                self._hand_over(share, rows)
        for slot in retired:
            self._slots.retire(slot)

    # -- load --------------------------------------------------------------------------------------

    def _loads(self, shares: Sequence[Share]) -> list[asyncio.Task[None]]:
        """Begin to read the states of keys without a slot."""
        loads = []
        for share in shares:
            resident = self._slots.of(share.number)
            missing = [
                key
                for key in dict.fromkeys(share.keys)
                if key is not None and key not in resident and why_no_key(key) is None
            ]
            loads += [asyncio.create_task(self._load(share, piece)) for piece in pieces(missing)]
        return loads

    async def _load(self, share: Share, keys: Sequence[bytes]) -> None:
        """Give keys their slots: with the state Redis has, or cold."""
        partition = share.owner.partition
        since = partition.saved
        loaded = await retrying(
            f"{partition}: load",
            lambda: self._store.load(partition.topic, partition.number, keys),
            lambda: share.valid,
        )
        if loaded is None or not share.valid:
            return
        # A save since then cannot have changed these states: their keys have no slot. But had Redis
        # lost writes, they would miss events, and a prediction would contradict the one emitted
        # before under the same id.
        if not share.owner.judge_held(loaded.held, since):
            return
        warm = {k: v for k, v in zip(keys, loaded.values, strict=True) if v is not None}
        try:
            states = self._codec.unpack(list(warm), list(warm.values()), loaded.held.watermark or 0)
        except StateCorrupt as error:
            share.owner.halt(f"a stored state is damaged: {error}")
            return
        slot_of = {key: self._slots.add(partition.number, key) for key in keys}
        self._slots.fill(as_rows([slot_of[key] for key in warm]), states)
        self._metrics.loaded += len(warm)

    # -- place -------------------------------------------------------------------------------------

    def _place(
        self, share: Share, slots: NDArray[np.intp], rejects: dict[int, str]
    ) -> Sequence[int]:
        """Set the rows' slots, -1 for rejects; return slots that a tombstone's key has left."""
        left: list[int] = []
        of = self._slots.of(share.number)
        if self._tombstones_reset and any(record.value is None for record in share.records):
            left = self._place_around_tombstones(share, slots, rejects)
        else:
            slots[share.rows] = np.fromiter(
                (of.get(key, -1) for key in share.keys),  # type: ignore[arg-type]
                np.intp,
                len(share.keys),
            )
        for row, key in enumerate(share.keys, share.first):
            if key is None or len(key) > MAX_KEY_BYTES:
                rejects[row] = why_no_key(key) or ""
        rejected = [row for row in rejects if share.rows.start <= row < share.rows.stop]
        slots[rejected] = -1
        without = np.count_nonzero(slots[share.rows] < 0) - len(rejected) - len(left)
        if without:
            raise RuntimeError(
                f"{share.owner}: expected a slot for every event, got {without} less"
            )
        return left

    def _place_around_tombstones(
        self, share: Share, slots: NDArray[np.intp], rejects: dict[int, str]
    ) -> list[int]:
        """Give a reset key another, cold slot; its events before the tombstone keep the old one."""
        left = []
        of = self._slots.of(share.number)
        for row, (record, key) in enumerate(
            zip(share.records, share.keys, strict=True), share.first
        ):
            if key is None or key not in of:
                continue  # a reject
            if record.value is None:
                rejects.pop(row, None)
                left.append(of[key])
                cold = self._slots.add(share.number, key)
                # Not to be evicted before the save has cleared the key's old state in Redis.
                self._slots.offsets[cold] = record.offset
                self._slots.mark(share.number, as_rows([cold]))
            else:
                slots[row] = of[key]
        return left

    # -- hand over ---------------------------------------------------------------------------------

    def _hand_over(self, share: Share, rows: Rows) -> None:
        """Write a share's predictions and dead letters and give them to its owner."""
        stepped = share.first + np.flatnonzero(rows.slots[share.rows] >= 0)
        slots = rows.slots[stepped]
        at = slots.tolist()
        caused = Caused(
            rows.offsets[stepped].tolist(),
            [self._slots.fragments[slot] for slot in at],
            rows.times_ms[stepped].tolist(),
            rows.steps[stepped].tolist(),
        )
        payloads = self._encoder.encode(share.number, caused, rows.y[stepped])
        dead_letters = [
            DeadLetter(record.offset, record.key, record.value, rows.rejects[row])
            for row, record in enumerate(share.records, share.first)
            if row in rows.rejects
        ] if rows.rejects else []  # fmt: skip
        keys = [self._slots.keys[slot] for slot in at]
        share.owner.applied(share.records, slots, Outputs(keys, payloads, dead_letters))
        self._metrics.events += len(stepped)
        self._metrics.rejects += len(dead_letters)


def take(owners: Sequence[Owner], most: int) -> list[Share]:
    """Take at most `most` waiting records (one per partition at least), fairly over partitions."""
    ready = sorted(
        ((min(owner.room(), len(owner.waiting)), owner) for owner in owners),
        key=lambda item: item[0],
    )
    ready = [item for item in ready if item[0]]
    shares: list[Share] = []
    first = 0
    for place, (available, owner) in enumerate(ready):
        # What a partition with little to do leaves over goes to those with more.
        records = owner.take(min(available, max((most - first) // (len(ready) - place), 1)))
        keys = [record.key for record in records]
        shares.append(Share(owner, owner.partition.fence, records, keys, first))
        first += len(records)
    return shares
