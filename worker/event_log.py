"""Event logs in files, row by row: JSON lines, CSV, Parquet, or standard input.

Owns how a row becomes a record (the key field's text, the row as a JSON object) and the error that
names file, line and field when it cannot. The rules for cells are those of training/sources.py, so
that a log is served as it was learned. Knows nothing of Kafka. Called by worker/send.py.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec
import orjson

from keyfold.worker.errors import Crash

STDIN = "-"
PARQUET_ROWS = 16_384  # read at a time: bounds memory


class EventLogError(Crash):
    """An event log cannot be read, or one of its rows cannot be sent."""


class Entry(NamedTuple):  # a plain tuple underneath: one is made for every event
    """One row of an event log."""

    key: bytes  # the key field's text
    value: bytes  # the row as a JSON object
    time_ms: float  # event time, UTC epoch ms; 0.0 when no time field was asked for


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are more than payload."""

    key: str  # whose text is the record key
    time: str | None = None  # event time; None: not needed
    time_scale: float = 1.0  # to ms


def read_log(log: str, fields: Fields) -> Iterator[Entry]:
    """Yield a log's rows in order; `log` is a path or "-" for JSON lines on standard input.

    Raises EventLogError naming file, line and field.
    """
    what, values = _values(log)
    name = "standard input" if log == STDIN else log
    read = _reader(fields)
    number = 0
    try:
        for value in values:
            number += 1
            if value:
                yield read(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, EventLogError) as error:
        raise EventLogError(f"{name}, {what} {number}: {error}") from error
    except (OSError, EOFError, csv.Error) as error:
        raise EventLogError(f"{name}, after {what} {number}: cannot be read: {error}") from error


def _reader(fields: Fields) -> Any:
    """Return the function value -> Entry."""
    members: list[Any] = [("key", msgspec.Raw)]
    rename = {"key": fields.key}
    # The field's own name may be both; one column then serves both.
    if fields.time is not None and fields.time != fields.key:
        members.append(("time", float))
        rename["time"] = fields.time
    decode = msgspec.json.Decoder(msgspec.defstruct("Row", members, rename=rename)).decode
    key_of = msgspec.json.Decoder(str | int).decode
    time_of = msgspec.json.Decoder(float).decode

    def read(value: bytes) -> Entry:
        row: Any = decode(value)
        try:
            key = str(key_of(row.key)).encode()
        except msgspec.ValidationError as error:
            raise EventLogError(f"field {fields.key!r}: {error}") from error
        if fields.time is None:
            return Entry(key, value, 0.0)
        time = row.time if fields.time != fields.key else time_of(row.key)
        return Entry(key, value, time * fields.time_scale)

    return read


def _values(log: str) -> tuple[str, Iterator[bytes]]:
    """Return what a row is called and the rows as JSON."""
    if log == STDIN:
        return "line", _lines(sys.stdin.buffer)
    file = Path(log)
    readers = {".jsonl": ("line", _lines), ".ndjson": ("line", _lines), ".csv": ("row", _csv)}
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if suffix not in (*readers, ".parquet"):
        raise EventLogError(f"{file}: expected .jsonl, .ndjson, .csv or .parquet, got {suffix!r}")
    if not file.is_file():
        raise EventLogError(f"{file}: expected an event log, got no such file")
    if suffix == ".parquet":
        return "row", _parquet(file)
    what, reader = readers[suffix]
    return what, _closing(file, reader)


def _closing(file: Path, reader: Any) -> Iterator[bytes]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        yield from reader(cast(BinaryIO, stream))


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    return (line.strip() for line in stream)


def _csv(stream: BinaryIO) -> Iterator[bytes]:
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        for row in csv.DictReader(text):
            yield orjson.dumps({k: _cell(cell) for k, cell in row.items() if k is not None})


def _cell(text: str | None) -> float | int | str | None:
    """Read a CSV cell as JSON would show it: a number where it looks like one; empty is null."""
    if not text:
        return None
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        # "007" and an over-long integer are names, not numbers.
        return text if kind is int and (str(number) != text or abs(number) >= 2**63) else number
    return text


def _parquet(file: Path) -> Iterator[bytes]:
    try:
        import pyarrow.parquet  # heavy, and only this kind of file needs it
    except ImportError as error:
        raise EventLogError(f"{file}: Parquet needs pyarrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise EventLogError(f"{file}: not readable as Parquet: {error}") from error
    with closing(table):
        for part in table.iter_batches(batch_size=PARQUET_ROWS):
            for row in part.to_pylist():
                yield orjson.dumps(row, option=orjson.OPT_NAIVE_UTC | orjson.OPT_SERIALIZE_NUMPY)
