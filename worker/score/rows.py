"""Rows of a log file as the records that Kafka would hold, for scoring without it.

Owns which row is which record (offset: the row's number; key: the key field's text; no timestamp of
its own), and the sorting of a log that is not in order. The rules for keys are those of training.
Knows nothing of what becomes of the records. Called by cli.py.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import category_text
from keyfold.export.errors import Reject
from keyfold.export.event_spec import NUMERIC_UNITS
from keyfold.export.events import Decoder, EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.formats import decode_one
from keyfold.export.hook import json_of
from keyfold.export.members import SCALAR, Members
from keyfold.export.tables import Row, TableForm, file_key, read_lines, read_rows, row_name
from keyfold.export.times import unfolded
from keyfold.worker.placement import NO_STREAM

STDIN = "-"
CHUNK = 16_384  # rows taken together: bounds memory, and gives waves their width


class RowRecord(NamedTuple):  # a plain tuple underneath: one is made for every row
    """A row as a record."""

    offset: int  # the row's number, from 1
    timestamp: int  # of the record: there is none
    key: bytes | None  # None: the row has no key
    value: bytes  # the row as a JSON object


@dataclass(frozen=True, slots=True)
class Source:
    """A log to score."""

    log: str  # path, or "-": JSON lines on standard input
    key_field: str | None  # member with the key; None: the file's name is the only key
    form: TableForm  # of CSV files

    @property
    def name(self) -> str:
        """Return what stands for the topic in a prediction's id."""
        return "stdin" if self.log == STDIN else Path(self.log).name

    def place(self, row: int) -> str:
        """Name a row for messages."""
        if self.log == STDIN:
            return f"standard input, line {row}"
        return f"{self.log}, {row_name(Path(self.log))} {row}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows. Raises TableError naming file and row."""
        if self.log == STDIN:
            return read_lines(sys.stdin.buffer)
        return read_rows(Path(self.log), self.form)


def chunks(rows: Iterable[Row], most: int = CHUNK) -> Iterator[list[Row]]:
    """Cut rows into lists of at most `most`, and at most CHUNK."""
    remaining = iter(rows)
    while some := list(itertools.islice(remaining, min(most, CHUNK))):
        yield some


class Recorder:
    """Makes records of rows."""

    def __init__(self, source: Source, events: EventSpec) -> None:
        self.events = events
        self._timestamp = 0 if events.time_field is None else NO_STREAM
        self._hook = json_of(events.decoder) if events.decoder else None
        self._only = file_key(source.name)
        self._members = Members({} if source.key_field is None else {source.key_field: SCALAR})
        self._decode = msgspec.json.Decoder(self._members.row).decode
        self._keyed = source.key_field is not None

    def records(self, rows: Sequence[Row]) -> list[RowRecord]:
        """Return the rows' records; a key that cannot be read is None."""
        timestamp = self._timestamp
        if not self._keyed:
            return [RowRecord(number, timestamp, self._only, value) for number, value in rows]
        values = [value for _, value in rows]
        keys = map(_key, self._members.columns(self._decoded(values))[0])
        return [
            RowRecord(number, timestamp, key, value)
            for (number, value), key in zip(rows, keys, strict=True)
        ]

    def _decoded(self, values: Sequence[bytes]) -> list[Any]:
        decode = self._decode
        if self._hook is None:
            try:
                return [decode(value) for value in values]  # the usual case, without a try per row
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass
        return [self._decoded_one(value) for value in values]

    def _decoded_one(self, value: bytes) -> Any:
        try:
            return decode_one(self._decode, value if self._hook is None else self._hook(value))
        except Reject:
            return self._members.row()  # no key; the pipeline's decoder says what is wrong


def _key(value: Any) -> bytes | None:
    if value is None or isinstance(value, bool | list | dict):
        return None
    return (category_text(value) or "").encode()


def sort_by_time(rows: Iterable[Row], recorder: Recorder, features: FeatureSpec) -> Iterator[Row]:
    """Yield rows by event time; equal ones, and rows without a time, stay behind their forerunner.

    Of an hour that the time zone has twice, a key's second pass comes behind its first one, as in
    training. The rows are kept in a file beside the system's temporary ones, in memory 40 bytes of
    each.
    """
    events = recorder.events
    decoder, kept_rows = Decoder(events, features), _Kept()
    zone = "UTC" if events.time_unit in NUMERIC_UNITS else events.time_zone
    owners, numbers = array("q"), dict[bytes | None, int]()
    with closing(tempfile.TemporaryFile(prefix="keyfold-sort-")) as file:
        for some in chunks(rows):
            decoded = decoder.decode([value for _, value in some], [0] * len(some))
            if zone != "UTC":
                keys = [record.key for record in recorder.records(some)]
                owners.extend(numbers.setdefault(key, len(numbers)) for key in keys)
            for place, (number, value) in enumerate(some):
                time_ms = NO_STREAM if place in decoded.rejects else int(decoded.times_ms[place])
                kept_rows.add(number, len(value), time_ms)
                file.write(value)
        yield from kept_rows.in_order(file, np.array(owners, np.int64), zone)


class _Kept:
    """Where the rows to be sorted are, and their times."""

    def __init__(self) -> None:
        self._numbers, self._starts, self._times = array("q"), array("q", [0]), array("q")

    def add(self, number: int, length: int, time_ms: int) -> None:
        """Note the next row; a time of NO_STREAM: it has none."""
        self._numbers.append(number)
        self._starts.append(self._starts[-1] + length)
        self._times.append(time_ms)

    def in_order(self, file: Any, owners: NDArray[np.int64], zone: str) -> Iterator[Row]:
        """Yield the rows; `owners` are their keys' numbers, where the zone is not UTC."""
        stream: BinaryIO = file
        for at in np.argsort(self._ranks(owners, zone), kind="stable").tolist():
            stream.seek(self._starts[at])
            yield self._numbers[at], stream.read(self._starts[at + 1] - self._starts[at])

    def _ranks(self, owners: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
        """Return by what the rows are sorted."""
        times = np.array(self._times, np.int64)
        timed = times != NO_STREAM
        ranks = times.copy()
        if zone != "UTC":
            rows = np.flatnonzero(timed)
            by_key = rows[np.argsort(owners[rows], kind="stable")]
            ends = np.flatnonzero(np.diff(owners[by_key])) + 1
            for of_key in np.split(by_key, ends):
                ranks[of_key] = unfolded(times[of_key], zone)
        # A row without a time stays behind the one before it that has one.
        forerunner = np.maximum.accumulate(np.where(timed, np.arange(len(times)), -1))
        return np.where(forerunner < 0, NO_STREAM, ranks[forerunner])
