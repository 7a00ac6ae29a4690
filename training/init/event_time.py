"""Which of an unknown log's columns is the event time, and how it is written.

Owns the formats that are tried and the reasons that a person reads. It knows columns, not roles of
other columns, nor files. Called by roles.py and key.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from keyfold.training.init.columns import FRACTION, MISSING, TEXT, WHOLE, Column

# A number is a time since 1970 if it lies in 1985 to 2128, counted in this unit.
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
EARLIEST_S, LATEST_S = 5e8, 5e9
DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y",
    "%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%b-%Y", "%d %b %Y", "%b %d %Y", "%Y%m%d",
)  # fmt: skip
CLOCKS = (
    "%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%H:%M:%S,%f", "%I:%M:%S %p", "%I:%M %p", "%H.%M.%S",
    "%H%M%S",
)  # fmt: skip
ZONES = ("", "%z", " %z")
FITS = 0.98  # of a column's values must be times
SAMPLE = 300
LEAST_DIGITS = 5  # of the shortest date, 1/2/2024 without its clock
NAMES = (
    "timestamp",
    "time",
    "datetime",
    "ts",
    "date",
    "event_time",
    "zeit",
    "zeitstempel",
    "datum",
)
EVENTS = (
    "measur",
    "event",
    "creat",
    "timestamp",
    "record",
    "sampl",
    "observ",
    "gemessen",
    "messzeit",
)
ARRIVALS = (
    "receiv", "ingest", "process", "arriv", "insert", "stored", "upload", "updated", "modified",
    "empfang", "eingang",
)  # fmt: skip
ALIKE = 0.8  # of two readings of a date, one is steadier if its steps differ less than this


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """A column that can be read as a time."""

    name: str  # the column
    unit: str  # as data.time_unit says it: "ms", ..., "iso", or a strptime pattern
    zoned: bool  # the values say their own zone, or count from 1970 UTC
    times_ms: NDArray[np.float64]  # (N,) UTC epoch ms; NaN where it is none
    said: str  # what was seen, for people
    counts: bool = False  # a counter or seconds since a start: no calendar
    either: str = ""  # the pattern that fits as well, with day and month the other way round


def find_times(columns: Iterable[Column], zone: str) -> list[TimeColumn]:
    """Return the columns that are times, the likeliest first."""
    found = [time for column in columns if (time := as_time(column, zone)) is not None]
    varied = [time for time in found if np.nanmax(time.times_ms) > np.nanmin(time.times_ms)]
    finest = max((_distinct(time.times_ms) for time in varied), default=0)

    def place(time: TimeColumn) -> tuple[int, bool, float, int, int]:
        distinct = _distinct(time.times_ms)
        kind, among = _rank(time.name)
        # A date without its clock is as regular as can be, and tells no events apart.
        return kind, 10 * distinct < finest, round(unsteady(time.times_ms), 2), among, -distinct

    return sorted(varied, key=place)


def unsteady(times_ms: NDArray[np.float64]) -> float:
    """Return how much the steps between distinct times differ, in units of their mean."""
    steps = np.diff(np.unique(times_ms[~np.isnan(times_ms)]))
    return float(steps.std() / steps.mean()) if len(steps) else 0.0


def as_time(column: Column, zone: str, pattern: str = "") -> TimeColumn | None:
    """Read a column as times, by a given form or the first that fits; None: it is not."""
    if column.share(WHOLE, FRACTION) >= FITS and "%" not in pattern:
        return _as_number(column, pattern)
    if column.share(TEXT) >= FITS:
        return _as_text(column, zone, pattern)
    return None


def as_counter(column: Column) -> TimeColumn | None:
    """Read a column of growing numbers as seconds since some start."""
    if column.share(WHOLE, FRACTION) < FITS or column.distinct < 3:
        return None
    unit, what = ("ms", "ms") if column.name.lower().endswith("ms") else ("s", "seconds")
    times = column.numbers * (1000.0 if unit == "s" else 1.0)
    said = f"numbers from {np.nanmin(column.numbers):g} to {np.nanmax(column.numbers):g}, "
    return TimeColumn(column.name, unit, True, times, f"{said}read as {what} from a start", True)


def _rank(name: str) -> tuple[int, int]:
    """Say how likely a name is that of the event's time (lowest: likeliest), and which it is."""
    plain = name.rpartition(".")[2].lower().strip().replace(" ", "_")
    if any(word in plain for word in ARRIVALS):
        return 3, 0
    if plain in NAMES or any(word in plain for word in EVENTS):
        return 0, NAMES.index(plain) if plain in NAMES else len(NAMES)
    return 2 - any(word in plain for word in NAMES), 0


def _distinct(times_ms: NDArray[np.float64]) -> int:
    return len(np.unique(times_ms[~np.isnan(times_ms)]))


def _as_number(column: Column, unit: str) -> TimeColumn | None:
    numbers = column.numbers[~np.isnan(column.numbers)]
    for name, per_second in UNITS.items():
        seconds = numbers / per_second
        good = (seconds >= EARLIEST_S) & (seconds < LATEST_S)
        if (not unit and good.mean() >= FITS) or name == unit:
            times = column.numbers / per_second * 1000.0
            return TimeColumn(column.name, name, True, times, f"numbers: {name} since 1970")
    return None


def _as_text(column: Column, zone: str, pattern: str) -> TimeColumn | None:
    words = column.words
    step = max(1, len(words) // SAMPLE)
    sample = words[::step]
    if not pattern and sum(map(_may_be_time, sample)) < FITS * len(sample):
        return None
    candidates: list[str] = [pattern] if pattern else ["iso", *_patterns()]
    for candidate in candidates:
        read = _reader(candidate, zone)
        if read(sample[0]) is None and read(sample[-1]) is None:
            continue
        if sum(read(word) is not None for word in sample) < FITS * len(sample):
            continue
        # The sample may not hold what tells day from month: all words must fit.
        times = _all(column, read)
        if times is None:
            continue
        zoned = candidate.endswith("%z") or (candidate == "iso" and _has_zone(sample[0]))
        said = "ISO 8601" if candidate == "iso" else f"text like {sample[0]!r}"
        found = TimeColumn(column.name, candidate, zoned, times, said)
        return found if pattern else _day_or_month(found, column, zone)
    return None


def _all(column: Column, read: Callable[[str], float | None]) -> NDArray[np.float64] | None:
    """Return every row's time in ms; None: too many words are none."""
    moments = np.array([np.nan if (m := read(word)) is None else m for word in column.words])
    if np.isnan(moments).mean() > 1 - FITS:
        return None
    times = np.full(len(column.codes), np.nan)
    has = (column.kinds != MISSING) & (column.codes >= 0)
    times[has] = moments[column.codes[has]]
    return times


def _day_or_month(found: TimeColumn, column: Column, zone: str) -> TimeColumn:
    """Where no value tells the day from the month, take the reading with the steadier steps."""
    if not found.unit.startswith(("%d/%m", "%d-%m")):
        return found  # with points between, the day is always first
    other = found.unit.replace("%d", "%x").replace("%m", "%d").replace("%x", "%m")
    read = _reader(other, zone)
    times = None if any(read(word) is None for word in column.words) else _all(column, read)
    if times is None:
        return found
    day_first, month_first = unsteady(found.times_ms) + 1e-3, unsteady(times) + 1e-3
    if day_first < ALIKE * month_first:
        return replace(found, said=f"{found.said}, day first (steadier steps)")
    if month_first < ALIKE * day_first:
        said = f"{found.said}, month first (steadier steps)"
        return replace(found, unit=other, times_ms=times, said=said)
    return replace(found, either=other)


def _may_be_time(word: str) -> bool:
    return len(word) <= 40 and sum(map(str.isdigit, word)) >= LEAST_DIGITS


def _patterns() -> Iterable[str]:
    for date in DATES:
        for joint in (" ", "T", ", "):
            for clock in CLOCKS:
                for zone in ZONES:
                    yield f"{date}{joint}{clock}{zone}"
    yield from DATES


def _reader(pattern: str, zone: str) -> Callable[[str], float | None]:
    local = UTC if zone == "UTC" else ZoneInfo(zone)

    def read(word: str) -> float | None:
        try:
            if pattern == "iso":
                moment = datetime.fromisoformat(word)
            else:
                moment = datetime.strptime(word, pattern)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=local)
        return moment.timestamp() * 1000.0

    return read


def _has_zone(word: str) -> bool:
    return datetime.fromisoformat(word).tzinfo is not None
