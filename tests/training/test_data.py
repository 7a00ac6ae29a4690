"""Event logs become per-key sequences, and rejects are named by file, row and field."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from keyfold.export.tables import TableError
from keyfold.training import show
from keyfold.training.config import Config, Data, Labels, Split
from keyfold.training.data import DataError, EventLog, build, read_log
from keyfold.training.sources import Chunk, SourceError, parse_time, read_files
from keyfold.worker.score.live_error import label_of, label_text

DATA = Data(features=("a", "b"), label="y", kind="regression", time_field="t", max_reject_share=1.0)
EVENTS: tuple[dict[str, Any], ...] = (
    {"key": "k1", "t": 1, "a": 1.0, "b": 2, "y": 10},
    {"key": "k2", "t": 2, "a": 3.0, "b": 4, "y": 20},
    {"key": "k1", "t": 3, "a": 5.0, "b": 6, "y": None},
    {"key": "k1", "t": 2, "a": 7.0, "b": 8, "y": 30.5},
)


def write_jsonl(file: Path, events: Iterable[object]) -> str:
    text = "".join(json.dumps(event) + "\n" for event in events)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return str(file)


def read(data: Data, *files: str) -> EventLog:
    return build(data, read_files(files), keyed=False)


def topic(data: Data, *records: tuple[bytes | None, bytes | None]) -> EventLog:
    keys, values = zip(*records, strict=True)
    places = [f"partition 0 offset {offset}" for offset in range(len(records))]
    times = np.arange(len(records), dtype=np.int64)
    return build(data, [Chunk("events", places, keys, values, times)], keyed=True)


def same(one: EventLog, other: EventLog) -> bool:
    return all(
        a.key == b.key
        and np.array_equal(a.x, b.x)
        and np.array_equal(a.times_ms, b.times_ms)
        and np.array_equal(a.labels, b.labels, equal_nan=True)
        for a, b in zip(one.sequences, other.sequences, strict=True)
    )


def written(file: Path) -> str:
    """Write 120 rows of a key: the first of them do not tell what the others have."""
    if file.suffix == ".csv":
        file.write_text("key,t,a,y,end\n" + "k,1,2,,\n" * 119 + "k,1,2,3,1\n")
        return str(file)
    rows: list[dict[str, Any]] = [{"key": "k", "t": 1, "a": 2}] * 119
    return write_jsonl(file, [*rows, {**rows[0], "y": 3, "end": 1}])


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
@pytest.mark.parametrize("setting", ["label", "end_field"])
def test_a_label_or_an_end_that_no_event_has_is_told_with_the_columns_there_are(
    tmp_path: Path, name: str, setting: str
) -> None:
    file = written(tmp_path / name)
    data = Data(("a",), label="y", kind="regression", end_field="end", files=(file,))
    config = Config(data, Split("order", validation_share=0.1))
    assert read_log(config).count == 120  # one of them late in the log has both
    wrong: dict[str, Any] = {setting: "activty"}
    with pytest.raises(DataError) as error:
        read_log(replace(config, data=replace(data, **wrong)))
    assert str(error.value).startswith(
        f"data.{setting}: expected a column of {file}, got 'activty'; there are: key, t, a"
    )


def test_labels_in_a_log_of_their_own_need_no_column_of_the_events(tmp_path: Path) -> None:
    data = Data(("a",), label="later", kind="regression", files=(written(tmp_path / "log.jsonl"),))
    split = Split("order", validation_share=0.1)
    assert read_log(Config(data, split, labels=Labels(files=("labels.csv",)))).count == 120


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("time_field", {"time_field": "zeit"}),
        ("key_field", {"key_field": "zeit"}),
        ("features", {"features": ("a", "zeit")}),
    ],
)
def test_a_setting_that_names_no_column_is_told_with_the_columns_there_are(
    tmp_path: Path, name: str, setting: str, wrong: dict[str, Any]
) -> None:
    file = tmp_path / name
    if name == "log.csv":
        file.write_text("key,t,a,b\n" + "k,1,2,3\n" * 20)
    else:
        write_jsonl(file, [{"key": "k", "t": 1, "a": 2, "b": 3}] * 20)
    with pytest.raises(DataError) as error:
        read(replace(DATA, label="", kind="", **wrong), str(file))
    assert str(error.value) == (
        f"data.{setting}: expected a column of {file}, got 'zeit'; there are: key, t, a, b"
    )


def test_a_wrong_name_of_a_field_that_may_be_missing_is_told_for_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("key,t,a,b\nk,1,2,3\n")
    settings = replace(DATA, label="", kind="", features=("a", "Drukc"), missing="last")
    with pytest.raises(DataError, match=r"data\.features: .* got 'Drukc'; there are: key, t, a, b"):
        read(settings, str(file))


def test_a_topic_whose_time_goes_back_is_warned_of_and_left_as_it_is() -> None:
    records = [(b"k", b'{"t":%d,"a":%d,"b":0}' % (t, t)) for t in (1, 3, 2)]
    log = topic(replace(DATA, label="", kind=""), *records)
    assert log.sequences[0].times_ms.tolist() == [1, 3, 2]
    console = Console(record=True, width=80, file=io.StringIO())
    show.log(log, console)
    assert console.export_text().splitlines()[-1] == (
        "  warning: 1 rows stood before an earlier row of their key; kept in the topic's order, as "
        "when served"
    )


def test_rows_of_a_file_are_sorted_by_time_key_by_key(tmp_path: Path) -> None:
    log = read(DATA, write_jsonl(tmp_path / "log.jsonl", EVENTS))
    first, second = log.sequences
    assert (first.key, second.key) == ("k1", "k2")
    assert first.x.tolist() == [[1, 2], [7, 8], [5, 6]]
    assert first.times_ms.tolist() == [1, 2, 3]
    assert np.isnan(first.labels).tolist() == [False, False, True]
    assert (log.records, log.rejected, log.count) == (4, 0, 4)
    assert log.disordered == 1


def test_a_topics_records_keep_their_order(tmp_path: Path) -> None:
    records = [(event["key"].encode(), json.dumps(event).encode()) for event in EVENTS]
    log = topic(DATA, *records)
    assert log.sequences[0].times_ms.tolist() == [1, 3, 2]  # as the worker folds them
    assert (log.disordered, log.is_sorted) == (1, False)


def test_every_file_format_gives_the_same_sequences(tmp_path: Path) -> None:
    logs = [
        read(DATA, write_jsonl(tmp_path / "log.jsonl", EVENTS)),
        read(DATA, write_jsonl(tmp_path / "packed.jsonl.gz", EVENTS)),
    ]
    rows = [",".join("" if v is None else str(v) for v in event.values()) for event in EVENTS]
    (tmp_path / "log.csv").write_text("\n".join(["key,t,a,b,y", *rows, ""]), encoding="utf-8")
    logs.append(read(DATA, str(tmp_path / "log.csv")))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(EVENTS), tmp_path / "log.parquet")
    logs.append(read(DATA, str(tmp_path / "log.parquet")))
    assert all(same(logs[0], log) for log in logs[1:])


def test_a_topic_gives_the_same_sequences_as_a_file(tmp_path: Path) -> None:
    events = EVENTS[:3]
    log = read(DATA, write_jsonl(tmp_path / "log.jsonl", events))
    records = [(event["key"].encode(), json.dumps(event).encode()) for event in events]
    assert same(log, topic(DATA, *records))


def test_the_record_key_wins_over_a_field_of_the_same_name() -> None:
    log = topic(DATA, (b"\xff", b'{"key": [1], "t": 0, "a": 1, "b": 2, "y": 3}'))
    assert [sequence.key for sequence in log.sequences] == ["\\xff"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"key":"k","t":0,"a":1,"y":1}', r"line 2: .*\bb\b"),
        ('{"key":"k","t":0,"a":1,"b":"x","y":1}', r"line 2: .*\bb\b"),
        ('{"key":"k","t":0,"a":1e39,"b":1,"y":1}', "line 2: field 'a' overflows float32"),
        ('{"t":0,"a":1,"b":1,"y":1}', "line 2: field 'key': expected a key"),
        ('{"key":"k","t":0,"a":1,"b":1,"y":"high"}', "line 2: field 'y': expected a finite number"),
        ('{"key":"k","t":0,"a":1,"b":1,"y":true}', r"line 2: field .*\by\b"),
        ('{"key":"k","t":0,"a":1,"b":1,"y":1e39}', "line 2: field 'y' overflows float32"),
        (f'{{"key":"k","t":0,"a":1,"b":1,"y":-{10**400}}}', "line 2: field 'y' overflows float32"),
        ("{not json", "line 2: the record's value is not valid JSON"),
    ],
)
def test_a_reject_is_named_by_file_line_and_field(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "log.jsonl"
    good = json.dumps(EVENTS[0])
    file.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    log = read(DATA, str(file))
    assert (log.count, log.rejected) == (2, 1)
    (reject,) = log.rejects
    assert str(file) in reject
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(reject)


def test_too_many_rejects_stop_the_run_and_are_shown(tmp_path: Path) -> None:
    strict = Data(features=("a", "b"), label="y", kind="regression", max_reject_share=0.4)
    file = write_jsonl(tmp_path / "log.jsonl", [EVENTS[0], {"key": "k"}])
    with pytest.raises(DataError, match=r"(?s)at most 40\.0% rejects.*got 1 of 2.*line 2"):
        read(strict, file)


def test_a_log_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected events, got none"):
        read(DATA, write_jsonl(tmp_path / "log.jsonl", []))


def test_a_null_value_is_a_reject_or_starts_the_key_anew() -> None:
    event = (b"k", json.dumps(EVENTS[0]).encode())
    log = topic(DATA, event, (b"k", None), event)
    assert [len(sequence) for sequence in log.sequences] == [2]
    assert log.rejects == ("events, partition 0 offset 1: the record's value is null",)
    resets = Data(features=("a", "b"), label="y", kind="regression", tombstone="reset")
    log = topic(resets, event, (b"k", None), event)
    assert [(s.key, len(s)) for s in log.sequences] == [("k", 1), ("k", 1)]
    assert log.rejected == 0


def test_classes_are_sorted_or_as_the_settings_order_them(tmp_path: Path) -> None:
    events = [{"key": "k", "a": 1, "y": label} for label in ("run", "walk", None, "lie")]
    file = write_jsonl(tmp_path / "log.jsonl", events)
    found = read(Data(features=("a",), label="y", kind="classification"), file)
    assert found.outputs.names == ("lie", "run", "walk")
    labels = found.sequences[0].labels
    assert np.array_equal(labels, np.array([1, 2, np.nan, 0], np.float32), equal_nan=True)
    named = Data(features=("a",), label="y", kind="classification", classes=("walk", "run", "lie"))
    assert read(named, file).sequences[0].labels.tolist()[0] == 1


def test_a_class_that_the_settings_do_not_name_is_a_reject(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "log.jsonl", [{"key": "k", "a": 1, "y": c} for c in "pqr"])
    settings = Data(
        features=("a",),
        label="y",
        kind="classification",
        classes=("p", "q"),
        max_reject_share=0.5,
    )
    assert "line 3: field 'y'" in read(settings, file).rejects[0]


def test_the_hash_depends_on_the_records_and_their_order(tmp_path: Path) -> None:
    logs = [
        read(DATA, write_jsonl(tmp_path / f"{i}.jsonl", events))
        for i, events in enumerate((EVENTS, EVENTS, EVENTS[::-1]))
    ]
    assert logs[0].sha256 == logs[1].sha256 != logs[2].sha256


def test_integer_keys_are_read_as_their_digits(tmp_path: Path) -> None:
    log = read(DATA, write_jsonl(tmp_path / "log.jsonl", [{**EVENTS[0], "key": 7}]))
    assert log.sequences[0].key == "7"


def test_a_missing_or_unknown_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"absent\.jsonl: expected an event log"):
        read(DATA, str(tmp_path / "absent.jsonl"))
    with pytest.raises(TableError, match=r"log\.txt: expected one of \.csv"):
        read(DATA, str(tmp_path / "log.txt"))


def test_a_time_without_an_offset_is_utc() -> None:
    assert parse_time("1970-01-01T00:00:01") == 1000
    assert parse_time("1970-01-01T01:00:01+01:00") == 1000
    with pytest.raises(SourceError, match="ISO 8601"):
        parse_time("yesterday")


def test_a_time_may_be_so_long_ago() -> None:
    now = datetime(2026, 1, 8, tzinfo=UTC)
    assert parse_time("-7d", now) == parse_time("2026-01-01")
    assert parse_time("-36h", now) == parse_time("2026-01-06T12:00:00")


def silent_after(reset_after_s: float | None, *times: int) -> list[list[int]]:
    """Return the times of each sequence of a key with events at these times, in ms."""
    settings = Data(
        features=("a",), label="y", kind="regression", time_field="t", reset_after_s=reset_after_s
    )
    records = [(b"k", json.dumps({"t": t, "a": 1, "y": 2}).encode()) for t in times]
    log = topic(settings, *records)
    assert log.events.reset_after_ms == settings.reset_after_ms
    assert {sequence.key for sequence in log.sequences} == {"k"}
    return [sequence.times_ms.tolist() for sequence in log.sequences]


def test_a_key_silent_for_longer_than_the_limit_starts_anew() -> None:
    assert silent_after(1.0, 0, 1000, 2001, 2002) == [[0, 1000], [2001, 2002]]
    assert silent_after(0.001, 0, 1, 3) == [[0, 1], [3]]
    assert silent_after(None, 0, 10**12) == [[0, 10**12]]


def test_silence_counts_from_the_last_event_in_log_order() -> None:
    assert silent_after(1.0, 3000, 0, 1001) == [[3000, 0], [1001]]


def test_other_keys_and_rejects_do_not_break_a_silence() -> None:
    settings = Data(
        features=("a",), label="y", kind="regression", time_field="t", reset_after_s=1.0,
        max_reject_share=1.0,
    )  # fmt: skip
    records = [
        (key, json.dumps({"t": t, "a": a, "y": 2}).encode())
        for key, t, a in [(b"k", 0, 1), (b"j", 900, 1), (b"k", 900, "x"), (b"k", 1001, 1)]
    ]
    log = topic(settings, *records)
    assert [(s.key, len(s)) for s in log.sequences] == [("k", 1), ("j", 1), ("k", 1)]


def test_sequences_of_a_key_are_in_the_order_that_sorting_gave_them(tmp_path: Path) -> None:
    data = replace(DATA, reset_after_s=1.0)
    events = [{**EVENTS[0], "t": t} for t in (9000, 9001, 0, 1)]
    log = read(data, write_jsonl(tmp_path / "log.jsonl", events))
    assert [s.times_ms.tolist() for s in log.sequences] == [[0, 1], [9000, 9001]]


def test_a_class_that_is_a_number_has_the_same_name_in_training_and_later(tmp_path: Path) -> None:
    labels = [1000001.0, 1000002.0, 1000003, 3, 3.0, 0.1234567, 0.12345678, 2**53 + 1, True, "a"]
    names = ["1000001", "1000002", "1000003", "3", "3", "0.1234567", "0.12345678",
             "9007199254740993", "true", "a"]  # fmt: skip
    file = write_jsonl(tmp_path / "log.jsonl", [{"key": "k", "a": 1, "y": y} for y in labels])
    log = read(Data(features=("a",), label="y", kind="classification"), file)
    assert [log.outputs.names[int(number)] for number in log.sequences[0].labels] == names
    later = [label_of(label) for label in labels]
    assert [None if label is None else label_text(label) for label in later] == names


def local(folder: Path, *times: str, zone: str = "Europe/Berlin") -> tuple[list[float], EventLog]:
    """Return the order in which rows at these local times are learned."""
    rows = "".join(f"k,{time},{number}\n" for number, time in enumerate(times))
    (folder / "log.csv").write_text("key,t,a\n" + rows, encoding="utf-8")
    data = Data(features=("a",), time_field="t", time_unit="iso", time_zone=zone)
    log = read(data, str(folder / "log.csv"))
    return log.sequences[0].x[:, 0].tolist(), log


def test_an_hour_that_a_zone_has_twice_is_learned_in_the_order_of_the_log(tmp_path: Path) -> None:
    night = [f"2025-10-26 {hour:02d}:{m}:00" for hour in (1, 2, 2, 3) for m in (10, 30, 59)]
    order, log = local(tmp_path, *night)
    assert order == list(range(12))
    assert (log.doubled, log.disordered) == (3, 0)
    assert np.diff(log.sequences[0].times_ms).min() < 0  # as the decoder reads them when served
    order, log = local(tmp_path, *night, zone="UTC")
    assert order == [0, 1, 2, 3, 6, 4, 7, 5, 8, 9, 10, 11]
    assert (log.doubled, log.disordered) == (0, 1)


def test_rows_out_of_order_are_sorted_around_a_doubled_hour(tmp_path: Path) -> None:
    night = [f"2025-10-26 {hour:02d}:{m}:00" for hour in (2, 2, 3) for m in (10, 30)]
    order, log = local(tmp_path, "2025-10-27 00:00:00", *night, "2025-10-26 01:00:00")
    assert order == [7, 1, 2, 3, 4, 5, 6, 0]
    assert (log.doubled, log.disordered) == (2, 2)
    # Clocks going forward, and a late row from behind the hour, are no second pass.
    order, log = local(tmp_path, "2025-03-30 03:30:00", "2025-03-30 01:30:00")
    assert (order, log.doubled) == ([1, 0], 0)
    order, log = local(tmp_path, "2025-10-26 03:30:00", "2025-10-26 02:30:00")
    assert (order, log.doubled) == ([1, 0], 0)
