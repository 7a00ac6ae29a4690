"""Whose reading a row is and when it was made: key, time, and the long format's two columns.

Owns the names and the tests that tell these columns from fields. Pure. What cannot be told is asked
for by naming the flag that says it. Called by roles.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.training.init.columns import FRACTION, TEXT, WHOLE, Column, InitError, Table
from keyfold.training.init.event_time import TimeColumn, as_counter, as_time, find_times

KEYS = (
    "key", "machine", "machine_id", "device", "device_id", "asset", "asset_id", "equipment", "unit",
    "unit_id", "engine", "engine_id", "serial", "serial_number", "node", "host", "station",
    "station_id", "turbine", "pump", "robot", "vehicle", "plant", "line", "maschine", "anlage",
    "geraet", "gerät", "source", "entity", "sensor_id", "meter", "meter_id", "channel", "id",
)  # fmt: skip
SENSORS = (
    "sensor", "sensor_name", "metric", "tag", "variable", "parameter", "signal", "measurement",
    "quantity", "name", "attribute", "item", "topic", "point", "channel", "messgroesse",
    "messgröße",
)  # fmt: skip
VALUES = ("value", "val", "reading", "measurement", "wert", "messwert", "data", "v")
COUNTERS = ("cycle", "cycles", "step", "index", "time", "t", "seq", "sequence", "elapsed", "tick")
LIKELY = 2.5  # score of a column that may be the key
MOST_LONG = 2  # columns of numbers beside key and time in the long format: a value, a quality


@dataclass(frozen=True, slots=True)
class Told:
    """What the person said by flags."""

    key: str | None = None  # the key's column; "": the file's name
    time: str | None = None  # the time's column; "": the order of the rows
    time_format: str = ""  # unit, "iso" or a strptime pattern
    time_zone: str = "UTC"  # of times that name none
    label: str = ""  # what is to be predicted; "": the next events
    sensor: str | None = None  # long format: the column with the sensor's name; "": not long


def plain(name: str) -> str:
    """Return a column's own name without case, spaces and dashes."""
    return name.rpartition(".")[2].strip().lower().replace(" ", "_").replace("-", "_")


def time_columns(table: Table, told: Told) -> tuple[TimeColumn | None, list[str]]:
    """Return the time column, and other columns that are times too."""
    columns = table.columns
    if told.time == "":
        return None, []
    if told.time:
        column = columns[told.time]
        found = as_time(column, told.time_zone, told.time_format)
        found = found or (None if told.time_format else as_counter(column))
        if found is None:
            example = repr(column.words[0]) if column.words else "numbers"
            raise InitError(
                f"--time {told.time}: expected times, got {example}; --time-format says how they "
                "are written: s, ms, us, ns, iso, or a pattern such as '%d.%m.%Y %H:%M'"
            )
        return found, []
    times = find_times(columns.values(), told.time_zone)
    _refuse_halves(table, times)
    if times and times[0].either:
        time = times[0]
        raise InitError(
            f"{table.files[0]}: {time.name}: {table.columns[time.name].words[0]!r} may be day or "
            f"month first, and the steps between times fit both; say --time {time.name} "
            f"--time-format {time.unit!r} or {time.either!r}"
        )
    return (times[0], [time.name for time in times[1:]]) if times else (None, [])


def _refuse_halves(table: Table, times: list[TimeColumn]) -> None:
    """Ask for one time where a date and a clock stand in two columns."""
    if not times or "%H" in times[0].unit or "%I" in times[0].unit:
        return
    whole_days = np.nanmax(np.abs(np.mod(times[0].times_ms, 1000.0 * 3600))) == 0
    clocks = [
        name
        for name, column in table.columns.items()
        if column.words and all(_is_clock(word) for word in column.words[:50])
    ]
    if whole_days and clocks:
        raise InitError(
            f"{table.files[0]}: expected the time in one column, got {times[0].name!r} and "
            f"{clocks[0]!r}; join them into one, or give --time"
        )


def _is_clock(word: str) -> bool:
    parts = word.replace(".", ":").split(":")
    return 2 <= len(parts) <= 3 and all(part.isdigit() and len(part) <= 2 for part in parts)


def counter_column(table: Table, told: Told, key: str) -> TimeColumn | None:
    """Return a column that counts up within every key, for want of a time."""
    if told.time == "":
        return None
    groups = groups_by(table, key)
    for name, column in table.columns.items():
        if plain(name) not in COUNTERS or column.missing or (found := as_counter(column)) is None:
            continue
        order = np.argsort(groups, kind="stable")
        steps, same = np.diff(found.times_ms[order]), np.diff(groups[order]) == 0
        if same.any() and (steps[same] > 0).mean() > 0.95:
            return found
    return None


def long_columns(table: Table, told: Told, time: TimeColumn | None) -> tuple[str, str]:
    """Return the sensor's and the value's column of the long format, or two empty names."""
    if told.sensor == "":
        return "", ""
    used = "" if time is None else time.name
    numeric = [
        name
        for name, column in table.columns.items()
        if name != used and column.share(WHOLE, FRACTION) >= 0.5 and plain(name) not in KEYS
        and column.distinct > 1
    ]  # fmt: skip
    values = [name for name in numeric if plain(name) in VALUES] or numeric
    # A table with several columns of numbers is a wide one, whatever they are called.
    if len(numeric) > MOST_LONG and not told.sensor:
        return "", ""
    values = values if len(numeric) == 1 or values != numeric else []
    if told.sensor:
        if not values:
            raise InitError(
                f"--sensor {told.sensor}: expected one column of values beside it, such as "
                f"'value', got {len(numeric)} columns of numbers"
            )
        return told.sensor, values[0]
    for name, column in table.columns.items():
        named = plain(name) in SENSORS and name not in (used, told.key, *values)
        if named and values and column.share(TEXT) > 0.99 and 2 <= column.distinct <= 500:
            return name, values[0]
    return "", ""


def key_column(
    table: Table, told: Told, time: TimeColumn | None, sensor: str
) -> tuple[str, str, list[str]]:
    """Return the key's column, or none for the file's name, what was seen, and other columns."""
    if told.key is not None:
        return told.key, "as told by --key" if told.key else "the file's name, as told by --key", []
    collisions = _collisions(table, time, [sensor] if sensor else [])
    best, best_score, why = "", 0.0, ""
    likely = list[str]()
    for name, column in table.columns.items():
        if name == sensor or (time is not None and name == time.name):
            continue
        score, said = _key_score(table, time, column, (collisions, sensor))
        if score >= LIKELY:
            likely.append(name)
        if score > best_score:
            best, best_score, why = name, score, said
    if best_score >= LIKELY:
        _refuse_half_keys(table, time, (best, sensor))
        return best, why, [name for name in likely if name != best]
    if collisions > 0.5 and len(table.files) == 1:
        raise InitError(
            f"{table.files[0]}: {collisions:.0%} of the rows share their time with another row, "
            "and no column says whose reading a row is; --key COLUMN names it "
            "(--key '' if all rows are one machine)"
        )
    return "", "no column names a machine: each file is one key, named as the file", []


def _refuse_half_keys(table: Table, time: TimeColumn | None, found: tuple[str, str]) -> None:
    """Ask for one key where two columns together say whose reading a row is."""
    names = [name for name in found if name]
    left = _collisions(table, time, names)
    if left < 0.2:
        return
    for name, column in table.columns.items():
        small = 1 < column.distinct <= max(50, table.rows // 20)
        if name in names or column.missing > 0.01 or not small or column.share(TEXT, WHOLE) < 0.99:
            continue
        if _collisions(table, time, [*names, name]) < left / 5:
            raise InitError(
                f"{table.files[0]}: expected the key in one column, got {name!r} and {found[0]!r}, "
                f"which only together tell rows of one time apart; join them into one column, or "
                f"give --key {found[0]}"
            )


def _key_score(
    table: Table, time: TimeColumn | None, column: Column, seen: tuple[float, str]
) -> tuple[float, str]:
    """Say how likely a column is the key, and why."""
    name = plain(column.name)
    if column.missing > 0.01 or column.share(TEXT, WHOLE) < 0.99 or name in VALUES:
        return 0.0, ""
    inner = f"{plain(column.name.rpartition('.')[0])}_{name}"  # machine.id: "machine_id"
    is_inner_id = name == "id" and inner in KEYS
    name = inner if is_inner_id else name
    named = name in KEYS
    if column.distinct > table.rows / 2 or (column.distinct == 1 and not named):
        return 0.0, ""
    score = 3.0 - 0.01 * KEYS.index(name) if named else 0.0
    score += 1.0 if name.endswith(("_id", "id", "_key", "_nr", "_no")) and not named else 0.0
    score += 0.5 if column.share(TEXT) > 0.99 or is_inner_id else 0.0
    said = f"{column.distinct:,} values, {table.rows / column.distinct:,.0f} rows each"
    collisions, sensor = seen
    if collisions > 0.02 and column.distinct > 1:
        left = _collisions(table, time, [column.name, *([sensor] if sensor else [])])
        if left < collisions / 5:
            score += 2.5
            said += "; a time is unique within each"
    return score, said


def _collisions(table: Table, time: TimeColumn | None, names: list[str]) -> float:
    """Return the share of rows that have the same time and the same values of these columns."""
    if time is None:
        return 0.0
    identity = np.unique(np.nan_to_num(time.times_ms, nan=-1.0), return_inverse=True)[1]
    columns: list[NDArray[Any]] = [table.file_of]
    columns += [table.columns[name].identity for name in names]
    for ids in columns:
        identity = identity * (int(ids.max()) + 2) + ids + 1
        identity = np.unique(identity, return_inverse=True)[1]
    return 1.0 - len(np.unique(identity)) / table.rows


def groups_by(table: Table, key: str) -> NDArray[Any]:
    """(N,) a number for each row's key."""
    return table.columns[key].identity if key else table.file_of.astype(np.int64)
