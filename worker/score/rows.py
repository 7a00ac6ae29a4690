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

from keyfold.export.columns import category_text
from keyfold.export.decode import decode_one
from keyfold.export.errors import Reject
from keyfold.export.events import Decoder, EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.hook import json_of
from keyfold.export.members import SCALAR, Members
from keyfold.export.tables import Row, TableForm, file_key, read_lines, read_rows, row_name
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


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut rows into lists of CHUNK."""
    remaining = iter(rows)
    while some := list(itertools.islice(remaining, CHUNK)):
        yield some


class Recorder:
    """Makes records of rows."""

    def __init__(self, source: Source, events: EventSpec) -> None:
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


def sort_by_time(rows: Iterable[Row], events: EventSpec, features: FeatureSpec) -> Iterator[Row]:
    """Yield rows by event time; equal ones, and rows without a time, stay behind their forerunner.

    The rows are kept in a file beside the system's temporary ones, in memory 32 bytes of each.
    """
    decoder = Decoder(events, features)
    numbers, starts, times = array("q"), array("q", [0]), array("q")
    latest = NO_STREAM
    with closing(tempfile.TemporaryFile(prefix="keyfold-sort-")) as kept:
        for some in chunks(rows):
            decoded = decoder.decode([value for _, value in some], [0] * len(some))
            for place, (number, value) in enumerate(some):
                if place not in decoded.rejects:
                    latest = int(decoded.times_ms[place])
                numbers.append(number)
                times.append(latest)
                starts.append(starts[-1] + len(value))
                kept.write(value)
        yield from _in_order(kept, numbers, starts, times)


def _in_order(
    kept: Any, numbers: Sequence[int], starts: Sequence[int], times: array[int]
) -> Iterator[Row]:
    stream: BinaryIO = kept
    for at in np.argsort(np.frombuffer(times, np.int64), kind="stable").tolist() if times else ():
        stream.seek(starts[at])
        yield numbers[at], stream.read(starts[at + 1] - starts[at])
