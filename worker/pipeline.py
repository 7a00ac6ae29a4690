"""One micro-batch's path: decode, load, schedule and step, then hand over to emit and save.

Owns the order of the steps and what becomes of each record; the steps themselves live in events,
store, fold and owner. One task runs it for all partitions of the worker; between its awaits nothing
else touches the slots. Started and woken by worker/intake.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.answers import MOST_EVERY
from keyfold.export.events import Caused, Decoder
from keyfold.export.formats import format_for
from keyfold.worker.caused import Answers, listing_of
from keyfold.worker.emission import ALERT, OUTPUT, Emission
from keyfold.worker.emit import DeadLetter, Outputs
from keyfold.worker.encoder import encoder_of
from keyfold.worker.fold import Fold
from keyfold.worker.generation import most_events
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.passthrough import Passthrough, check_fits
from keyfold.worker.placement import NO_STREAM, Left, Placement, Places
from keyfold.worker.records import values_of
from keyfold.worker.rows import Rows
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
        self._fold = Fold(model, slots, metrics, rule, shown.topic)
        self._encoder = encoder_of(
            manifest.outputs, model.bundle.id, shown.topic, use_native=shown.native
        )
        paths = shown.passthrough
        check_fits(paths, manifest.outputs)
        form = format_for(manifest.events, manifest.features)
        often = manifest.outputs.is_several
        self._passthrough = Passthrough(paths, form, often=often) if paths else None
        self._codec = StateCodec(manifest, () if rule is None else rule.states)
        self._placement = Placement(slots, manifest.events, manifest.outputs.most_key_bytes)
        self._spec, self._listing = manifest.outputs, listing_of(manifest.outputs, slots)
        self._outputs = manifest.width
        self._most_events = most_events(model.bundle)
        self._most_bytes = None if manifest.features.unrolled is None else MOST_TEXT_BYTES
        if self._spec.read == "every":
            self._most_bytes = min(MOST_TEXT_BYTES, MOST_EVERY // self._outputs)
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
            shares = take(owners(), min(max_events, self._most_events), self._most_bytes)
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
        places = Places.of(decoded.times_ms, timestamps_ms, decoded.rejects, decoded.ends)
        left = [self._placement.place(share, places) for share in shares]
        self._metrics.resets += sum(map(len, left))
        rows = Rows(
            places.slots, decoded.x, offsets, decoded.times_ms, places.stream_ms,
            np.zeros((len(offsets), self._outputs), np.float32), np.zeros(len(offsets), np.int64),
            decoded.rejects, decoded.observed, self._fold.scores(len(offsets)),
            self._fold.verdicts(len(offsets)), decoded.lengths, said=self._fold.said(),
            **self._room(len(offsets), len(decoded.x)),
        )  # fmt: skip
        placed = rows.slots.copy()
        self._fold.apply(rows)
        self._placement.settle_gaps()
        with self._metrics.timed("encode"):
            for share, closed in zip(shares, left, strict=True):
                self._hand_over(share, rows, placed[share.rows], closed)
        for one in chain.from_iterable(left):
            self._slots.retire(one.slot)

    def _room(self, events: int, steps: int) -> dict[str, NDArray[Any]]:
        """Return room for what some bundles' events lead to, by its name in Rows."""
        if self._spec.read == "every":
            return {"each": np.zeros((steps, self._outputs), np.float32)}
        if self._spec.delay:
            return {name: np.zeros(events, np.int64) for name in ("abouts", "about_ms")}
        return {}

    # -- load --------------------------------------------------------------------------------------

    def _loads(self, shares: Sequence[Share]) -> list[asyncio.Task[None]]:
        """Begin to read the states of keys without a slot."""
        loads = []
        for share in shares:
            missing = share.look_up(self._slots.of(share.number), self._spec.most_key_bytes)
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

    def _hand_over(
        self, share: Share, rows: Rows, placed: NDArray[np.intp], closed: Sequence[Left]
    ) -> None:
        """Write a share's predictions and dead letters and give them to its owner.

        `closed` are the slots that keys of the share have left.
        """
        emit_from = share.owner.partition.emit_from
        stepped = share.first + np.flatnonzero(rows.slots[share.rows] >= 0)
        self._metrics.events += len(stepped)
        answers = self._listing(stepped, rows, closed)
        if rows.offsets[share.first] < emit_from:  # a silent replay, at least in part
            answers = answers.pick(rows.offsets[answers.causes] >= emit_from)
        if answers.verdicts is not None:
            answers = answers.pick(answers.verdicts > 0)
        keys = [*map(self._slots.keys.__getitem__, answers.slots.tolist())]
        payloads = self._written(share, rows, answers, keys)
        dead_letters = []
        for row in sorted(rows.rejects.keys() & range(share.rows.start, share.rows.stop)):
            record = share.records[row - share.first]
            if record.offset >= emit_from:
                dead_letters.append(
                    DeadLetter(record.offset, record.key, record.value, rows.rejects[row])
                )
        stream_ms = int(rows.stream_ms[share.rows.stop - 1])
        share.owner.applied(
            share.records, placed[placed >= 0],
            _sorted(keys, payloads, dead_letters, answers.verdicts),
            None if stream_ms == NO_STREAM else stream_ms,
        )  # fmt: skip
        self._metrics.rejects += len(dead_letters)

    def _written(
        self, share: Share, rows: Rows, answers: Answers, keys: Sequence[bytes]
    ) -> list[bytes]:
        """Return a share's predictions, of `keys`, as they go out."""
        gaps = self._slots.gaps[answers.slots]
        caused = Caused(
            rows.offsets[answers.causes],
            keys,
            answers.times_ms,
            answers.steps,
            gaps.tolist() if gaps.any() else None,
            answers.abouts,
            answers.indexes,
            None if answers.lasts is None else answers.lasts.tolist(),
        )
        if answers.outputs is None:
            payloads = self._encoder.encode(share.number, caused, answers.y, answers.scores)
        else:
            payloads = self._encoder.around(share.number, caused, answers.outputs)
        if self._passthrough is None:
            return payloads
        column = share.records.value_column()
        values = [column[row] for row in (answers.causes - share.first).tolist()]
        return self._passthrough.added(payloads, values)


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
