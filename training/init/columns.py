"""An unknown log, looked at: how a CSV is written, and every row as columns of one kind each.

Owns the guess of separator, decimal sign and encoding, and the table that the rest of
`keyfold-train init` reasons about. Rows are read by export/tables.py, as training and the worker
read them, so that what is seen here is what will be learned. It knows nothing of roles (key, time,
feature). Called by cli.py.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.export.tables import TableForm, read_rows, row_name

MOST_ROWS = 1_000_000  # looked at: more would not change what is found, only the waiting
SNIFFED_LINES = 200
SEPARATORS = (",", ";", "\t", "|")
MISSING, WHOLE, FRACTION, BOOLEAN, TEXT, OTHER = range(6)  # kinds of a cell
MOST_WORDS = 200_000  # distinct texts kept of a column; beyond, it is a column of free text


class InitError(Crash):
    """What is to be known about a log cannot be inferred from it, or is not in it."""


@dataclass(slots=True)
class _Growing:
    """A column while it is read."""

    kinds: array[int]  # per row
    numbers: array[float]  # per row; NaN where there is no number
    codes: array[int]  # per row: place in words; -1 where there is no text
    words: dict[str, int]  # text -> code, by first appearance

    @classmethod
    def after(cls, rows: int) -> _Growing:
        """Return a column that was missing in the first rows."""
        missing = array("b", bytes(rows))
        return cls(missing, array("d", [np.nan]) * rows, array("i", [-1]) * rows, {})

    def add(self, value: Any) -> None:
        kind, number, code = MISSING, np.nan, -1
        if isinstance(value, bool):
            kind, number = BOOLEAN, float(value)
        elif isinstance(value, int):
            kind, number = WHOLE, float(value)
        elif isinstance(value, float):
            kind, number = FRACTION, value
        elif isinstance(value, str):
            kind = TEXT
            if len(self.words) < MOST_WORDS:
                code = self.words.setdefault(value, len(self.words))
        elif value is not None:
            kind = OTHER
        self.kinds.append(kind)
        self.numbers.append(number)
        self.codes.append(code)


@dataclass(frozen=True)
class Column:
    """One member of the rows, nested ones by their path."""

    name: str  # "temp", "readings.temp"
    kinds: NDArray[np.int8]  # (N,) MISSING, WHOLE, ...
    numbers: NDArray[np.float64]  # (N,) NaN where there is no number
    codes: NDArray[np.int32]  # (N,) place in words; -1: no text
    words: tuple[str, ...]  # the distinct texts, by first appearance

    def share(self, *kinds: int) -> float:
        """Return the share of the present cells that are of these kinds; 0 when none is there."""
        present = int((self.kinds != MISSING).sum())
        return float(np.isin(self.kinds, kinds).sum() / present) if present else 0.0

    @cached_property
    def missing(self) -> float:
        """The share of rows without a value."""
        return float((self.kinds == MISSING).mean())

    @cached_property
    def identity(self) -> NDArray[np.int64]:
        """(N,) a number for each distinct value, from 0; -1 where missing."""
        ids = np.full(len(self.kinds), -1, np.int64)
        numeric = ~np.isnan(self.numbers)
        if numeric.any():
            _, ids[numeric] = np.unique(self.numbers[numeric], return_inverse=True)
        text = self.codes >= 0
        ids[text] = self.codes[text] + (ids.max() + 1)
        return ids

    @cached_property
    def distinct(self) -> int:
        """How many distinct values there are."""
        return len(np.unique(self.identity[self.identity >= 0]))


@dataclass(frozen=True)
class Table:
    """Some files, read."""

    files: tuple[str, ...]  # as they were named
    form: TableForm  # of CSV files; the default for others
    columns: Mapping[str, Column]  # by name, by first appearance
    rows: int  # looked at
    more: bool  # there are more rows than were looked at
    broken: int  # lines that are no JSON object
    first_broken: str  # where the first of them is, with several files by name: "line 1"
    differing: Mapping[str, str]  # file -> how its columns differ from the first file's
    file_of: NDArray[np.int32]  # (N,) place in files


def read_table(files: Sequence[str]) -> Table:
    """Read files of one kind. Raises InitError or what export/tables.py does, with file and row."""
    forms = {sniff(Path(file)) for file in files}
    if len(forms) > 1:
        raise InitError(
            f"{files[0]} and others: expected files written alike (separator, decimal sign, "
            "encoding), got several kinds; prepare them apart"
        )
    (form,) = forms
    growing: dict[str, _Growing] = {}
    file_of = array("i")
    more, broken = False, list[str]()
    names: list[dict[str, None]] = [{} for _ in files]
    for number, file in enumerate(files):
        for place, value in read_rows(Path(file), form):
            if len(file_of) >= MOST_ROWS:
                more = True
                break
            if (row := _row(value)) is not None:
                _add(growing, len(file_of), row)
                names[number].update(dict.fromkeys(row))
                file_of.append(number)
            else:
                where = f"{row_name(Path(file))} {place}"
                broken.append(where if len(files) == 1 else f"{file}, {where}")
    if not file_of:
        raise InitError(f"{files[0]}: expected rows of readings, got none{_unread(broken)}")
    columns = {name: _finished(name, column, len(file_of)) for name, column in growing.items()}
    owners = np.array(file_of, np.int32)
    first, differing = (broken or [""])[0], _differing(files, names)
    return Table(
        tuple(files), form, columns, len(file_of), more, len(broken), first, differing, owners
    )


def _unread(broken: Sequence[str]) -> str:
    return f" ({len(broken):,} lines cannot be read, first: {broken[0]})" if broken else ""


def _differing(files: Sequence[str], names: Sequence[Mapping[str, None]]) -> dict[str, str]:
    """Say how files' columns differ from the first file's; refuse files of another kind."""
    found: dict[str, str] = {}
    for file, own in zip(files, names, strict=True):
        lacks = [name for name in names[0] if name not in own]
        besides = [name for name in own if name not in names[0]]
        if not own or not (lacks or besides):
            continue  # beyond the rows that are looked at, or the same
        said = [f"without {_few(lacks)}"] if lacks else []
        said += [f"with {_few(besides)} besides"] if besides else []
        found[file] = ", ".join(said)
        if 2 * (len(own) - len(besides)) < len(own) + len(lacks):
            raise InitError(
                f"{file}: expected the columns of {files[0]}, got a file {found[file]}; files of "
                "different kinds need a training.toml each: call init for each kind apart"
            )
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _row(value: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None  # training will name it; a bad line is no reason to stop looking
    return dict(_flat(row, "")) if isinstance(row, dict) else None


def _flat(members: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in members.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _add(growing: dict[str, _Growing], rows: int, members: Mapping[str, Any]) -> None:
    for name in members:
        if name not in growing:
            growing[name] = _Growing.after(rows)
    for name, column in growing.items():
        column.add(members.get(name))


def _finished(name: str, column: _Growing, rows: int) -> Column:
    return Column(
        name,
        np.frombuffer(column.kinds, np.int8, rows),
        np.frombuffer(column.numbers, np.float64, rows),
        np.frombuffer(column.codes, np.int32, rows),
        tuple(column.words),
    )


def sniff(file: Path) -> TableForm:
    """Guess how a CSV is written; other kinds of files have the default form."""
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if suffix.lower() not in (".csv", ".tsv", ".txt") or not file.is_file():
        return TableForm()
    try:
        encoding = _encoding(file)
        with _open(file) as stream, io.TextIOWrapper(stream, encoding, newline="") as text:
            lines = [line for line, _ in zip(text, range(SNIFFED_LINES), strict=False)]
        separator = max(SEPARATORS, key=lambda sign: _fit(lines, sign))
    except (csv.Error, EOFError, OSError, zlib.error) as error:
        raise InitError(f"{file}: expected a table as text, got something else: {error}") from error
    return TableForm(separator=separator, decimal=_decimal(lines, separator), encoding=encoding)


def _open(file: Path) -> Any:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _encoding(file: Path) -> str:
    """Return "utf-8" (with or without a mark), "utf-16" by its mark, or "latin-1"."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(file) as stream:
        start = stream.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        try:
            decoder.decode(start)
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"  # of no more than 256 signs each byte is one: it always reads
    return "utf-8"


def _fit(lines: Sequence[str], separator: str) -> tuple[float, int]:
    """Say how well a separator cuts the lines into as many cells as the header has."""
    rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    if not rows or len(rows[0]) < 2:
        return 0.0, 0
    width = len(rows[0])
    return round(sum(len(row) == width for row in rows) / len(rows), 1), width


def _decimal(lines: Sequence[str], separator: str) -> str:
    if separator == ",":
        quoted = [cell for row in csv.reader(lines) for cell in row if "," in cell]
        plain = [cell for row in csv.reader(lines) for cell in row if "." in cell]
        commas, points = (sum(map(_is_fraction, cells)) for cells in (quoted, plain))
        return "," if commas > points else "."
    cells = [cell for row in csv.reader(lines, delimiter=separator) for cell in row]
    commas = sum("," in cell and _is_fraction(cell) for cell in cells)
    points = sum("." in cell and _is_fraction(cell) for cell in cells)
    return "," if commas > points else "."


def _is_fraction(cell: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d*[.,]\d+(?:[eE][-+]?\d+)?\s*", cell) is not None
