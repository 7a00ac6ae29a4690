"""Applies a micro-batch's events to the slots: the schedule's groups through the model.

Owns what one step does to a slot (tensors, steps, last offset, last event time) and what happens to
an event whose result is not finite: it is a reject and its key's state stays as it was. Knows slots
and the model, not partitions or records. Called by worker/pipeline.py between its awaits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Tensors
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.schedule import Group, schedule
from keyfold.worker.slots import Slots

NOT_FINITE = "the step's result is not finite; the key's state is unchanged"


@dataclass(frozen=True, slots=True)
class Rows:
    """N events in offset order per key; the last three members are filled in by the fold."""

    slots: NDArray[np.intp]  # (N,) each event's slot, -1: not to be stepped
    x: NDArray[np.float32]  # (N,F)
    offsets: NDArray[np.int64]  # (N,)
    times_ms: NDArray[np.int64]  # (N,)
    stream_ms: NDArray[np.int64]  # (N,) the partition's stream time, this event included
    y: NDArray[np.float32]  # (N,O) outputs
    steps: NDArray[np.int64]  # (N,) steps of the key, this one included
    rejects: dict[int, str]  # row -> why; its slot becomes -1


class Fold:
    """Runs events through a model over the slots."""

    def __init__(self, model: Model, slots: Slots, metrics: Metrics) -> None:
        self._model, self._slots, self._metrics = model, slots, metrics
        self._max_steps = model.bundle.manifest.max_steps

    def apply(self, rows: Rows) -> None:
        """Step every row that has a slot."""
        with self._metrics.timed("schedule"):
            valid = np.flatnonzero(rows.slots >= 0)
            groups = schedule(rows.slots[valid], self._max_steps)
        with self._metrics.timed("step"):
            for group in groups:
                self._run(group, valid[group.events], rows)

    def _run(self, group: Group, events: NDArray[np.intp], rows: Rows) -> None:
        """Run one call of the model; `events` (B,T) are the group's rows."""
        slots = self._slots
        y, after = self._model.step(rows.x[events], group.lengths, slots.gather(group.slots))
        real = np.arange(events.shape[1]) < group.lengths[:, None]
        if not _finite(y[real], after):
            self._run_carefully(group, events, rows)
            return
        slots.scatter(group.slots, after)
        before = slots.steps[group.slots].astype(np.int64)
        rows.y[events[real]] = y[real]
        rows.steps[events[real]] = (before[:, None] + 1 + np.arange(events.shape[1]))[real]
        slots.steps[group.slots] = before + group.lengths
        last = events[np.arange(len(events)), group.lengths - 1]
        slots.offsets[group.slots] = rows.offsets[last]
        slots.times_ms[group.slots] = rows.times_ms[last]
        slots.touched_ms[group.slots] = rows.stream_ms[last]

    def _run_carefully(self, group: Group, events: NDArray[np.intp], rows: Rows) -> None:
        """Run a group one event at a time, leaving out those whose result is not finite."""
        one = np.ones(1, np.int32)
        for place, slot in enumerate(group.slots):
            for event in events[place, : group.lengths[place]]:
                here = slot[None]
                y, after = self._model.step(
                    rows.x[event][None, None], one, self._slots.gather(here)
                )
                # Not a step, but a sign of life: silence is told from the log alone.
                self._slots.times_ms[slot] = rows.times_ms[event]
                self._slots.touched_ms[slot] = rows.stream_ms[event]
                if not _finite(y, after):
                    rows.rejects[int(event)] = NOT_FINITE
                    rows.slots[event] = -1
                    continue
                self._slots.scatter(here, after)
                self._slots.steps[slot] += np.uint64(1)
                self._slots.offsets[slot] = rows.offsets[event]
                rows.y[event] = y[0, 0]
                rows.steps[event] = self._slots.steps[slot]


def _finite(y: NDArray[np.float32], states: Tensors) -> bool:
    return bool(np.isfinite(y).all() and all(np.isfinite(s).all() for s in states.values()))
