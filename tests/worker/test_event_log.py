"""Event logs: JSON lines, CSV and Parquet become records; a bad row is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from keyfold.worker.event_log import Entry, EventLogError, Fields, read_log

LINES = b'{"key": "k1", "time": 1, "a": 0.10}\n\n{"key": 7, "time": 2.5, "a": 2}\n'


def test_a_json_line_is_sent_byte_for_byte_under_the_key_fields_text(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES)
    assert list(read_log(str(log), Fields("key", "time", 1000.0))) == [
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
        (b'{"time": 1}', "`key`"),
        (b'{"key": null, "time": 1}', "field 'key'"),
        (b'{"key": 1.5, "time": 1}', "field 'key'"),
        (b'{"key": "k", "time": "noon"}', "$.time"),
        (b'{"key": "k"}', "`time`"),
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
    with pytest.raises(EventLogError, match="expected"):
        list(read_log(str(tmp_path / name), Fields("key")))


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl.gz", "log.csv"])
def test_a_log_that_is_not_what_its_name_says_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff{}\n\xfe")
    with pytest.raises(EventLogError) as error:
        list(read_log(str(tmp_path / name), Fields("key")))
    assert str(error.value).startswith(str(tmp_path / name))
