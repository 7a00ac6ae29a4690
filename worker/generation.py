"""Answers by symbols: an event's text is read into its key's state, then the model answers it.

Owns the fold of bundles that generate. Reading is a step per symbol, as worker/unrolled.py does it,
but event by event of a key, for the answer begins from the state right behind its event. Saying is
a branch from there that only reads: what is said enters no key's state. All answers of a
micro-batch are said together; the graph, the choice and the random numbers of one do not depend on
the others. An event of which a result is not finite is a reject that leaves no trace. Knows slots
and the model, not partitions' owners or records. Called by worker/fold.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle, Tensors, initial_states
from keyfold.export.generation import Chooser, numbers_of
from keyfold.export.said import SaidEncoder
from keyfold.worker.model import Graph, Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.slots import Slots

# Symbols that one micro-batch may say: nothing else is done meanwhile, and each is a prediction.
MOST_SAID = 1 << 13
TOGETHER = 64  # events of one call

Numbers = NDArray[np.intp]


def most_events(bundle: Bundle) -> int:
    """Return how many events a micro-batch may have, of a bundle that need not generate."""
    generate = bundle.manifest.outputs.generate
    return sys.maxsize if generate is None else max(1, MOST_SAID // generate.most)


@dataclass(frozen=True, slots=True)
class _Read:
    """N events of as many keys that were read, each from the state before it."""

    y: NDArray[np.float32]  # (N,W) of its last symbol
    states: dict[str, NDArray[Any]]  # (N,*dims) behind it
    fine: NDArray[np.bool_]  # (N,) whether everything was finite


class Generation:
    """Reads and answers events over the slots."""

    def __init__(self, model: Model, slots: Slots, topic: str) -> None:
        bundle = model.bundle
        manifest = bundle.manifest
        generate, text = manifest.outputs.generate, manifest.outputs.target
        text = text or manifest.features.text
        if generate is None or text is None:
            raise RuntimeError("expected a bundle that generates, got another")
        self._model, self._slots, self._topic = model, slots, topic
        self._bundle = bundle
        self._most, self._max_steps = generate.most, manifest.max_steps
        self._chooser = Chooser(generate, manifest.outputs.names)
        self._encoder = SaidEncoder(manifest.outputs, text)
        self._decode = manifest.decode
        self._graph: Graph = model if model.decode is None else model.decode

    def apply(self, rows: Rows, lengths: NDArray[np.int64]) -> None:
        """Read and answer every row that has a slot: `lengths` (N,) steps each."""
        if rows.said is None:
            raise RuntimeError("expected room for what is said, got none")
        waiting = np.flatnonzero(rows.slots >= 0)
        while len(waiting):
            # Each key's next event: np.unique returns the first of each.
            places = np.sort(np.unique(rows.slots[waiting], return_index=True)[1])[:TOGETHER]
            events = waiting[places]
            waiting = np.delete(waiting, places)
            self._apply(events, rows, lengths)

    def _apply(self, events: Numbers, rows: Rows, lengths: NDArray[np.int64]) -> None:
        """Read and answer one event of each of some keys."""
        slots, mine = self._slots, rows.slots[events]
        read = self._read(events, rows, lengths)
        for event in events[~read.fine].tolist():
            rows.rejects[event] = NOT_FINITE
            rows.slots[event] = -1
        # Not a step, but a sign of life: silence is told from the log alone.
        slots.times_ms[mine] = rows.times_ms[events]
        slots.touched_ms[mine] = rows.stream_ms[events]
        at = np.flatnonzero(read.fine)
        events, mine = events[at], mine[at]
        states = {name: values[at] for name, values in read.states.items()}
        slots.scatter(mine, {name: states[name] for name in states if name in slots.tensors})
        slots.steps[mine] += np.uint64(1)
        slots.offsets[mine] = rows.offsets[events]
        rows.steps[events] = slots.steps[mine]
        if len(events):
            self._say(events, rows, (read.y[at], states))

    def _read(self, events: Numbers, rows: Rows, lengths: NDArray[np.int64]) -> _Read:
        """Step the symbols of events, from what their keys' slots hold or from nothing."""
        manifest, count = self._bundle.manifest, len(events)
        first, mine = (np.cumsum(lengths) - lengths)[events], lengths[events]
        states: dict[str, NDArray[Any]] = initial_states(manifest, count)
        if self._decode is None or not self._decode.anew:
            states = self._slots.gather(rows.slots[events])
        y, fine = np.zeros((count, manifest.width), np.float32), np.ones(count, np.bool_)
        for start in range(0, int(mine.max()), self._max_steps):
            active = np.flatnonzero(mine > start)
            some = np.minimum(mine[active] - start, self._max_steps).astype(np.int32)
            steps = np.arange(some.max())
            # Beyond a row's length stands a symbol of another event, or its own last one.
            places = first[active, None] + start + np.minimum(steps, some[:, None] - 1)
            out, after = self._model.step(
                rows.x[places], some, {name: values[active] for name, values in states.items()}
            )
            real = steps < some[:, None]
            fine[active] &= (np.isfinite(out).all(axis=-1) | ~real).all(axis=1)
            y[active] = out[np.arange(len(active)), some - 1]
            for name, values in after.items():
                states[name][active] = values
        for values in states.values():
            fine &= np.isfinite(values.reshape(count, -1)).all(axis=1)
        return _Read(y, states, fine)

    def _say(self, events: Numbers, rows: Rows, read: tuple[NDArray[np.float32], Tensors]) -> None:
        """Answer events that were read; fill in what is said."""
        y, states = read
        if self._decode is not None:
            states = self._decode.begun(states, len(events))
            y, states = self._next(np.full(len(events), self._decode.first), states)
        partitions = self._slots.partitions(rows.slots[events]).tolist()
        offsets = rows.offsets[events].tolist()
        numbers = np.stack(
            [
                numbers_of(self._bundle.id, f"{self._topic}:{partition}:{offset}", self._most)
                for partition, offset in zip(partitions, offsets, strict=True)
            ]
        )
        symbols = np.zeros((len(events), self._most), np.int64)
        chances = np.zeros((len(events), self._most), np.float32)
        counts, live = np.full(len(events), self._most), np.arange(len(events))
        for n in range(self._most):
            chosen, chances[live, n] = self._chooser.choose(y, numbers[live, n])
            symbols[live, n] = chosen
            goes_on = chosen != self._chooser.until
            counts[live[~goes_on]] = n + 1
            live = live[goes_on]
            if not len(live) or n + 1 == self._most:
                break
            states = {name: values[goes_on] for name, values in states.items()}
            y, states = self._next(chosen[goes_on], states)
        for place, event in enumerate(events.tolist()):
            some = slice(0, int(counts[place]))
            said = self._encoder.outputs(symbols[place, some].tolist(), chances[place, some])
            if rows.said is not None:
                rows.said[event] = said

    def _next(
        self, symbols: NDArray[np.int64], states: Tensors
    ) -> tuple[NDArray[np.float32], Tensors]:
        """Say one symbol each: what follows (B,O), and the branch's states behind it."""
        ones = np.ones(len(symbols), np.int32)
        y, after = self._graph.step(symbols.astype(np.float32)[:, None, None], ones, states)
        return y[:, 0], after
