"""Files of every kind become the same rows of JSON, and what cannot be read is named.

Writes real files, Parquet with pyarrow. Needs no service.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from keyfold.export.tables import TableError, TableForm, read_lines, read_rows, row_name

GERMAN = TableForm(separator=";", decimal=",")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def rows(path: Path, form: TableForm | None = None) -> list[dict[str, Any]]:
    found = list(read_rows(path, form))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    return [json.loads(value) for _, value in found]


def csv(folder: Path, text: str | bytes, form: TableForm | None = None) -> list[dict[str, Any]]:
    return rows(written(folder, "log.csv", text), form)


# -- CSV -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1),
        ("-2.5", -2.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (" 7 ", 7),
        ("007", "007"),
        ("-007", "-007"),
        ("+5", 5),
        ("+5.0", 5.0),
        ("-0", 0),
        ("-0.0", -0.0),
        ("+-5", "+-5"),
        ("+" + "9" * 19, "+" + "9" * 19),
        ("1_000", "1_000"),
        ("1_0.5", "1_0.5"),
        ("9" * 30, "9" * 30),
        ("inf", "inf"),
        ("1e999", "1e999"),
        ("True", "True"),
        ("12,5", "12,5"),
        ("2024-01-01", "2024-01-01"),
        ("größe", "größe"),
        ("", None),
        ("NaN", None),
        ("N/A", None),
        ("null", None),
        ("#N/A", None),
    ],
)
def test_cell_is_read_as_json_would_show_it(tmp_path: Path, cell: str, value: object) -> None:
    assert csv(tmp_path, f'a,b\n"{cell}",1\n') == [{"a": value, "b": 1}]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("12,5", 12.5), ("-,5", -0.5), ("7", 7), ("1.234,5", "1.234,5"), ("01.02.2024", "01.02.2024"),
     ("1,2,3", "1,2,3"), ("3.5", "3.5")],
)  # fmt: skip
def test_decimal_comma_is_read_and_thousands_are_not_guessed(
    tmp_path: Path, cell: str, value: object
) -> None:
    assert csv(tmp_path, f"a;b\n{cell};x\n", GERMAN) == [{"a": value, "b": "x"}]


def test_spaces_byte_order_mark_quotes_and_line_ends_do_not_count(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfa, b\r\n1, 2\r\n\r\n"x, y", \r\n'
    assert csv(tmp_path, text) == [{"a": 1, "b": 2}, {"a": "x, y", "b": None}]


def test_short_row_lacks_values_and_trailing_separators_are_nothing(tmp_path: Path) -> None:
    assert csv(tmp_path, "a,b,\n1\n1,2,,,\n") == [{"a": 1, "b": None}, {"a": 1, "b": 2}]


def test_cells_of_the_text_column_are_texts_whatever_they_hold(tmp_path: Path) -> None:
    long = "é😀\0 " * 300_000
    text = f'a,line,b\n1,007,NA\n2,NaN,\n3,,x\n4,"two\nlines ",5\n5,"{long}",6\n6,-1.5,7\n'
    found = csv(tmp_path, text, TableForm(text="line"))
    assert [row["line"] for row in found] == ["007", "NaN", "", "two\nlines ", long, "-1.5"]
    assert [row["b"] for row in found] == [None, None, "x", 5, 6, 7]
    assert TableForm.from_json(TableForm(text="line").to_json()).text == "line"


def test_a_text_keeps_the_blanks_that_it_begins_with(tmp_path: Path) -> None:
    form = TableForm(text="line")
    found = csv(tmp_path, 'a,line\n 1,  indented\n2,\ttab\n3," quoted, "\n4, \n', form)
    assert [row["line"] for row in found] == ["  indented", "\ttab", " quoted, ", " "]
    assert [row["a"] for row in found] == [1, 2, 3, 4]


def test_a_blank_behind_every_separator_is_no_part_of_a_text(tmp_path: Path) -> None:
    text = 'a, line, b\n1, "one, two", 3\n2, plain, 4\n'
    found = csv(tmp_path, text, TableForm(text="line"))
    assert found == [{"a": 1, "line": "one, two", "b": 3}, {"a": 2, "line": "plain", "b": 4}]


def test_column_without_a_name_is_left_out(tmp_path: Path) -> None:
    assert csv(tmp_path, ",a\n0,1\n1,2\n") == [{"a": 1}, {"a": 2}]


def test_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    message = r"log\.csv, row 2: expected 2 cells as in the first line, got 3; is ',' the separator"
    with pytest.raises(TableError, match=message):
        csv(tmp_path, "a,b\n1,2\n1,2,5\n")


def going_on(path: Path) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """Return the rows of a file, and those left out: number and why."""
    told: list[tuple[int, str]] = []
    found = read_rows(path, None, lambda number, why: told.append((number, why)))
    return [(number, json.loads(value)) for number, value in found], told


def test_a_reader_can_go_on_behind_rows_that_are_no_rows_or_no_text(tmp_path: Path) -> None:
    text = b'a,b\n1,2\n1,2,5\n\n\xfc,"\n"\n\xc3\xbc,4\n'
    path = written(tmp_path, "log.csv", text)
    found, told = going_on(path)
    assert found == [(1, {"a": 1, "b": 2}), (4, {"a": "ü", "b": 4})]
    assert told == [
        (2, f"{path}, row 2: expected 2 cells as in the first line, got 3; is ',' the separator?"),
        (3, f"{path}, row 3: expected text in utf-8, got byte 0xfc; save the file as UTF-8 or name "
            "its encoding: --csv-encoding, in training.toml data.csv_encoding"),
    ]  # fmt: skip
    with pytest.raises(TableError, match=r"after row 0: expected text in utf-8, got byte 0xfc"):
        rows(path)


def test_names_that_are_no_text_end_the_reading(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", b"a,gr\xf6\xdfe\n1,2\n")
    with pytest.raises(TableError, match=r"log\.csv, first line: expected text in utf-8, got .*f6"):
        going_on(path)


def test_repeated_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"log\.csv: expected distinct column names, .*: a"):
        csv(tmp_path, "a,b,a\n1,2,3\n")


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.csv.gz"):
        assert rows(written(tmp_path, name, "")) == []
    assert csv(tmp_path, "a,b\n") == []


def test_tabs_separate_the_cells_of_tsv(tmp_path: Path) -> None:
    assert rows(written(tmp_path, "log.tsv", "a\tb\n1\t2\n")) == [{"a": 1, "b": 2}]


def test_other_encodings_are_read_where_they_are_named(tmp_path: Path) -> None:
    text = "größe\n1\n".encode("latin-1")
    assert csv(tmp_path, text, TableForm(encoding="latin-1")) == [{"größe": 1}]
    with pytest.raises(
        TableError, match=r"log\.csv, after row 0: expected text in utf-8, got byte 0x"
    ):
        csv(tmp_path, text)


# -- JSON lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.jsonl.gz"])
def test_lines_are_as_they_stand_and_empty_ones_are_passed_over(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, b'{"a":1}\r\n\n  \nnonsense\n{"a":2}')
    assert list(read_rows(path)) == [(1, b'{"a":1}'), (4, b"nonsense"), (5, b'{"a":2}')]
    assert row_name(path) == "line"
    assert list(read_lines(io.BytesIO(b"x\n"))) == [(1, b"x")]


# -- Parquet ---------------------------------------------------------------------------------------


def parquet(folder: Path, columns: dict[str, Any]) -> Path:
    pyarrow, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = folder / "log.parquet"
    file.write_table(pyarrow.table(columns), path)
    return path


def test_columns_of_every_type_have_their_form_in_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    moment = datetime(2024, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    path = parquet(
        tmp_path,
        {
            "n": [1.5, None],
            "nan": [float("nan"), 1.0],
            "big": pyarrow.array([2**63 + 1, 0], pyarrow.uint64()),
            "decimal": [Decimal("1.25"), None],
            "text": pyarrow.array(["x", "y"]).dictionary_encode(),
            "bytes": [b"raw", b""],
            "nested": [{"temp": 1}, None],
            "list": [[1, 2], []],
            "naive": [moment.replace(tzinfo=None), None],
            "aware": [moment, None],
            "ns": pyarrow.array([1_700_000_000_123_456_789, 0], pyarrow.timestamp("ns")),
            "took": [timedelta(seconds=1.5), None],
            "day": [moment.date(), None],
            "clock": [moment.time(), None],
            "flag": [True, None],
        },
    )
    assert rows(path)[0] == {
        "n": 1.5,
        "nan": None,
        "big": 2**63 + 1,
        "decimal": 1.25,
        "text": "x",
        "bytes": "raw",
        "nested": {"temp": 1},
        "list": [1, 2],
        # A time without a zone stays one: the event spec says which zone it is.
        "naive": "2024-01-02T03:04:05.000600",
        "aware": "2024-01-02T03:04:05.000600+00:00",
        "ns": "2023-11-14T22:13:20.123456",
        "took": 1.5,
        "day": "2024-01-02",
        "clock": "03:04:05.000600",
        "flag": True,
    }
    assert row_name(path) == "row"


def test_bytes_that_are_no_text_name_the_row(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"a": [b"fine", b"\xff"]})
    with pytest.raises(TableError, match=r"row 2: has no form in JSON: a column of bytes"):
        rows(path)


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.xlsx", b"", "expected one of .csv, .tsv, .jsonl, .ndjson, .parquet, got '.xlsx'"),
        ("log", b"", "got ''"),
        ("log.parquet", b"no", "after row 0: not readable as Parquet"),
        ("log.csv", b'a,b\n1,"' + b"x" * 200_000, "after row 0: cannot be read: field larger"),
    ],
)
def test_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(TableError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        rows(path)


def test_missing_file_and_cut_off_archive_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.csv: expected an event log, got no such file"):
        rows(tmp_path / "none.csv")
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a":1}\n' * 1000)[:-9])
    with pytest.raises(TableError, match=r"log\.jsonl\.gz, after line \d+: cannot be read"):
        rows(path)
    path.write_bytes(b"no archive")
    with pytest.raises(TableError, match=r"log\.jsonl\.gz, after line 0: cannot be read"):
        rows(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"separator": ";;"}, "csv_separator: expected one character, got ';;'"),
        ({"separator": ""}, "csv_separator: expected one character"),
        ({"decimal": "'"}, "csv_decimal: expected '.' or ','"),
        ({"encoding": "utf-9"}, "csv encoding: expected a name such as"),
    ],
)
def test_form_that_cannot_be_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(TableError, match=re.escape(message)):
        TableForm(**wrong)  # type: ignore[arg-type]


def test_a_reader_can_go_on_behind_parquet_rows_that_are_no_text(tmp_path: Path) -> None:
    pyarrow, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = pyarrow.array([b"x", b"\xff", b"y"])
    text = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])  # as a careless writer does
    path = tmp_path / "log.parquet"
    file.write_table(pyarrow.table({"a": text, "b": [b"x", b"y", b"\xfe"]}), path)
    found, told = going_on(path)
    assert found == [(1, {"a": "x", "b": "x"})]
    assert told == [
        (2, f"{path}, row 2: expected text in utf-8, got byte 0xff"),
        (3, f"{path}, row 3: has no form in JSON: a column of bytes that are no text"),
    ]
    with pytest.raises(TableError, match=r"row 2: expected text in utf-8, got byte 0xff"):
        rows(path)
