"""What the columns of an unknown log are: features of which kind, or nothing, and why.

Owns the rules for fields, and for each choice the reason that training.toml shows. Pure: a table
in, findings out, the same every time. Called by cli.py; time and key are key.py's, how often and
how steadily events come is rhythm.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.training.init.columns import (
    BOOLEAN,
    FRACTION,
    MISSING,
    OTHER,
    TEXT,
    WHOLE,
    Column,
    InitError,
    Table,
)
from keyfold.training.init.event_time import TimeColumn
from keyfold.training.init.key import (
    Told,
    counter_column,
    groups_by,
    key_column,
    long_columns,
    plain,
    time_columns,
)

LABELS = (
    "label", "target", "class", "rul", "fault", "failure", "failed", "anomaly", "is_anomaly",
    "outlier", "ttf", "broken", "machine_status", "ground_truth",
)  # fmt: skip
TRUTHS = {"true", "false"}  # words that a boolean field reads
MOST_CATEGORIES = 50  # values of a category; more is free text
MOST_MISSING = 0.95  # of a feature
NUMBER_SHARE = 0.9  # of a number field's cells; the others are words
FREE = "free text"
WRITTEN = "numbers written as text"
THOUSANDS = re.compile(  # "1.234,5", "1,234.5", "1 234,5"
    r"[-+]?\d{1,3}(?:(?:\.\d{3})+(?:,\d+)?|(?:,\d{3})+(?:\.\d+)?"
    r"|(?:[ '\u00a0\u202f]\d{3})+(?:[.,]\d+)?)"
)
SENTINELS = (-99, -999, -9999, -99999, -999999, 99, 999, 9999, 99999, 999999)


@dataclass(slots=True)
class Roles:
    """Which column is what, and why."""

    key: str  # "" : the file's name
    key_why: str  # what was seen
    time: TimeColumn | None  # None: the order of the rows
    sensor: str = ""  # long format: column with the sensor's name
    value: str = ""  # long format: column with the value
    numbers: dict[str, str] = field(default_factory=dict)  # feature -> what was seen
    booleans: dict[str, str] = field(default_factory=dict)  # likewise
    categories: dict[str, str] = field(default_factory=dict)  # likewise
    gaps: dict[str, float] = field(default_factory=dict)  # feature -> share of missing values
    steady: list[str] = field(default_factory=list)  # numbers that never change within a key
    flags: list[str] = field(default_factory=list)  # numbers that are only 0 and 1
    sentinels: dict[str, str] = field(default_factory=dict)  # number -> "-999 (24 times)"
    words: list[str] = field(default_factory=list)  # words that stand where numbers should
    left_out: dict[str, str] = field(default_factory=dict)  # column -> why
    other_times: list[str] = field(default_factory=list)  # those of them that could be the time
    other_keys: list[str] = field(default_factory=list)  # columns that could be the key

    @property
    def features(self) -> list[str]:
        """Names of all features, numbers first."""
        return [*self.numbers, *self.booleans, *self.categories]


def find_roles(table: Table, told: Told) -> Roles:
    """Tell every column's role. Raises InitError with the flag that would help."""
    columns = dict(table.columns)
    for flag, name in (("--key", told.key), ("--time", told.time), ("--label", told.label),
                       ("--sensor", told.sensor)):  # fmt: skip
        if name and name not in columns:
            shown = ", ".join(list(columns)[:20])
            raise InitError(f"{flag} {name}: expected a column of {table.files[0]}: {shown}")
    time, others = time_columns(table, told)
    sensor, value = long_columns(table, told, time)
    key, why, other_keys = key_column(table, told, time, sensor)
    time = time or counter_column(table, told, key)
    roles = Roles(key, why, time, sensor, value, other_keys=other_keys)
    taken = {key, sensor, value, told.label, "" if time is None else time.name}
    for other in others:
        if other not in taken:
            roles.left_out[other] = f"another time; to take it: --time {other}"
            roles.other_times.append(other)
            taken.add(other)
    groups = groups_by(table, key)
    if sensor:
        _sensors(columns[sensor], columns[value], roles)
    for name, column in columns.items():
        if name not in taken and not _is_parent(column, columns):
            _field(column, groups, roles)
    _flags(roles)
    if not roles.features or not (roles.numbers or told.label):
        written = [f"; {n}: {why}" for n, why in roles.left_out.items() if why.startswith(WRITTEN)]
        texts = [n for n, why in roles.left_out.items() if why.startswith(FREE)]
        texts += roles.categories
        more = [*written, *(f"; {n!r} is text: see data.text in training/MODELS.md" for n in texts)]
        raise InitError(
            f"{table.files[0]}: expected at least one column of numbers that change, got none "
            f"among {', '.join(list(columns)[:20])}{more[0] if more else ''}"
        )
    return roles


def _is_parent(column: Column, columns: Mapping[str, Column]) -> bool:
    """Return whether this is an object that was null once: its members are columns themselves."""
    inside = f"{column.name}."
    return column.missing == 1.0 and any(name.startswith(inside) for name in columns)


def _flags(roles: Roles) -> None:
    """What is only 0 and 1 is true or false, as long as there are other numbers to forecast."""
    if roles.sensor or len(roles.flags) == len(roles.numbers):
        return
    for name in roles.flags:
        roles.booleans[name] = "only 0 and 1: " + roles.numbers.pop(name)
    roles.flags = []


def _sensors(sensor: Column, value: Column, roles: Roles) -> None:
    """Every sensor of the long format is a field of numbers."""
    counts = np.bincount(sensor.codes[sensor.codes >= 0], minlength=len(sensor.words))
    for code, word in enumerate(sensor.words):
        values = value.numbers[sensor.codes == code]
        values = values[~np.isnan(values)]
        if len(values) == 0 or values.min() == values.max():
            roles.left_out[word] = "no numbers" if len(values) == 0 else "never changes"
            continue
        roles.numbers[word] = _range(values) + f", {counts[code]:,} rows"
        _sentinel(word, values, roles)
        if len(values) < counts[code]:
            roles.gaps[word] = 1.0 - len(values) / int(counts[code])


def _field(column: Column, groups: NDArray[Any], roles: Roles) -> None:
    """Decide what a column without another role is good for."""
    name = column.name
    if why := _useless(column, roles) or _written(column):
        roles.left_out[name] = why
        return
    if column.share(BOOLEAN) > 0.99:
        roles.booleans[name] = f"{np.nanmean(column.numbers):.0%} true"
    elif column.share(WHOLE, FRACTION) >= NUMBER_SHARE:
        values = column.numbers[~np.isnan(column.numbers)]
        roles.numbers[name] = _range(values)
        _sentinel(name, values, roles)
        roles.words += [word for word in column.words if word not in roles.words]
        if _is_steady(column, groups):
            roles.steady.append(name)
        elif set(np.unique(values)) <= {0.0, 1.0}:
            roles.flags.append(name)
    elif column.share(TEXT) == 1.0 and {word.lower() for word in column.words} <= TRUTHS:
        roles.booleans[name] = "true and false, as text"
    elif column.distinct <= MOST_CATEGORIES:
        roles.categories[name] = f"{column.distinct} values"
    else:
        roles.left_out[name] = f"{FREE}, {column.distinct:,} different values"
        return
    missing = (column.kinds == MISSING) | ((column.codes >= 0) & (name in roles.numbers))
    if missing.any():
        roles.gaps[name] = float(missing.mean())


def _useless(column: Column, roles: Roles) -> str:
    if column.missing == 1.0:
        return "always empty"
    if column.share(OTHER) > 0.01:
        return "lists are no fields"
    if column.distinct <= 1:
        return "always the same" if not column.missing else "always the same, or missing"
    if column.missing > MOST_MISSING and not roles.sensor:
        return f"{column.missing:.1%} missing"
    if plain(column.name) in LABELS:
        return f"looks like a label; to predict it: --label {column.name}"
    numbers = column.numbers
    if column.share(WHOLE) == 1.0 and not column.missing and len(numbers) > 2:
        if (np.diff(numbers) == 1).mean() > 0.99:
            return "counts the rows"
        if column.distinct == len(numbers) and plain(column.name).endswith(("id", "index")):
            return "another value in every row"
    return ""


def _sentinel(name: str, values: NDArray[Any], roles: Roles) -> None:
    """Note a number such as -999 that repeats far outside the range of all others."""
    for value in SENTINELS:
        times, others = int((values == value).sum()), values[~np.isin(values, SENTINELS)]
        if times < 2 or not len(others):
            continue
        low, high = float(others.min()), float(others.max())
        if value < low - (high - low) or value > high + (high - low):
            roles.sentinels[name] = f"{value} ({times:,} times)"
            return


def _written(column: Column) -> str:
    """Say what numbers look like that were read as text; "": these are none."""
    words = column.words[:200]
    # A half is enough: "999,5" and "-12" have nothing between thousands.
    found = [word for word in words if THOUSANDS.fullmatch(word)]
    if found and 2 * len(found) >= len(words):
        return (
            f"{WRITTEN} with signs between thousands, such as {found[0]!r}: write the file without "
            "these signs"
        )
    if column.share(WHOLE, FRACTION) >= NUMBER_SHARE or len(words) <= 2:
        return ""
    if all(_is_number(word) for word in words):
        return f"{WRITTEN}, such as {words[0]!r}: data.decoder can turn them into numbers"
    return ""


def _is_number(word: str) -> bool:
    try:
        float(word.replace(",", ".", 1))
    except ValueError:
        return False
    return True


def _is_steady(column: Column, groups: NDArray[Any]) -> bool:
    present = ~np.isnan(column.numbers)
    pairs = np.unique(np.stack([groups[present], column.identity[present]]), axis=1)
    return bool(len(np.unique(groups)) > 1 and pairs.shape[1] == len(np.unique(pairs[0])))


def _range(values: NDArray[Any]) -> str:
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"


def times_of(roles: Roles, rows: int) -> NDArray[Any]:
    """(N,) each row's time in ms; its place where there is no time column."""
    if roles.time is None:
        return np.arange(rows, dtype=np.float64)
    return roles.time.times_ms


def groups_of(table: Table, roles: Roles) -> NDArray[Any]:
    """(N,) a number for each row's key."""
    return groups_by(table, roles.key)
