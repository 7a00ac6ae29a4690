"""Finds every event's slot: resets by tombstones and by silence, and the partition's stream time.

Owns the rules by which a key starts cold again. All are part of the fold, told from the log alone:
a tombstone, an event that ends its key's history (events.end_field; also one whose step fails), or
a silence longer than the bundle's reset_after_ms. Silence is measured twice, by the
key's own event times and by the partition's stream time (the running maximum of event times, none
taken as later than its record's timestamp); the second one lets the worker forget a silent key at
once, because its next event would reset it anyway. Called by worker/pipeline.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import MAX_KEY_BYTES, EventSpec, why_no_key
from keyfold.worker.share import Share
from keyfold.worker.slots import Slots, as_rows

NO_STREAM = int(np.iinfo(np.int64).min)  # stream time before the first event
Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """Where N records' events go; filled in share by share."""

    times_ms: Times  # (N,) event times
    timestamps_ms: Times  # (N,) the records' own
    rejects: dict[int, str]  # row -> why it is no event
    slots: NDArray[np.intp]  # (N,) each event's slot; -1: a reject or a tombstone
    stream_ms: Times  # (N,) stream time of its partition, the row included
    ends: NDArray[np.bool_] | None = None  # (N,) events that end their key's history; None: none

    @classmethod
    def of(
        cls,
        times_ms: Times,
        timestamps_ms: Times,
        rejects: dict[int, str],
        ends: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Begin with every row unplaced."""
        count = len(times_ms)
        empty, none = np.full(count, -1, np.intp), np.full(count, NO_STREAM, np.int64)
        return cls(times_ms, timestamps_ms, rejects, empty, none, ends)


@dataclass(frozen=True, slots=True)
class Left:
    """A slot that its key has left: it started anew in another one."""

    row: int  # of the record by which it did
    slot: int  # of the key until then; events before it still step in it


class Placement:
    """Places events of one bundle in slots."""

    def __init__(
        self, slots: Slots, events: EventSpec, most_key_bytes: int = MAX_KEY_BYTES
    ) -> None:
        self._slots, self._most_key_bytes = slots, most_key_bytes
        self._tombstones_reset = events.tombstone == "reset"
        self._reset_after_ms = events.reset_after_ms
        # Resets by silence in this micro-batch, in order: slot left, cold slot, end of lost range.
        self._silent: list[tuple[int, int, int]] = []

    def place(self, share: Share, places: Places) -> list[Left]:
        """Set the slots and stream times of a share's rows; complete its rejects.

        Every key with an event here has a slot already. Returns the slots that reset keys have
        left, in the order of the records: to be retired after the fold.
        """
        of = self._slots.of(share.number)
        found = share.found or share.records.find(of)
        places.slots[share.rows] = found.slots
        for row in found.unknown:  # to find those that were loaded since
            key = share.keys[row]
            why = why_no_key(key, self._most_key_bytes)
            if key is None or why is not None:
                places.rejects[share.first + row] = why or ""
            else:
                places.slots[share.first + row] = of.get(key, -1)
        tombstones = self._take_tombstones(share, places)
        no_event = [row for row in places.rejects if share.rows.start <= row < share.rows.stop]
        no_event += tombstones
        places.slots[no_event] = -1
        self._set_stream_time(share, places)
        without = np.count_nonzero(places.slots[share.rows] < 0) - len(no_event)
        if without:
            raise RuntimeError(
                f"{share.owner}: expected a slot for every event, got {without} less"
            )
        ends = places.ends is not None and places.ends[share.rows].any()
        if tombstones or ends or self._any_expired(share, places):
            return self._place_one_by_one(share, places)
        return []

    def settle_gaps(self) -> None:
        """Say, after the fold, which keys reset by silence may miss events that were lost.

        Those whose state was older than the lost range: it may hold others, and no silence.
        """
        slots = self._slots
        for left, cold, lost_upto in self._silent:
            # No steps: all of its events here were rejects, so nothing has changed for the key.
            old = not slots.steps[left] or slots.offsets[left] < lost_upto
            slots.gaps[cold] = slots.gaps[left] and old
        self._silent.clear()

    def _take_tombstones(self, share: Share, places: Places) -> list[int]:
        """Return the rows of tombstones that reset their key; they are no rejects."""
        if not self._tombstones_reset:
            return []
        rows = [
            row
            for row in places.rejects  # a null value is one, unless it is a tombstone
            if share.rows.start <= row < share.rows.stop
            and share.records[row - share.first].value is None
            and why_no_key(share.keys[row - share.first], self._most_key_bytes) is None
        ]
        for row in rows:
            del places.rejects[row]
        return rows

    def _set_stream_time(self, share: Share, places: Places) -> None:
        rows = share.rows
        before = share.owner.partition.stream_ms
        own = np.minimum(places.times_ms[rows], places.timestamps_ms[rows])
        own = np.where(places.slots[rows] >= 0, own, NO_STREAM)
        if before is not None and len(own):
            own[0] = max(int(own[0]), before)
        np.maximum.accumulate(own, out=places.stream_ms[rows])

    def _any_expired(self, share: Share, places: Places) -> bool:
        """Say whether any event of a share finds its key silent for too long."""
        after_ms = self._reset_after_ms
        if after_ms is None:
            return False
        slots = places.slots[share.rows]
        order = np.argsort(slots, kind="stable")
        order = order[np.searchsorted(slots[order], 0) :]  # events only
        at = slots[order]
        times, stream = places.times_ms[share.rows][order], places.stream_ms[share.rows][order]
        last_time, touched = self._slots.times_ms[at], self._slots.touched_ms[at]
        alive = self._slots.steps[at] > 0
        again = np.flatnonzero(at[1:] == at[:-1]) + 1  # not the key's first event here
        last_time[again], touched[again] = times[again - 1], stream[again - 1]
        alive[again] = True
        silent = _is_longer(last_time, times, after_ms) | _is_longer(touched, stream, after_ms)
        return bool((alive & silent).any())

    def _place_one_by_one(self, share: Share, places: Places) -> list[Left]:
        """Give a reset key another, cold slot; its events before the reset keep the old one."""
        left: list[Left] = []
        of = self._slots.of(share.number)
        lives: dict[bytes, tuple[int, int] | None] = {}  # last event's time and stream time
        for row, key in enumerate(share.keys, share.first):
            if key is None or row in places.rejects:
                continue
            if places.slots[row] < 0:  # a tombstone
                left.append(Left(row, self._start_cold(share, row, gap=False)))
                lives[key] = None
                continue
            slot = of[key]
            if key not in lives:
                alive = bool(self._slots.steps[slot])
                lives[key] = (
                    (int(self._slots.times_ms[slot]), int(self._slots.touched_ms[slot]))
                    if alive
                    else None
                )
            now = int(places.times_ms[row]), int(places.stream_ms[row])
            if self._is_silent(lives[key], now):
                left.append(Left(row, self._start_cold(share, row, gap=False)))
                self._silent.append((left[-1].slot, of[key], share.owner.partition.lost_upto))
            places.slots[row], lives[key] = of[key], now
            if places.ends is not None and places.ends[row]:
                left.append(Left(row, self._start_cold(share, row, gap=False)))
                lives[key] = None
        return left

    def _is_silent(self, last: tuple[int, int] | None, now: tuple[int, int]) -> bool:
        after_ms = self._reset_after_ms
        if last is None or after_ms is None:
            return False
        return now[0] - last[0] > after_ms or now[1] - last[1] > after_ms

    def _start_cold(self, share: Share, row: int, *, gap: bool) -> int:
        """Give a row's key a cold slot; return the one it leaves."""
        slots, number, record = self._slots, share.number, share.records[row - share.first]
        key = record.key or b""
        left = slots.of(number)[key]
        cold = slots.add(number, key)
        slots.gaps[cold], slots.offsets[cold] = gap, record.offset
        # Marked: the save has to clear the key's old state in Redis even if no event follows.
        slots.mark(number, as_rows([cold]), share.records[-1].offset + 1)
        return left


def _is_longer(since: Times, until: Times, limit_ms: int) -> NDArray[np.bool_]:
    """Say where more than limit_ms lie between two times (N,), however far apart they are.

    A record's timestamp may be any int64, so that a difference may need one bit more.
    """
    between = until.view(np.uint64) - since.view(np.uint64)
    return np.asarray((until > since) & (between > limit_ms))
