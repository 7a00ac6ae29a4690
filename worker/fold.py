"""Applies a micro-batch's events to the slots: the schedule's groups through the model.

Owns what one step does to a slot (tensors, steps, last offset, last event time) and what happens to
an event whose result is not finite: it is a reject and its key's state stays as it was, all of it.
One step is the bundle's front, its graph and its back, and the rule of what is emitted; most have
the graph alone. Knows slots and the model, not partitions or records. Called by worker/pipeline.py
between its awaits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.export.anomaly import Back
from keyfold.export.answers import Happened, keeper_of
from keyfold.export.bundle import Tensors
from keyfold.export.front import Front
from keyfold.export.likelihood import Surprise
from keyfold.worker.emission import Emission
from keyfold.worker.generation import Generation
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.schedule import schedule
from keyfold.worker.slots import Slots
from keyfold.worker.unrolled import Unrolled, finite_rows

_NOTHING: Tensors = {}


@dataclass(frozen=True, slots=True)
class _Called:
    """What one call led to: B keys, up to T events each."""

    events: NDArray[np.intp]  # (B,T) rows; beyond a key's length: anything
    real: NDArray[np.bool_]  # (B,T) within its length
    lengths: NDArray[np.int32]  # (B,)
    before: Tensors  # the states that it began with: (B, *dims)
    y: NDArray[np.float32]  # (B,T,O)
    states: Tensors  # what front and graph left: (B, *dims)

    def part(self, these: NDArray[np.bool_]) -> _Called:
        """Return some of the keys."""
        return _Called(
            self.events[these],
            self.real[these],
            self.lengths[these],
            {name: values[these] for name, values in self.before.items()},
            self.y[these],
            {name: values[these] for name, values in self.states.items()},
        )


class Fold:
    """Runs events through a model over the slots."""

    def __init__(
        self,
        model: Model,
        slots: Slots,
        metrics: Metrics,
        rule: Emission | None = None,
        topic: str = "",
    ) -> None:
        """Fold over `slots`; `topic`: of the events, whose ids seed what answers them."""
        manifest = model.bundle.manifest
        self._model, self._slots, self._metrics = model, slots, metrics
        self._max_steps = manifest.max_steps
        self._front, self._back = Front.of(manifest.features), Back.of(manifest.outputs)
        self._surprise = Surprise.of(manifest.outputs)
        self._keeper = keeper_of(manifest.outputs)
        self._rule = rule
        self._generates = manifest.outputs.generate is not None
        self._unrolled = (
            Generation(model, slots, topic) if self._generates else Unrolled(model, slots, rule)
        )

    def scores(self, count: int) -> NDArray[np.float32] | None:
        """Return room for the scores of `count` events; None: the bundle has none."""
        scored = self._back or self._surprise
        if scored is None:
            return None
        return np.full((count, len(scored.columns)), np.nan, np.float32)

    def said(self) -> dict[int, list[bytes]] | None:
        """Return room for what events are answered; None: the bundle does not generate."""
        return {} if self._generates else None

    def verdicts(self, count: int) -> NDArray[np.uint8] | None:
        """Return room for the verdicts on `count` events; None: no rule says what is emitted."""
        return None if self._rule is None else np.zeros(count, np.uint8)

    def apply(self, rows: Rows) -> None:
        """Step every row that has a slot."""
        if rows.lengths is not None:
            with self._metrics.timed("step"):
                self._unrolled.apply(rows, rows.lengths)
            return
        with self._metrics.timed("schedule"):
            valid = np.flatnonzero(rows.slots >= 0)
            groups = schedule(rows.slots[valid], self._max_steps)
        with self._metrics.timed("step"):
            for group in groups:
                self._run(group.slots, valid[group.events], group.lengths, rows)

    def _run(
        self,
        these: NDArray[np.intp],
        events: NDArray[np.intp],
        lengths: NDArray[np.int32],
        rows: Rows,
    ) -> None:
        """Run one call of the model: rows `events` (B,T), `lengths` (B,), from `these` slots (B,).

        Beyond a length stands any row.
        """
        before = self._slots.gather(these)
        x, front = rows.x[events], _NOTHING
        if self._front is not None:
            x, front = self._front.run(x, rows.times_ms[events], lengths, before)
        y, after = self._model.step(x, lengths, before)
        real = np.arange(events.shape[1]) < lengths[:, None]
        states = {**after, **front} if front else after
        called = _Called(events, real, lengths, before, y, states)
        if _finite(y[real], after):
            self._keep(these, called, rows)
            return
        bad = (~np.isfinite(y).all(axis=-1) & real).any(axis=1) | ~finite_rows(after, len(y))
        if not bad.all():
            self._keep(these[~bad], called.part(~bad), rows)
        self._run_apart(these[bad], events[bad], lengths[bad], rows)

    def _keep(self, these: NDArray[np.intp], called: _Called, rows: Rows) -> None:
        """Finish a call whose results are finite: fill in its rows and the slots `these` (B,)."""
        slots, events, real, y = self._slots, called.events, called.real, called.y
        before, lengths, states = called.before, called.lengths, called.states
        at = events[real]
        scores = None
        if self._back is not None:
            scores, back = self._scored(y, rows.observed, events, lengths, before)
            states = {**states, **back}
            if rows.scores is not None:
                rows.scores[at] = scores[real]
        if self._rule is not None:
            verdicts, memory = self._rule.run(y, scores, lengths, before)
            states = {**states, **memory}
            if rows.verdicts is not None:
                rows.verdicts[at] = verdicts[real]
        if self._keeper is not None:
            happened = Happened(y, rows.offsets[events], rows.times_ms[events], lengths)
            kept = self._keeper.run(happened, before)
            states = {**states, **kept.states}
            if rows.abouts is not None and kept.abouts is not None:
                rows.abouts[at] = kept.abouts[real]
            if rows.about_ms is not None and kept.about_ms is not None:
                rows.about_ms[at] = kept.about_ms[real]
        slots.scatter(these, states)
        done = slots.steps[these].astype(np.int64)
        rows.y[at] = y[real]
        rows.steps[at] = (done[:, None] + 1 + np.arange(events.shape[1]))[real]
        slots.steps[these] = done + lengths
        last = events[np.arange(len(events)), lengths - 1]
        slots.offsets[these] = rows.offsets[last]
        slots.times_ms[these] = rows.times_ms[last]
        slots.touched_ms[these] = rows.stream_ms[last]

    def _run_apart(
        self,
        these: NDArray[np.intp],
        events: NDArray[np.intp],
        lengths: NDArray[np.int32],
        rows: Rows,
    ) -> None:
        """Run keys again whose call held a result that is not finite, to leave that event out.

        Half of the steps, then the other half, and so on: a burst of T steps with one such event
        costs 2 log2(T) calls, and the parts without it are kept as they are.
        """
        steps = int(lengths.max())
        if steps == 1:
            self._reject(these, events[:, 0], rows)
            return
        half = steps // 2
        self._run(these, events[:, :half], np.minimum(lengths, np.int32(half)), rows)
        longer = lengths > half
        rest = lengths[longer] - np.int32(half)
        self._run(these[longer], events[longer, half:steps], rest, rows)

    def _reject(self, these: NDArray[np.intp], events: NDArray[np.intp], rows: Rows) -> None:
        """Leave events (B,) out, whose step from the slots `these` (B,) is not finite."""
        slots = self._slots
        # Not a step, but a sign of life: silence is told from the log alone.
        slots.times_ms[these] = rows.times_ms[events]
        slots.touched_ms[these] = rows.stream_ms[events]
        rows.slots[events] = -1
        rows.rejects.update(dict.fromkeys(events.tolist(), NOT_FINITE))

    def _scored(
        self,
        y: NDArray[np.float32],
        observed: NDArray[np.float32] | None,
        events: NDArray[np.intp],
        lengths: NDArray[np.int32],
        before: Tensors,
    ) -> tuple[NDArray[np.float32], Tensors]:
        """Score events (B,T) with outputs y; return scores (B,T,S) and the back's states."""
        if self._back is None:
            raise RuntimeError("expected a bundle that scores events, got another")
        seen = None if observed is None else observed[events]
        return self._back.run(y, seen, lengths, before)


def _finite(y: NDArray[np.float32], states: Tensors) -> bool:
    return bool(np.isfinite(y).all() and all(np.isfinite(s).all() for s in states.values()))
