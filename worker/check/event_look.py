"""What is odd about a topic's events though none is a reject: their times, and what they lack.

Owns the counts and their words. It reads through the decoder that the worker has and keeps no
events. Called by worker/first_day/dry_run.py; the range of times also by records.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Manifest
from keyfold.export.events import Decoder
from keyfold.export.features import Field
from keyfold.worker.kafka.samples import Sample

MANY = 0.5  # of the events: what so many lack is a fault of the settings or of the sender
MOST_FIELDS = 12  # told of
PLAUSIBLE_MS = 631_152_000_000  # 1990: who has older events only, has read them in a wrong unit


class EventLook:
    """Counts over the samples of one topic."""

    def __init__(self, manifest: Manifest, topic: str) -> None:
        self._manifest, self._topic = manifest, topic
        self._decode = Decoder(manifest.events, manifest.features).decode
        self._latest: dict[bytes, int] = {}  # event time by key
        self._first_back = ""  # place of the first event that goes back
        self._events = self._back = 0
        self._ends: list[int] = []  # the least and the largest event time of each sample
        self._sums = np.zeros(len(manifest.features.fields), np.int64)  # missing, by field
        self._unknown = self._sums.copy()  # values that the model never saw, by field

    def add(self, sample: Sample) -> None:
        """Take the records of a partition."""
        resets = self._manifest.events.tombstone == "reset"
        records: list[Any] = [
            r for r in sample.records if r.key is not None and not (resets and r.value is None)
        ]
        if not records:
            return
        decoded = self._decode([r.value for r in records], [r.timestamp for r in records])
        good = [row for row in range(len(records)) if row not in decoded.rejects]
        if not good:
            return
        self._events += len(good)
        times_ms = decoded.times_ms[good]
        self._ends += [int(times_ms.min()), int(times_ms.max())]
        if decoded.lengths is None:  # of a text nothing can be missing
            self._note_values(decoded.x[good])
        for row, now_ms in zip(good, times_ms.tolist(), strict=True):
            key = records[row].key
            if now_ms < self._latest.get(key, now_ms):
                self._back += 1
                place = f"{self._topic}:{sample.partition}:{records[row].offset}"
                self._first_back = self._first_back or place
            else:
                self._latest[key] = now_ms

    def _note_values(self, x: NDArray[np.float32]) -> None:
        at = 0
        for number, field in enumerate(self._manifest.features.fields):
            columns = x[:, at : at + len(field.columns)]
            at += len(field.columns)
            missing = np.zeros(len(x), np.bool_)
            if field.missing != "error":
                missing = columns[:, -1] != 0
            self._sums[number] += missing.sum()
            if field.kind == "category":
                values = columns[:, : len(field.values)]
                self._unknown[number] += (~values.any(axis=1) & ~missing).sum()

    def findings(self) -> Iterator[tuple[bool, str]]:
        """Say what was found, each in a line, and whether it is a warning."""
        if not self._events:
            return
        timed = self._manifest.events.time_field is not None
        said = time_range(self._ends, "event times" if timed else "times of the records")
        odd = max(self._ends) < PLAUSIBLE_MS
        unit = f"; are they in {self._manifest.events.time_unit!r}, the bundle's events.time_unit?"
        yield odd, said + (unit if odd and timed else "")
        if timed and self._back:
            said = f"{self._back:,} of {self._events:,} events go back in time within their key"
            order = "a history is folded in the order of the topic"
            yield True, f"{said} (first at {self._first_back}): {order}"
        # With one sensor in each event, the other ones are missing by design.
        if self._manifest.features.long is None:
            yield from self._told(self._sums, _lacking)
        yield from self._told(self._unknown, _never_seen)

    def _told(self, counts: NDArray[np.int64], text: Any) -> Iterator[tuple[bool, str]]:
        fields: Sequence[Field] = self._manifest.features.fields
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda n: -int(counts[n]))
        for number in order[:MOST_FIELDS]:
            share = int(counts[number]) / self._events
            said = f"{counts[number]:,} of {self._events:,} events ({share:.0%})"
            yield share > MANY, text(fields[number], said)
        if len(order) > MOST_FIELDS:
            yield False, f"and {len(order) - MOST_FIELDS} further fields"


def _lacking(field: Field, said: str) -> str:
    instead = "no value" if field.kind == "category" else f"{field.fill:g}"
    if field.missing == "last":
        instead = "the key's last value"
    return f"field {field.name!r} is missing in {said}; {instead} stands in"


def _never_seen(field: Field, said: str) -> str:
    return f"field {field.name!r} has a value that the model never saw in {said}"


def time_range(times_ms: Sequence[int] | NDArray[np.int64], what: str = "event times") -> str:
    """Say from when to when times are; a wrong unit shows here."""
    return f"{what}: {_iso(int(min(times_ms)))} .. {_iso(int(max(times_ms)))}"


def _iso(time_ms: int) -> str:
    try:
        moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"  # no year that a calendar has
    return moment.isoformat().replace("+00:00", "Z")
