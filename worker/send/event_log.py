"""Event logs in files, row by row: JSON lines, CSV, Parquet, or standard input.

Owns how a row becomes a record (the key field's text; the row as JSON or in the bundle's format)
and the error that names file, line and field when it cannot. Reading files is export/tables.py's,
so that a log is sent as it was learned. Knows nothing of Kafka. Called by cli.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from keyfold.export.columns import as_number, category_text
from keyfold.export.event_spec import NUMERIC_UNITS
from keyfold.export.formats import JSON, Format
from keyfold.export.members import SCALAR, Members
from keyfold.export.tables import (
    Row,
    TableError,
    TableForm,
    file_key,
    read_lines,
    read_rows,
    row_name,
)
from keyfold.export.times import MAX_TIME_MS, from_numbers, text_reader
from keyfold.worker.errors import Crash, Reject

STDIN = "-"
_MS_OF = {"ms": 1.0, "s": 1e3, "us": 1e-3, "ns": 1e-6}  # of one unit


class EventLogError(Crash):
    """One of an event log's rows cannot be sent."""

    def __init__(self, text: str, begin: int | None = None) -> None:
        super().__init__(text)
        self.begin = begin  # Excerpt.begin that takes up here; None: nothing was read before


class Entry(NamedTuple):  # a plain tuple underneath: one is made for every event
    """One row of an event log."""

    key: bytes  # the key field's text
    value: bytes  # the row as a JSON object, or in the bundle's format
    time_ms: float  # event time, UTC epoch ms; 0.0 when no time field was asked for


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are more than payload, and how the file is written."""

    key: str | None  # path of the member whose text is the record key; None: the file's name is
    time: str | None = None  # path of the event time; None: not needed
    time_unit: str = "ms"  # of a number, "iso", or a strptime pattern, as in an EventSpec
    time_zone: str = "UTC"  # of times as text that name none
    form: TableForm = field(default_factory=TableForm)  # of CSV files
    time_needed: bool = True  # False: the time of a row without a readable one is NaN
    record: Format = JSON  # of the records


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Which rows of a log are taken, in which order, and who is told of them."""

    begin: int = 1  # the first row's number, or its place where they are put in another order
    arrange: Callable[[Iterator[Row]], Iterator[Row]] | None = None  # puts rows in another order
    broken: Callable[[str], None] | None = None  # told of a row left out; None: it ends the reading
    taken: Callable[[int, Entry], None] = lambda row, entry: None  # told of each row and its number

    @property
    def no_row(self) -> Callable[[int, str], None] | None:
        """Who is told of rows that cannot be read, by number; None: one ends the reading."""
        broken = self.broken
        if broken is None:
            return None

        def tell(number: int, why: str) -> None:
            # In another order such a row has no place: it is told of each time.
            if self.arrange is not None or number >= self.begin:
                broken(why)

        return tell


def read_log(log: str, fields: Fields, excerpt: Excerpt = Excerpt()) -> Iterator[Entry]:
    """Yield a log's rows in order; `log` is a path or "-" for JSON lines on standard input.

    Raises EventLogError naming file, line and field, TableError where the file cannot be read.
    """
    what, rows = "line", read_lines(sys.stdin.buffer)
    name = "standard input" if log == STDIN else log
    if log != STDIN:
        what, rows = row_name(Path(log)), read_rows(Path(log), fields.form, excerpt.no_row)
    if fields.key is None and log == STDIN:
        raise EventLogError("standard input: expected --key FIELD: the bundle names no key field")
    read = _reader(fields, file_key(log))
    for place, (number, value) in _rows(name, rows, excerpt):
        try:
            entry = read(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, Reject) as error:
            text = f"{name}, {what} {number}: {error}"
            if excerpt.broken is None:
                raise EventLogError(text, place) from error
            excerpt.broken(text)
            continue
        excerpt.taken(number, entry)
        yield entry


def _rows(name: str, rows: Iterator[Row], excerpt: Excerpt) -> Iterator[tuple[int, Row]]:
    """Yield rows with what Excerpt.begin counts, from there on."""
    place = 0
    try:
        if excerpt.arrange is not None:
            rows = excerpt.arrange(rows)
        for at, row in enumerate(rows, 1):
            place = row[0] if excerpt.arrange is None else at
            if place >= excerpt.begin:
                yield place, row
    except TableError as error:
        if not place:
            raise  # nothing could be read, so nothing was sent
        raise EventLogError(str(error), place + 1) from error


def _reader(fields: Fields, only_key: bytes) -> Callable[[bytes], Entry]:
    """Return the function value -> Entry; `only_key`: of every row, where no field holds it."""
    names = [name for name in (fields.key, fields.time) if name is not None]
    members = Members(dict.fromkeys(names, SCALAR))
    decode: Any = msgspec.json.Decoder(members.row).decode
    time_of, of_json = _time_reader(fields), fields.record.of_json
    if not fields.time_needed:
        time_of = _lenient(fields, time_of)

    def read(value: bytes) -> Entry:
        # The field's own name may be both key and time; one column then serves both.
        columns = members.columns([decode(value)])
        key = only_key
        if fields.key is not None:
            found = columns[0][0]
            if found is None or isinstance(found, bool):
                raise Reject(f"field {fields.key!r}: expected text or a number, got none")
            key = (category_text(found) or "").encode()
        return Entry(key, of_json(value), 0.0 if fields.time is None else time_of(columns[-1][0]))

    return read


def _lenient(fields: Fields, time_of: Callable[[Any], float]) -> Callable[[Any], float]:
    """Return the same function without rejects, and five times as fast for numbers."""
    factor = _MS_OF.get(fields.time_unit)

    def read(value: Any) -> float:
        try:
            if factor is not None and type(value) in (int, float):
                time_ms = float(value * factor)  # not rounded, as it only has to be compared
                return time_ms if abs(time_ms) <= MAX_TIME_MS else math.nan
            return time_of(value)
        except (Reject, OverflowError):
            return math.nan

    return read


def _time_reader(fields: Fields) -> Callable[[Any], float]:
    """Return the function value of the time field -> ms."""
    text = (
        None
        if fields.time_unit in NUMERIC_UNITS
        else text_reader(fields.time_unit, fields.time_zone)
    )

    def read(value: Any) -> float:
        try:
            if text is not None:
                return text(value)
            if value is None:
                raise Reject("expected an event time, got none")
            times_ms, late = from_numbers(np.array([as_number(value)]), fields.time_unit)
            if late:
                raise Reject(late[0])
            return float(times_ms[0])
        except Reject as reject:
            raise Reject(f"field {fields.time!r}: {reject}") from reject

    return read
