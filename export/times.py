"""Event times: numbers in a unit, ISO 8601, or a pattern; all become UTC epoch ms.

Owns the conversion and what a time may be. Knows no records. Called by decode.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Reject

# Beyond this an epoch in ms is no date (ECMAScript's limit) and float64 stops being exact.
MAX_TIME_MS = 8.64e15
OUT_OF_RANGE = "the event time is out of range"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# A unit's number is multiplied, then divided: both exact for whole numbers of any real date.
_FACTORS = {"ms": (1.0, 1.0), "s": (1000.0, 1.0), "us": (1.0, 1e3), "ns": (1.0, 1e6)}


def from_numbers(times: NDArray[np.float64], unit: str) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Turn times (N,) in `unit` since 1970-01-01 UTC into ms (N,); by row: why it is none."""
    factor, divisor = _FACTORS[unit]
    late = ~(np.abs(times) <= MAX_TIME_MS / factor * divisor)
    times = np.where(late, 0.0, times) * factor / divisor
    rejects = {int(row): OUT_OF_RANGE for row in np.flatnonzero(late)} if late.any() else {}
    return np.rint(times).astype(np.int64), rejects


def text_reader(unit: str, zone: str) -> Callable[[Any], int]:
    """Return the function that reads a time as text as ms; it raises Reject without the text.

    A time that names no zone is in `zone`. Of an hour that a zone has twice it is the first one.
    """
    away: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
    iso = unit == "iso"
    expected = "a time in ISO 8601" if iso else f"a time such as the pattern {unit!r} says"
    read = datetime.fromisoformat if iso else lambda text: datetime.strptime(text, unit)

    def milliseconds(text: Any) -> int:
        if not isinstance(text, str):
            raise Reject(f"expected {expected}, got no text")
        try:
            moment = read(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=away)
            since = moment - _EPOCH
        except (ValueError, OverflowError) as error:
            raise Reject(f"expected {expected}, got another text") from error
        return round(since / _MS)

    return milliseconds
