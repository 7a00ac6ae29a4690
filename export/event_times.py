"""Event times as members of any kind of event, or the records' own timestamps.

Owns which member is read for the time, and why a record has none. What a number or a text means as
a time is times.py's. Called by decode.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import Rejects, as_number
from keyfold.export.errors import Reject
from keyfold.export.event_spec import NUMERIC_UNITS, EventSpec
from keyfold.export.members import NUMBER, SCALAR
from keyfold.export.times import MAX_TIME_MS, from_numbers, text_reader

NO_TIME = "the record's timestamp, its event time, is out of range"


class EventTimes:
    """Reads the event times of one event spec."""

    def __init__(self, events: EventSpec) -> None:
        self._events = events
        numeric = events.time_unit in NUMERIC_UNITS
        self._read_time = None if numeric else text_reader(events.time_unit, events.time_zone)

    def add_to(self, paths: dict[str, Any]) -> None:
        """Add the time's member to those that are read, if there is one."""
        name = self._events.time_field
        if name is not None and self._read_time is None:
            paths.setdefault(name, NUMBER)
        elif name is not None:
            paths[name] = SCALAR

    def read(
        self,
        members: Sequence[Sequence[Any]],
        places: Mapping[str, int],
        timestamps_ms: Sequence[int] | NDArray[np.int64],
        rejects: Rejects,
    ) -> NDArray[np.int64]:
        """Return the N times, UTC epoch ms; `places`: where a member's values are."""
        if self._events.time_field is None:
            times_ms, late = of_records(timestamps_ms)
            for row, reason in late.items():
                rejects.note(row, reason)
            return times_ms
        return self._of(members[places[self._events.time_field]], rejects)

    def _of(self, column: Sequence[Any], rejects: Rejects) -> NDArray[np.int64]:
        name, read = self._events.time_field, self._read_time or as_number
        times: NDArray[Any]
        if self._read_time is None and set(map(type, column)) <= {float}:
            times = np.array(column, np.float64)
        else:
            times = np.zeros(len(column), np.float64 if self._read_time is None else np.int64)
            for row, value in enumerate(column):
                try:
                    if value is None:
                        raise Reject("expected an event time, got none")
                    times[row] = read(value)
                except Reject as reject:
                    rejects.note(row, f"field {name!r}: {reject}")
        if self._read_time is not None:
            return times
        times_ms, late = from_numbers(times, self._events.time_unit)
        for row, reason in late.items():
            rejects.note(row, reason)
        return times_ms


def of_records(
    timestamps_ms: Sequence[int] | NDArray[np.int64],
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the records' own timestamps (N,) as event times; by row: why it is none.

    A producer may have written any number there. Beyond what an event time may be, the difference
    of two would be no int64.
    """
    times_ms, most = np.asarray(timestamps_ms, np.int64), int(MAX_TIME_MS)
    late = (times_ms < -most) | (times_ms > most)
    if not late.any():
        return times_ms, {}
    return np.where(late, 0, times_ms), {int(row): NO_TIME for row in np.flatnonzero(late)}
