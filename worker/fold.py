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
from keyfold.export.bundle import Tensors
from keyfold.export.front import Front
from keyfold.worker.emission import Emission
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.schedule import Group, schedule
from keyfold.worker.slots import Slots
from keyfold.worker.unrolled import Unrolled

__all__ = ["NOT_FINITE", "Fold", "Rows"]

_NOTHING: Tensors = {}


@dataclass(frozen=True, slots=True)
class _Stepped:
    """What one call led to, over the real steps only: beyond a row's length there is nothing."""

    y: NDArray[np.float32]  # (N,O)
    scores: NDArray[np.float32] | None  # (N,S)
    verdicts: NDArray[np.uint8] | None  # (N,)
    states: Tensors  # all that the keys' states hold, by name: (B, *dims)


class Fold:
    """Runs events through a model over the slots."""

    def __init__(
        self, model: Model, slots: Slots, metrics: Metrics, rule: Emission | None = None
    ) -> None:
        manifest = model.bundle.manifest
        self._model, self._slots, self._metrics = model, slots, metrics
        self._max_steps = manifest.max_steps
        self._front, self._back = Front.of(manifest.features), Back.of(manifest.outputs)
        self._rule = rule
        self._unrolled = Unrolled(model, slots, rule)

    def scores(self, count: int) -> NDArray[np.float32] | None:
        """Return room for the scores of `count` events; None: the bundle has none."""
        if self._back is None:
            return None
        return np.full((count, len(self._back.columns)), np.nan, np.float32)

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
                self._run(group, valid[group.events], rows)

    def _run(self, group: Group, events: NDArray[np.intp], rows: Rows) -> None:
        """Run one call of the model; `events` (B,T) are the group's rows."""
        slots = self._slots
        real = np.arange(events.shape[1]) < group.lengths[:, None]
        stepped = self._step(rows, events, group.lengths, real, slots.gather(group.slots))
        if stepped is None:
            self._run_carefully(group, events, rows)
            return
        slots.scatter(group.slots, stepped.states)
        before = slots.steps[group.slots].astype(np.int64)
        rows.y[events[real]] = stepped.y
        if rows.scores is not None:
            rows.scores[events[real]] = stepped.scores
        if rows.verdicts is not None and stepped.verdicts is not None:
            rows.verdicts[events[real]] = stepped.verdicts
        rows.steps[events[real]] = (before[:, None] + 1 + np.arange(events.shape[1]))[real]
        slots.steps[group.slots] = before + group.lengths
        last = events[np.arange(len(events)), group.lengths - 1]
        slots.offsets[group.slots] = rows.offsets[last]
        slots.times_ms[group.slots] = rows.times_ms[last]
        slots.touched_ms[group.slots] = rows.stream_ms[last]

    def _step(
        self,
        rows: Rows,
        events: NDArray[np.intp],
        lengths: NDArray[np.int32],
        real: NDArray[np.bool_],
        before: Tensors,
    ) -> _Stepped | None:
        """Step events (B,T) from the states `before`; None: a result is not finite."""
        x, front = rows.x[events], _NOTHING
        if self._front is not None:
            x, front = self._front.run(x, rows.times_ms[events], lengths, before)
        y, after = self._model.step(x, lengths, before)
        if not _finite(y[real], after):
            return None
        if self._back is None and self._rule is None:
            return _Stepped(y[real], None, None, {**after, **front} if front else after)
        scores, back = None, _NOTHING
        if self._back is not None:
            scores, back = self._scored(y, rows.observed, events, lengths, before)
        verdicts, memory = None, _NOTHING
        if self._rule is not None:
            verdicts, memory = self._rule.run(y, scores, lengths, before)
        return _Stepped(
            y[real],
            None if scores is None else scores[real],
            None if verdicts is None else verdicts[real],
            {**after, **front, **back, **memory},
        )

    def _scored(
        self,
        y: NDArray[np.float32],
        observed: NDArray[np.float32] | None,
        events: NDArray[np.intp],
        lengths: NDArray[np.int32],
        before: Tensors,
    ) -> tuple[NDArray[np.float32], Tensors]:
        """Score events (B,T) with outputs y; return scores (B,T,S) and the back's states."""
        if self._back is None or observed is None:
            raise RuntimeError("expected observed values: the bundle scores events, got none")
        return self._back.run(y, observed[events], lengths, before)

    def _run_carefully(self, group: Group, events: NDArray[np.intp], rows: Rows) -> None:
        """Run a group one event at a time, leaving out those whose result is not finite."""
        slots, one, real = self._slots, np.ones(1, np.int32), np.ones((1, 1), np.bool_)
        for place, slot in enumerate(group.slots):
            here = slot[None]
            for event in events[place, : group.lengths[place]]:
                stepped = self._step(rows, event[None, None], one, real, slots.gather(here))
                # Not a step, but a sign of life: silence is told from the log alone.
                slots.times_ms[slot] = rows.times_ms[event]
                slots.touched_ms[slot] = rows.stream_ms[event]
                if stepped is None:
                    rows.rejects[int(event)] = NOT_FINITE
                    rows.slots[event] = -1
                    continue
                slots.scatter(here, stepped.states)
                slots.steps[slot] += np.uint64(1)
                slots.offsets[slot] = rows.offsets[event]
                rows.y[event] = stepped.y[0]
                if rows.scores is not None and stepped.scores is not None:
                    rows.scores[event] = stepped.scores[0]
                if rows.verdicts is not None and stepped.verdicts is not None:
                    rows.verdicts[event] = stepped.verdicts[0]
                rows.steps[event] = slots.steps[slot]


def _finite(y: NDArray[np.float32], states: Tensors) -> bool:
    return bool(np.isfinite(y).all() and all(np.isfinite(s).all() for s in states.values()))
