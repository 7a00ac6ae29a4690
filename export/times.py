"""Event times: numbers in a unit, ISO 8601, or a pattern; all become UTC epoch ms.

Owns the conversion, what a time may be, and what becomes of an hour that a zone has twice. Knows no
records. Called by decode, and by training, which sorts.
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


def unfolded(times_ms: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return the times (N,) of one key, in log order, by which to sort them.

    They were texts without a zone. Where they step back within an hour that the zone has twice,
    the hour's second pass has begun: it comes after the first one, whose times it repeats.
    """
    order = times_ms.copy()
    if zone == "UTC":
        return order
    for step in np.flatnonzero(np.diff(times_ms) < 0).tolist():
        if order[step + 1] != times_ms[step + 1]:
            continue  # the second pass has begun before
        begin, end = _doubled(int(times_ms[step + 1]), ZoneInfo(zone))
        if times_ms[step] >= end:
            continue
        rest = times_ms[step + 1 :]
        outside = (rest < begin) | (rest >= end)
        count = int(np.argmax(outside)) if outside.any() else len(rest)
        order[step + 1 : step + 1 + count] = rest[:count] + (end - begin)
    return order


def _doubled(time_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Return begin and end of the first pass of the doubled hour a time is in, alike: none."""

    def moment(ms: int) -> datetime:
        return (_EPOCH + timedelta(milliseconds=ms)).astimezone(zone)

    def offset_ms(at: datetime) -> int:
        return round((at.utcoffset() or timedelta(0)) / _MS)

    try:
        first = moment(time_ms)
        here = offset_ms(first)
        length = here - offset_ms(first.replace(fold=1))
        low, high = time_ms, time_ms + length  # the clocks go back between the two
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset_ms(moment(middle)) == here else (low, middle)
    except OverflowError:
        return 0, 0
    return high - length, high
