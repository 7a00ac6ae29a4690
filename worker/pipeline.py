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
    Caused,
    Decoder,
)
from keyfold.export.formats import format_for
from keyfold.worker.emission import ALERT, OUTPUT, Emission
from keyfold.worker.emit import DeadLetter, Outputs
from keyfold.worker.encoder import encoder_of
from keyfold.worker.fold import Fold, Rows
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.passthrough import Passthrough
from keyfold.worker.placement import NO_STREAM, Placement, Places
from keyfold.worker.records import values_of
from keyfold.worker.share import Share, take
from keyfold.worker.slots import Slots, as_rows
from keyfold.worker.state_codec import StateCodec, StateCorrupt
from keyfold.worker.store import Store, pieces
from keyfold.worker.surroundings import retrying

# Of a micro-batch of texts: a symbol is a byte or more, each is a step, and while it runs nothing
# else does. One event may be larger.
MOST_TEXT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Shown:
    """What predictions say beside the model's outputs, and which of them go out."""

    topic: str  # of the events: in their ids
    passthrough: Sequence[str] = ()  # members of the event that they repeat
    rule: Emission | None = None  # which go where; None: all to the output topic
    native: bool = False  # whether the native module writes them


class Pipeline:
    """Runs the micro-batches of one worker."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        store: Store,
        metrics: Metrics,
        shown: Shown,
    ) -> None:
        manifest, rule = model.bundle.manifest, shown.rule
        self._slots, self._store, self._metrics = slots, store, metrics
        self._decoder = Decoder(manifest.events, manifest.features, manifest.outputs.targets)
        self._fold = Fold(model, slots, metrics, rule)
        self._encoder = encoder_of(
            manifest.outputs, model.bundle.id, shown.topic, use_native=shown.native
        )
        paths = shown.passthrough
        form = format_for(manifest.events, manifest.features)
        self._passthrough = Passthrough(paths, form) if paths else None
        self._codec = StateCodec(manifest, () if rule is None else rule.states)
        self._placement = Placement(slots, manifest.events)
        self._outputs = len(manifest.outputs.names)
        self._most_bytes = None if manifest.features.text is None else MOST_TEXT_BYTES
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
            shares = take(owners(), max_events, self._most_bytes)
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
        timestamps_ms = np.concatenate([share.records.timestamps_ms for share in shares])
        offsets = np.concatenate([share.records.offsets for share in shares])
        with self._metrics.timed("decode"):
            decoded = self._decoder.decode(
                values_of(share.records for share in shares), timestamps_ms
            )
        with self._metrics.timed("load"):
            await asyncio.gather(*self._loads(shares))
        shares = [share for share in shares if share.valid]
        places = Places.of(decoded.times_ms, timestamps_ms, decoded.rejects)
        retired = [slot for share in shares for slot in self._placement.place(share, places)]
        self._metrics.resets += len(retired)
        rows = Rows(
            places.slots, decoded.x, offsets, decoded.times_ms, places.stream_ms,
            np.zeros((len(offsets), self._outputs), np.float32), np.zeros(len(offsets), np.int64),
            decoded.rejects, decoded.observed, self._fold.scores(len(offsets)),
            self._fold.verdicts(len(offsets)), decoded.lengths,
        )  # fmt: skip
        placed = rows.slots.copy()
        self._fold.apply(rows)
        self._placement.settle_gaps()
        with self._metrics.timed("encode"):
            for share in shares:
                self._hand_over(share, rows, placed[share.rows])
        for slot in retired:
            self._slots.retire(slot)

    # -- load --------------------------------------------------------------------------------------

    def _loads(self, shares: Sequence[Share]) -> list[asyncio.Task[None]]:
        """Begin to read the states of keys without a slot."""
        loads = []
        for share in shares:
            missing = share.look_up(self._slots.of(share.number))
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
            share.owner.halt(partition.halts.damaged(str(error)))
            return
        slot_of = {key: self._slots.add(partition.number, key) for key in keys}
        rows = as_rows([slot_of[key] for key in warm])
        self._slots.fill(rows, states)
        if partition.lost_upto:
            # What a key had in the lost range nobody knows: not even whether it is cold.
            old = as_rows(list(slot_of.values()))
            self._slots.gaps[old] |= self._slots.offsets[old] < partition.lost_upto
        self._metrics.loaded += len(warm)

    # -- hand over ---------------------------------------------------------------------------------

    def _hand_over(self, share: Share, rows: Rows, placed: NDArray[np.intp]) -> None:
        """Write a share's predictions and dead letters and give them to its owner."""
        emit_from = share.owner.partition.emit_from
        stepped = share.first + np.flatnonzero(rows.slots[share.rows] >= 0)
        self._metrics.events += len(stepped)
        if rows.offsets[share.first] < emit_from:  # a silent replay, at least in part
            stepped = stepped[rows.offsets[stepped] >= emit_from]
        verdicts = None
        if rows.verdicts is not None:
            stepped = stepped[rows.verdicts[stepped] > 0]
            verdicts = rows.verdicts[stepped]
        slots = rows.slots[stepped]
        at, gaps = slots.tolist(), self._slots.gaps[slots]
        caused = Caused(
            rows.offsets[stepped],
            [*map(self._slots.fragments.__getitem__, at)],
            rows.times_ms[stepped],
            rows.steps[stepped],
            gaps.tolist() if gaps.any() else None,
        )
        scores = None if rows.scores is None else rows.scores[stepped]
        payloads = self._encoder.encode(share.number, caused, rows.y[stepped], scores)
        if self._passthrough is not None:
            column = share.records.value_column()
            values = [column[row] for row in (stepped - share.first).tolist()]
            payloads = self._passthrough.added(payloads, values)
        dead_letters = []
        for row in sorted(rows.rejects.keys() & range(share.rows.start, share.rows.stop)):
            record = share.records[row - share.first]
            if record.offset >= emit_from:
                dead_letters.append(
                    DeadLetter(record.offset, record.key, record.value, rows.rejects[row])
                )
        keys = [*map(self._slots.keys.__getitem__, at)]
        stream_ms = int(rows.stream_ms[share.rows.stop - 1])
        share.owner.applied(
            share.records, placed[placed >= 0], _sorted(keys, payloads, dead_letters, verdicts),
            None if stream_ms == NO_STREAM else stream_ms,
        )  # fmt: skip
        self._metrics.rejects += len(dead_letters)


def _sorted(
    keys: Sequence[bytes],
    payloads: Sequence[bytes],
    dead_letters: Sequence[DeadLetter],
    verdicts: NDArray[np.uint8] | None,
) -> Outputs:
    """Sort predictions by where they go."""
    if verdicts is None:
        return Outputs(keys, payloads, dead_letters)
    out, alert = (np.flatnonzero(verdicts & to).tolist() for to in (OUTPUT, ALERT))
    return Outputs(
        [keys[i] for i in out], [payloads[i] for i in out], dead_letters,
        [keys[i] for i in alert], [payloads[i] for i in alert],
    )  # fmt: skip
