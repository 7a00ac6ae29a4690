"""Event logs: JSON lines, CSV and Parquet become records; a bad row is named."""

from __future__ import annotations

import gzip
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from keyfold.export.errors import Crash
from keyfold.export.tables import TableForm
from keyfold.worker.send.event_log import Entry, EventLogError, Fields, read_log

LINES = b'{"key": "k1", "time": 1, "a": 0.10}\n\n{"key": 7, "time": 2.5, "a": 2}\n'


def test_a_json_line_is_sent_byte_for_byte_under_the_key_fields_text(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES)
    assert list(read_log(str(log), Fields("key", "time", "s"))) == [
        Entry(b"k1", b'{"key": "k1", "time": 1, "a": 0.10}', 1000.0),
        Entry(b"7", b'{"key": 7, "time": 2.5, "a": 2}', 2500.0),
    ]


def test_a_compressed_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.ndjson.gz"
    log.write_bytes(gzip.compress(LINES))
    assert [entry.key for entry in read_log(str(log), Fields("key"))] == [b"k1", b"7"]


def test_a_csv_row_becomes_a_json_object(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("key,a,b,name\r\n007,1,2.50,x\r\né,,-1e3,\r\n", encoding="utf-8")
    entries = list(read_log(str(log), Fields("key")))
    assert [entry.key for entry in entries] == [b"007", "é".encode()]
    assert [json.loads(entry.value) for entry in entries] == [
        {"key": "007", "a": 1, "b": 2.5, "name": "x"},
        {"key": "é", "a": None, "b": -1000.0, "name": None},
    ]


def test_a_csv_file_is_read_as_it_is_written_in_germany(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("key;a;when\nk1;1,5;03.02.2024 04:05\n", encoding="latin-1")
    form = TableForm(";", ",", "latin-1")
    fields = Fields("key", "when", "%d.%m.%Y %H:%M", "Europe/Berlin", form)
    (entry,) = read_log(str(log), fields)
    assert json.loads(entry.value) == {"key": "k1", "a": 1.5, "when": "03.02.2024 04:05"}
    assert entry.time_ms == datetime(2024, 2, 3, 3, 5, tzinfo=UTC).timestamp() * 1000


def test_key_and_time_may_be_members_of_members(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"meta": {"id": 7.0, "at": "2024-02-03T04:05:06Z"}},
        {"meta.id": "own", "meta": {"id": "x", "at": "1970-01-01"}},
    ]
    log.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    entries = list(read_log(str(log), Fields("meta.id", "meta.at", "iso")))
    assert [entry.key for entry in entries] == [b"7", b"own"]
    assert [entry.time_ms for entry in entries] == [1_706_933_106_000, 0]


def test_one_field_may_be_key_and_time(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"t": 12}')
    (entry,) = read_log(str(log), Fields("t", "t", "s"))
    assert (entry.key, entry.time_ms) == (b"12", 12_000)


@pytest.mark.parametrize("unit", ["ms", "s", "us", "ns", "iso"])
def test_a_time_that_is_not_needed_may_be_none(tmp_path: Path, unit: str) -> None:
    log = tmp_path / "log.jsonl"
    texts = ['"x"', "null", "1e99", "1" * 400, "1.5", "2", '"2024-02-03T04:05:06Z"']
    log.write_text("\n".join(f'{{"key":"k","time":{text}}}' for text in texts))
    times = [e.time_ms for e in read_log(str(log), Fields("key", "time", unit, time_needed=False))]
    each = {"ms": 1.0, "s": 1e3, "us": 1e-3, "ns": 1e-6}.get(unit, math.nan)
    last = 1_706_933_106_000 if unit == "iso" else math.nan
    expected = [*[math.nan] * 4, 1.5 * each, 2 * each, last]
    assert times == pytest.approx(expected, nan_ok=True)


def test_a_parquet_row_becomes_a_json_object(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    log = tmp_path / "log.parquet"
    table = pyarrow.table({"key": ["a", "b"], "x": [1.5, None], "time": [1, 2]})
    pyarrow.parquet.write_table(table, log)
    entries = list(read_log(str(log), Fields("key", "time")))
    assert [(e.key, e.time_ms) for e in entries] == [(b"a", 1.0), (b"b", 2.0)]
    assert json.loads(entries[1].value) == {"key": "b", "x": None, "time": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"time": 1}', "field 'key': expected text or a number, got none"),
        (b'{"key": null, "time": 1}', "field 'key': expected text or a number, got none"),
        (b'{"key": true, "time": 1}', "field 'key': expected text or a number, got none"),
        (b'{"key": ["k"], "time": 1}', "$.key"),
        (b'{"key": "k", "time": "noon"}', "field 'time': expected a number, got a text"),
        (b'{"key": "k", "time": 1e99}', "field 'time': the event time is out of range"),
        (b'{"key": "k"}', "field 'time': expected an event time, got none"),
        (b'{"key": "k", "time": 1', "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"key": "\xff", "time": 1}', "utf-8"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path: Path, line: bytes, said: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"key": "k", "time": 1}\n' + line)
    with pytest.raises(EventLogError) as error:
        list(read_log(str(log), Fields("key", "time")))
    assert str(error.value).startswith(f"{log}, line 2: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", "log.xlsx", "log"])
def test_a_log_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.xlsx").touch()
    with pytest.raises(Crash, match="expected"):
        list(read_log(str(tmp_path / name), Fields("key")))


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl.gz", "log.csv"])
def test_a_log_that_is_not_what_its_name_says_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff{}\n\xfe")
    with pytest.raises(Crash) as error:
        list(read_log(str(tmp_path / name), Fields("key")))
    assert str(error.value).startswith(str(tmp_path / name))


def test_rows_of_a_log_without_a_key_field_have_the_files_name_as_their_key(tmp_path: Path) -> None:
    log = tmp_path / "pump-7.csv"
    log.write_text("a\n1\n")
    assert list(read_log(str(log), Fields(None))) == [Entry(b"pump-7", b'{"a":1}', 0.0)]


def test_standard_input_without_a_key_field_is_refused() -> None:
    with pytest.raises(EventLogError, match="standard input: expected --key FIELD"):
        list(read_log("-", Fields(None)))
