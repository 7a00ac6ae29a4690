"""Event logs in files, row by row: CSV, JSON lines, Parquet; the one reader of training and worker.

Owns how a row of a table is written as the JSON object that a producer would send, so that a log is
served as it was learned. Knows nothing of keys, features or Kafka. Called by training (sources,
init), by the worker's event_log and by scoring.

Rules for a CSV cell: spaces around it do not count; one of `missing` is null; what reads as a
number is a number, with a sign or without, except integers that are written as no integer is
("007"), which are names, as is everything else. "True" stays text, which a boolean field accepts.
The cells of the column that an event's text is in are texts whatever they hold, the empty one too.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from keyfold.export.errors import Crash
from keyfold.export.parquet_rows import parquet_rows

# What pandas.read_csv takes for a missing value (keep_default_na, pandas 2.2).
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
     "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip

# Characters. Beyond Python's usual limit a quote is open and would eat the file; texts may be long.
LONGEST_CELL, LONGEST_TEXT = 131_072, 1 << 26

Row = tuple[int, bytes]  # number of the line or row, from 1; a JSON object
Broken = Callable[[int, str], None]  # told of a row left out: its number, and where it is and why
NO_TEXT = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are no text


class TableError(Crash):
    """A file cannot be read, or not in the form that was named."""


@dataclass(frozen=True, slots=True)
class TableForm:
    """How CSV files are written; other kinds need no description."""

    separator: str = ","  # between cells, one character
    decimal: str = "."  # sign before decimals: "." or ","
    encoding: str = "utf-8"  # of the text
    missing: frozenset[str] = MISSING  # cells that hold nothing
    text: str = ""  # the column whose cells are texts as they stand; "": none

    def __post_init__(self) -> None:
        if len(self.separator) != 1 or self.separator in '"\r\n':
            raise TableError(f"csv_separator: expected one character, got {self.separator!r}")
        if self.decimal not in (".", ","):
            raise TableError(f"csv_decimal: expected '.' or ',', got {self.decimal!r}")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise TableError(
                f"csv encoding: expected a name such as 'utf-8' or 'latin-1', got {self.encoding!r}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the form as a bundle's provenance holds it."""
        return {
            "separator": self.separator,
            "decimal": self.decimal,
            "encoding": self.encoding,
            "null_words": sorted(self.missing - MISSING),
            **({"text": self.text} if self.text else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableForm:
        """Read that; what is not said is as usual."""
        usual = cls()
        return cls(
            data.get("separator", usual.separator),
            data.get("decimal", usual.decimal),
            data.get("encoding", usual.encoding),
            MISSING | set(data.get("null_words", ())),
            data.get("text", ""),
        )


def file_key(source: str) -> bytes:
    """Return the key of a file's rows when no field holds it: its name without its endings."""
    return Path(Path(source).name.removesuffix(".gz")).stem.encode()


def is_csv(file: str) -> bool:
    """Return whether a file's rows are cells of text, whose reading a TableForm says."""
    return _suffix(Path(file)) in (".csv", ".tsv")


def row_name(path: Path) -> str:
    """Say what the number of a row of this file counts: "line" or "row"."""
    return "line" if _suffix(path) in (".jsonl", ".ndjson") else "row"


def read_rows(
    path: Path, form: TableForm | None = None, broken: Broken | None = None
) -> Iterator[Row]:
    """Yield a file's rows in order, with their numbers; empty lines are passed over.

    A ".gz" behind the suffix of CSV and JSON lines is unpacked. Raises TableError naming the file,
    and the row where there is one; with `broken` it goes on behind rows that have too many cells or
    are no text. What a line of JSON holds is not looked at.
    """
    readers: dict[str, Callable[[Path, TableForm, Broken | None], Iterator[Row]]] = {
        ".csv": _csv, ".tsv": _csv, ".jsonl": _lines, ".ndjson": _lines, ".parquet": _parquet,
    }  # fmt: skip
    suffix = _suffix(path)
    if suffix not in readers:
        raise TableError(f"{path}: expected one of {', '.join(readers)}, got {suffix!r}")
    if not path.is_file():
        raise TableError(f"{path}: expected an event log, got no such file")
    number = 0
    try:
        for number, value in readers[suffix](path, form or TableForm(), broken):
            yield number, value
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        place = f"{path}, after {row_name(path)} {number}"
        raise TableError(f"{place}: {_no_text(error.encoding, byte)}") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise TableError(
            f"{path}, after {row_name(path)} {number}: cannot be read: {error}"
        ) from error


def read_lines(stream: BinaryIO) -> Iterator[Row]:
    """Yield the JSON lines of a stream, such as standard input."""
    for number, line in enumerate(stream, 1):
        value = line.strip()
        if value:
            yield number, value


def _no_text(encoding: str, byte: int) -> str:
    return (
        f"expected text in {encoding}, got byte 0x{byte:02x}; save the file as UTF-8 or name its "
        "encoding: --csv-encoding, in training.toml data.csv_encoding"
    )


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _lines(path: Path, form: TableForm, broken: Broken | None) -> Iterator[Row]:
    with _open(path) as stream:
        yield from read_lines(stream)


# -- CSV -------------------------------------------------------------------------------------------


def _csv(path: Path, form: TableForm, broken: Broken | None) -> Iterator[Row]:
    # utf-8-sig: Excel writes a byte order mark, which is no part of the first name.
    encoding = "utf-8-sig" if form.encoding.lower() in ("utf-8", "utf8") else form.encoding
    errors = "strict" if broken is None else "surrogateescape"  # so that the next rows can be read
    separator = "\t" if _suffix(path) == ".tsv" and form.separator == "," else form.separator
    read = cell_reader(form)
    csv.field_size_limit(LONGEST_TEXT if form.text else LONGEST_CELL)
    with _open(path) as stream, io.TextIOWrapper(stream, encoding, errors, newline="") as text:
        first = next(text, "")
        # Blanks are part of a text, unless the file has one behind each separator, as its first
        # line shows. Other cells are stripped in any case.
        spaced = not form.text or f"{separator} " in first
        rows = csv.reader(chain([first], text), delimiter=separator, skipinitialspace=spaced)
        names = _names(path, next(rows, []), form.encoding)
        number = 0
        for cells in rows:
            if not cells:
                continue
            number += 1
            why = _problem(cells, len(names), separator)
            if broken is not None:
                why = why or _foreign(cells, form.encoding)
            if why and broken is None:
                raise TableError(f"{path}, row {number}: {why}")
            if why and broken is not None:
                broken(number, f"{path}, row {number}: {why}")
                continue
            row = {name: None for name in names if name} | {
                name: cell if name == form.text else read(cell)
                for name, cell in zip(names, cells, strict=False)
                if name
            }
            yield number, orjson.dumps(row)


def _problem(cells: Sequence[str], expected: int, separator: str) -> str:
    """Say why cells are no row; "": they are one."""
    if len(cells) > expected and any(cells[expected:]):
        return (
            f"expected {expected} cells as in the first line, got {len(cells)}; is {separator!r} "
            "the separator?"
        )
    return ""


def _foreign(cells: Sequence[str], encoding: str) -> str:
    """Say which byte of cells is no text; "": none."""
    for cell in cells:
        found = NO_TEXT.search(cell)
        if found is not None:
            return _no_text(encoding, ord(found[0]) - 0xDC00)
    return ""


def _names(path: Path, header: Sequence[str], encoding: str) -> list[str]:
    """Return the names of the columns; one without a name (pandas' index) is left out later."""
    names = [name.strip() for name in header]
    foreign = _foreign(names, encoding)
    if foreign:
        raise TableError(f"{path}, first line: {foreign}")
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise TableError(
            f"{path}: expected distinct column names, got twice: {', '.join(repeated)}"
        )
    return names


def cell_reader(form: TableForm) -> Callable[[str], float | int | str | None]:
    """Return the function that reads a cell as JSON would show it."""
    missing, comma = form.missing, form.decimal == ","

    def read(text: str) -> float | int | str | None:
        text = text.strip()
        if text in missing:
            return None
        try:
            whole = int(text)
        except ValueError:
            pass
        else:
            # "007", "1_000" and an over-long integer are names; "+5" and "-0" are numbers.
            plain = str(abs(whole)) == text.lstrip("+-")
            return whole if plain and abs(whole) < 2**63 else text
        written = text
        if comma:
            # "1.234,5" may mean two numbers: with a decimal comma, what has a point is text.
            if "." in text:
                return text
            written = text.replace(",", ".", 1)
        try:
            number = float(written)
        except ValueError:
            return text
        return number if math.isfinite(number) and "_" not in text else text

    return read


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet(path: Path, form: TableForm, broken: Broken | None) -> Iterator[Row]:
    if path.suffix == ".gz":
        raise TableError(f"{path}: expected Parquet, which is compressed itself; unpack the .gz")
    number = 0
    try:
        for number, row in enumerate(parquet_rows(path), 1):
            if isinstance(row, bytes):
                yield number, row
            elif broken is not None:
                broken(number, f"{path}, row {number}: {row}")
            else:
                raise TableError(f"{path}, row {number}: {row}")
    except ImportError as error:
        raise TableError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from error
    except (ValueError, TypeError) as error:
        raise TableError(f"{path}, after row {number}: not readable as Parquet: {error}") from error
