"""The fold of events that are several steps each: a text's symbols through the model.

Owns how a micro-batch's events are unrolled into steps, cut into calls of the model and put
together again: an event's output is the one of its last step, and an event of which any output or
the state behind it is not finite is a reject that leaves no trace in its key's tensors. Events of
one step each take worker/fold.py's own way, which this one must not slow down. Knows slots and the
model, not partitions or records. Called by worker/fold.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keyfold.export.answers import Happened, keeper_of
from keyfold.export.bundle import Tensors
from keyfold.export.likelihood import Surprise, nats, scores
from keyfold.worker.emission import Emission
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.schedule import schedule
from keyfold.worker.slots import Slots

# Events are run so many steps at a time, or one event if it is longer: bounds the memory.
MOST_STEPS = 1 << 16
# An event's steps follow each other: one call for all of them gathers the key's state once. With 16
# and 128 units and 100 to 3,000 keys bursts were seen to take 0.4 to 0.9 of the time of waves.
NO_WAVES = 1 << 62

Numbers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of some events, one event behind the other."""

    of: Numbers  # (M,) place of each step's event among the events
    at: Numbers  # (M,) the step's row in Rows.x
    ends: NDArray[np.bool_]  # (M,) whether it is its event's last one

    @classmethod
    def of_events(cls, events: Numbers, lengths: NDArray[np.int64]) -> _Steps:
        """Unroll events, numbers of rows; `lengths` (N,) are those of all rows."""
        first = np.cumsum(lengths) - lengths  # of each row in Rows.x
        mine = lengths[events]
        of = np.repeat(np.arange(len(events)), mine)
        behind = np.cumsum(mine)
        at = first[events][of] + np.arange(len(of)) - (behind - mine)[of]
        ends = np.zeros(len(of), np.bool_)
        ends[behind - 1] = True
        return cls(of, at, ends)


class Unrolled:
    """Runs events of several steps through a model over the slots."""

    def __init__(self, model: Model, slots: Slots, rule: Emission | None) -> None:
        self._model, self._slots, self._rule = model, slots, rule
        self._max_steps = model.bundle.manifest.max_steps
        self._surprise = Surprise.of(model.bundle.manifest.outputs)
        self._keeper = keeper_of(model.bundle.manifest.outputs)

    def apply(self, rows: Rows, lengths: NDArray[np.int64]) -> None:
        """Step every row that has a slot: `lengths` (N,) steps each."""
        for events in _slices(np.flatnonzero(rows.slots >= 0), lengths):
            slots = rows.slots[events]
            before = np.unique(slots)
            kept = self._slots.gather(before)
            steps = _Steps.of_events(events, lengths)
            broken = self._run(events, steps, rows)
            if broken:
                again = np.isin(before, list(broken))
                self._slots.scatter(before[again], {n: v[again] for n, v in kept.items()})
                self._run_carefully(events[np.isin(slots, list(broken))], lengths, rows)
            self._note(events, slots, rows)
            self._judge(events[rows.slots[events] >= 0], rows)

    def _run(self, events: Numbers, steps: _Steps, rows: Rows) -> set[int]:
        """Step events; return the slots where something was not finite, left as they came out."""
        slots, broken = self._slots, set[int]()
        likely = np.empty(len(steps.of), np.float32)  # how likely each symbol was, if that is asked
        for group in schedule(rows.slots[events][steps.of], self._max_steps, NO_WAVES):
            x = rows.x[steps.at[group.events]]
            before = slots.gather(group.slots)
            y, after = self._model.step(x, group.lengths, before)
            real = np.arange(x.shape[1]) < group.lengths[:, None]
            if self._surprise is not None:
                found, newest = self._surprise.run(y, x[:, :, 0], group.lengths, before)
                likely[group.events[real]] = found[real]
                slots.scatter(group.slots, newest)
            slots.scatter(group.slots, after)
            bad = (~np.isfinite(y).all(axis=-1) & real).any(axis=1) | ~finite_rows(after, len(y))
            broken.update(group.slots[bad].tolist())
            last = real & steps.ends[group.events]
            rows.y[events[steps.of[group.events[last]]]] = y[last]
            if rows.each is not None:
                rows.each[steps.at[group.events[real]]] = y[real]
        if rows.scores is not None:
            rows.scores[events] = scores(nats(likely), np.bincount(steps.of))
        return broken

    def _run_carefully(self, events: Numbers, lengths: NDArray[np.int64], rows: Rows) -> None:
        """Step one event at a time, leaving out those with a result that is not finite."""
        first = np.cumsum(lengths) - lengths
        for event in events.tolist():
            here = rows.slots[event : event + 1]
            x = rows.x[first[event] : first[event] + lengths[event]]
            states, y, fine = self._slots.gather(here), rows.y[event], True
            likely = [np.empty(0, np.float32)]
            for start in range(0, len(x), self._max_steps):
                some = x[None, start : start + self._max_steps]
                count = np.array([some.shape[1]], np.int32)
                before = states
                out, states = self._model.step(some, count, before)
                fine, y = fine and bool(np.isfinite(out).all()), out[0, -1]
                if rows.each is not None:
                    rows.each[first[event] + start :][: len(out[0])] = out[0]
                if self._surprise is not None:
                    found, newest = self._surprise.run(out, some[:, :, 0], count, before)
                    likely.append(found[0])
                    states |= newest
            if not (fine and finite_rows(states, 1).all()):
                rows.rejects[event] = NOT_FINITE
                rows.slots[event] = -1
                continue
            self._slots.scatter(here, states)
            rows.y[event] = y
            if rows.scores is not None:
                rows.scores[event] = scores(nats(np.concatenate(likely)), np.array([len(x)]))[0]

    def _note(self, events: Numbers, slots: Numbers, rows: Rows) -> None:
        """Note what became of the events in their slots, `slots` (N,), rejects included."""
        own = self._slots
        order, ranks, last = _by_slot(slots)
        # Not a step, but a sign of life: silence is told from the log alone.
        newest = order[last]
        own.times_ms[slots[newest]] = rows.times_ms[events[newest]]
        own.touched_ms[slots[newest]] = rows.stream_ms[events[newest]]
        stepped = rows.slots[events] >= 0
        events, slots = events[stepped], slots[stepped]
        order, ranks, last = _by_slot(slots)
        rows.steps[events[order]] = own.steps[slots[order]].astype(np.int64) + 1 + ranks
        newest = order[last]
        own.steps[slots[newest]] += (ranks[last] + 1).astype(np.uint64)
        own.offsets[slots[newest]] = rows.offsets[events[newest]]
        if self._keeper is not None:  # of sessions: no text is answered late
            here = events[newest][:, None]
            happened = Happened(
                rows.y[here], rows.offsets[here], rows.times_ms[here], np.ones(len(here), np.int32)
            )
            before = own.gather(slots[newest])
            own.scatter(slots[newest], self._keeper.run(happened, before).states)

    def _judge(self, events: Numbers, rows: Rows) -> None:
        """Say which predictions go where: the rule goes by events, not by steps."""
        if self._rule is None or rows.verdicts is None:
            return
        for group in schedule(rows.slots[events], self._max_steps):
            mine = events[group.events]
            real = np.arange(mine.shape[1]) < group.lengths[:, None]
            before = self._slots.gather(group.slots)
            scored = None if rows.scores is None else rows.scores[mine]
            verdicts, memory = self._rule.run(rows.y[mine], scored, group.lengths, before)
            rows.verdicts[mine[real]] = verdicts[real]
            self._slots.scatter(group.slots, memory)


def _slices(events: Numbers, lengths: NDArray[np.int64]) -> Iterator[Numbers]:
    """Cut events into runs of at most MOST_STEPS steps, of one event at least."""
    behind = np.cumsum(lengths[events])
    start = 0
    while start < len(events):
        done = int(behind[start - 1]) if start else 0
        stop = max(int(np.searchsorted(behind, done + MOST_STEPS, side="right")), start + 1)
        yield events[start:stop]
        start = stop


def _by_slot(slots: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return the order by slot (stable), each one's rank in its slot, and where slots end."""
    order = np.argsort(slots, kind="stable")
    of = slots[order]
    begins = np.flatnonzero(np.r_[True, of[1:] != of[:-1]]) if len(of) else order
    counts = np.diff(np.r_[begins, len(of)])
    ranks = np.arange(len(of)) - np.repeat(begins, counts)
    return order, ranks, begins + counts - 1


def finite_rows(states: Tensors, rows: int) -> NDArray[np.bool_]:
    """Say of each row whether all its tensors are finite."""
    fine = np.ones(rows, np.bool_)
    for values in states.values():
        fine &= np.isfinite(values.reshape(rows, -1)).all(axis=1)
    return fine
