"""The in-memory array of resident states: slots, found by (partition, key).

Owns where a key's tensors are while its partition runs here, and which of them changed since the
last save. A slot belongs to one partition and is dropped when the partition leaves RUN. It must not
know Kafka or Redis; rows go in and out as arrays. Called by the pipeline and worker/owner.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Manifest, StateSpec, Tensors
from keyfold.worker.state_codec import States

_FIRST_CAPACITY = 1024
Rows = NDArray[np.intp]  # slot numbers


class Slots:
    """States of the resident keys of all partitions of this worker."""

    def __init__(self, manifest: Manifest, more: Sequence[StateSpec] = ()) -> None:
        """Begin without keys; `more`: tensors besides the bundle's (worker/emission.py)."""
        self._specs = (*manifest.kept, *more)
        capacity = _FIRST_CAPACITY
        self.tensors: dict[str, NDArray[Any]] = {
            s.input: np.empty((capacity, *s.dims), s.dtype) for s in self._specs
        }
        self.steps = np.zeros(capacity, np.uint64)
        self.offsets = np.full(capacity, -1, np.int64)
        self.times_ms = np.zeros(capacity, np.int64)
        self.touched_ms = np.zeros(capacity, np.int64)
        self.gaps = np.zeros(capacity, np.bool_)
        self._marked_upto = np.zeros(capacity, np.int64)  # end of the last change's micro-batch
        self._used_at = np.zeros(capacity, np.int64)  # number of the micro-batch that used it last
        self._changed = np.zeros(capacity, np.bool_)  # since the last snapshot of its partition
        self.keys: list[bytes] = [b""] * capacity
        self._free = array("q", range(capacity - 1, -1, -1))
        self._partitions = np.full(capacity, -1, np.int64)  # of each slot; -1: free
        self._of: dict[int, dict[bytes, int]] = {}  # partition -> key -> slot
        self._touched: dict[int, list[Rows]] = {}  # partition -> slots marked, with repetitions
        self._clock = 0  # micro-batches so far

    def __len__(self) -> int:
        return sum(len(of) for of in self._of.values())

    def of(self, partition: int) -> dict[bytes, int]:
        """Return the partition's key -> slot map (the caller may read it, not write)."""
        return self._of.setdefault(partition, {})

    def all(self) -> Iterator[int]:
        """Yield the slots of all resident keys."""
        for of in self._of.values():
            yield from of.values()

    def add(self, partition: int, key: bytes) -> int:
        """Give a key a cold slot; a key that has one already gets another (it was reset)."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        for spec in self._specs:
            self.tensors[spec.input][slot] = spec.initial
        self.steps[slot], self.offsets[slot], self.times_ms[slot] = 0, -1, 0
        self.touched_ms[slot], self.gaps[slot] = 0, False
        self._changed[slot], self._marked_upto[slot] = False, 0
        self._used_at[slot] = self._clock
        self._partitions[slot] = partition
        self.keys[slot] = key
        self.of(partition)[key] = slot
        return slot

    def fill(self, rows: Rows, states: States) -> None:
        """Set the states of slots just added."""
        for name, values in states.tensors.items():
            self.tensors[name][rows] = values
        self.steps[rows], self.offsets[rows] = states.steps, states.offsets
        self.times_ms[rows], self.touched_ms[rows] = states.times_ms, states.touched_ms
        self.gaps[rows] = states.gaps

    def partitions(self, rows: Rows) -> NDArray[np.int64]:
        """Return whose partitions' keys are in slots (B,)."""
        found: NDArray[np.int64] = self._partitions[rows]
        return found

    def gather(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Copy the tensors of slots (B,) out: name -> (B, *dims)."""
        return {name: values.take(rows, axis=0) for name, values in self.tensors.items()}

    def scatter(self, rows: Rows, tensors: Tensors) -> None:
        """Write the tensors of slots (B,) back."""
        for name, values in tensors.items():
            self.tensors[name][rows] = values

    def mark(self, partition: int, rows: Rows, upto: int) -> None:
        """Note that these slots changed in the current micro-batch, which ends before `upto`."""
        self._changed[rows] = True
        self._marked_upto[rows] = upto
        self._used_at[rows] = self._clock
        self._touched.setdefault(partition, []).append(rows)

    def tick(self) -> None:
        """Begin the next micro-batch."""
        self._clock += 1

    def changed(self, partition: int) -> Rows:
        """Return the partition's slots that changed since its last snapshot."""
        touched = self._touched.get(partition)
        if not touched:
            return np.empty(0, np.intp)
        rows = np.unique(np.concatenate(touched))
        # A slot may have been freed since, and given to another partition's key.
        still: Rows = rows[self._changed[rows] & (self._partitions[rows] == partition)]
        return still

    def snapshot(self, partition: int, rows: Rows) -> States:
        """Copy the states of changed(partition) for a save; they count as unchanged from here."""
        self._changed[rows] = False
        self._touched.pop(partition, None)
        return States(
            self.steps[rows], self.offsets[rows], self.times_ms[rows], self.touched_ms[rows],
            self.gaps[rows], self.gather(rows),
        )  # fmt: skip

    def retire(self, slot: int) -> None:
        """Free a slot that its key has left (the key was reset to another one)."""
        self._release(slot)

    def drop(self, partition: int) -> None:
        """Forget every key of a partition; nothing of it may outlive RUN."""
        self._touched.pop(partition, None)
        for slot in self._of.pop(partition, {}).values():
            self._release(slot)

    def evict(self, most: int, watermarks: dict[int, int]) -> int:
        """Drop the least recently used slots above `most`, if Redis has their state.

        `watermarks` holds each partition's W: a slot that changed only below it is saved.
        Returns how many were dropped.
        """
        excess = len(self) - most
        if excess <= 0:
            return 0
        # [-1]: free slots. A partition just revoked has no watermark: its slots are not touched.
        saved_below = np.full(int(self._partitions.max(initial=0)) + 2, -1, np.int64)
        for partition, watermark in watermarks.items():
            if partition < len(saved_below) - 1:
                saved_below[partition] = watermark
        idle = np.flatnonzero(
            ~self._changed
            & (self._used_at < self._clock)
            & (self._marked_upto <= saved_below[self._partitions])
        )
        # A little more than asked for, so that not every micro-batch has to look again.
        wanted = min(len(idle), excess + most // 16)
        oldest = idle[np.argsort(self._used_at[idle], kind="stable")[:wanted]]
        for slot in oldest.tolist():
            del self._of[int(self._partitions[slot])][self.keys[slot]]
            self._release(slot)
        return wanted

    def _release(self, slot: int) -> None:
        self.keys[slot] = b""
        self._changed[slot] = False
        self._partitions[slot] = -1
        self._free.append(slot)

    def _grow(self) -> None:
        before = len(self.keys)
        for name, values in self.tensors.items():
            self.tensors[name] = _doubled(values)
        columns = ("steps", "offsets", "times_ms", "touched_ms", "gaps", "_marked_upto")
        for name in (*columns, "_used_at", "_changed"):
            setattr(self, name, _doubled(getattr(self, name)))
        self._partitions = np.concatenate([self._partitions, np.full(before, -1, np.int64)])
        self.keys += [b""] * before
        self._free.extend(range(2 * before - 1, before - 1, -1))


def as_rows(slots: Sequence[int]) -> Rows:
    """Turn slot numbers into an index array."""
    return np.array(slots, np.intp)


def _doubled(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array of twice the rows, the further ones zero: memory that nobody has touched."""
    grown = np.zeros((2 * len(values), *values.shape[1:]), values.dtype)
    grown[: len(values)] = values
    return grown
