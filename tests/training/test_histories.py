"""A key's history is cut where the worker lets it end, whatever order a file has its rows in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export.features import FeatureSpec
from keyfold.export.text import Text
from keyfold.training.config import Data
from keyfold.training.data import DataError, EventLog, build
from keyfold.training.sources import Chunk, read_files
from keyfold.worker.verify.refold import OfflineStep, Refold

DATA = Data(
    features=("a",), label="y", kind="regression", time_field="t", end_field="bye",
    max_reject_share=1.0,
)  # fmt: skip
PAIRS = Data(text="line", target_text="said", time_field="t", end_field="bye", max_reject_share=1.0)


def event(time: int, **members: Any) -> dict[str, Any]:
    return {"key": "k", "t": time, "a": 1.0, "y": 2.0, "bye": False, **members}


def session(times: tuple[int, ...], ends: tuple[int, ...]) -> list[dict[str, Any]]:
    return [event(time, bye=time in ends) for time in times]


def jsonl(folder: Path, events: list[dict[str, Any]]) -> str:
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in events), encoding="utf-8")
    return str(file)


def read(folder: Path, events: list[dict[str, Any]], data: Data = DATA) -> EventLog:
    return build(data, read_files([jsonl(folder, events)]), keyed=False)


def times(log: EventLog) -> list[list[int]]:
    return [sequence.times_ms.tolist() for sequence in log.sequences]


@pytest.mark.parametrize(
    ("order", "disordered"), [((1, 3, 2, 4, 5, 6), 1), ((6, 5, 4, 3, 2, 1), 5)]
)
def test_sessions_are_cut_in_the_order_of_time(
    tmp_path: Path, order: tuple[int, ...], disordered: int
) -> None:
    log = read(tmp_path, session(order, ends=(3, 6)))
    assert times(log) == [[1, 2, 3], [4, 5, 6]]
    assert log.disordered == disordered


def test_a_topics_sessions_are_cut_in_its_own_order() -> None:
    values = [json.dumps(row).encode() for row in session((1, 3, 2, 4), ends=(3,))]
    places = [f"offset {number}" for number in range(4)]
    stamps = np.zeros(4, np.int64)
    log = build(DATA, [Chunk("events", places, [b"k"] * 4, values, stamps)], keyed=True)
    assert times(log) == [[1, 3], [2, 4]]
    assert not log.is_sorted


def test_an_end_and_a_silence_at_the_same_event_cut_once(tmp_path: Path) -> None:
    data = replace(DATA, reset_after_s=1.0)
    assert times(read(tmp_path, session((9000, 1, 2), ends=(2,)), data)) == [[1, 2], [9000]]
    assert times(read(tmp_path, session((9000, 1, 2), ends=()), data)) == [[1, 2], [9000]]


def test_an_event_whose_label_is_refused_still_ends_its_keys_history(tmp_path: Path) -> None:
    log = read(tmp_path, [event(3), event(2, y="bad", bye=True), event(1), event(4)])
    assert times(log) == [[1], [3, 4]]
    assert (log.rejected, log.disordered) == (1, 1)


def test_an_event_that_the_worker_rejects_ends_nothing(tmp_path: Path) -> None:
    rows = [event(1), event(2, a="bad", bye=True), event(3, y="bad", a=None, bye=True), event(4)]
    assert times(read(tmp_path, rows)) == [[1, 4]]


def test_a_log_of_nothing_but_refused_labels_has_no_events(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the event log: expected events, got none"):
        read(tmp_path, [event(1, y="bad", bye=True)])


def test_a_pair_whose_answer_is_refused_still_ends_its_keys_history(tmp_path: Path) -> None:
    # The refused one comes first: nothing may be read where its answer would stand.
    rows = [{"key": "k", "t": time, "line": f"l{time}", "said": "ü"} for time in range(4)]
    rows[0] |= {"bye": 1}
    del rows[0]["said"]
    rows[2] |= {"bye": 1, "said": 5}
    spec = FeatureSpec((), text=Text("line"))
    log = build(PAIRS, read_files([jsonl(tmp_path, rows)]), keyed=False, features=spec)
    assert [s.documents for s in log.sequences] == [("l1",), ("l3",)]
    assert [s.answers for s in log.sequences] == [("ü",), ("ü",)]


def test_a_text_that_is_too_long_to_be_served_ends_nothing(tmp_path: Path) -> None:
    # Bytes decode at any length: that it has too many symbols is told later than its marker.
    rows = [{"key": "k", "t": time, "line": "long" * 9 * (time == 1)} for time in range(3)]
    rows[1]["bye"] = True
    spec = FeatureSpec((), text=Text("line", max_symbols=9))
    data = replace(PAIRS, target_text="")
    log = build(data, read_files([jsonl(tmp_path, rows)]), keyed=False, features=spec)
    assert times(log) == [[0, 2]]


def test_a_table_that_pandas_wrote_ends_sessions_where_it_says_true(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    cells = ["False", "True", "FALSE", "", "false", "0", "1", "False"]
    rows = "".join(f"k,{time},1.0,2.0,{cell}\n" for time, cell in enumerate(cells))
    file.write_text(f"key,t,a,y,bye\n{rows}", encoding="utf-8")
    log = build(DATA, read_files([str(file)]), keyed=False)
    assert times(log) == [[0, 1], [2, 3, 4, 5, 6], [7]]


def test_training_and_the_offline_fold_end_histories_at_the_same_events(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    says_no: list[Any] = ["False", False, 0, "", None, "false"]
    says_so: list[Any] = ["True", True, 1, "x"]
    rows, time = [], 0
    for _ in range(400):
        time += int(draw.choice([1, 2, 1500], p=[0.5, 0.4, 0.1]))
        ends = bool(draw.random() < 0.4)
        marks = says_so if ends else says_no
        row = event(time, key=f"k{draw.integers(3)}", bye=marks[int(draw.integers(len(marks)))])
        rows.append({**row, "y": "bad" if ends and draw.random() < 0.5 else 2.0})
    shuffled = [rows[number] for number in draw.permutation(len(rows))]
    log = read(tmp_path, shuffled, replace(DATA, reset_after_s=1.0))
    learned = {
        (sequence.key, moment): number
        for sequence in log.sequences
        for number, moment in enumerate(sequence.times_ms.tolist(), 1)
    }
    bundle = make_tiny_bundle(
        tmp_path, features=("a",), time_field="t", end_field="bye", reset_after_ms=1000
    )
    refold, served = Refold(OfflineStep(bundle)), {}
    for offset, row in enumerate(rows):
        refold.fold(offset, row["t"], row["key"].encode(), json.dumps(row).encode())
        if row["y"] != "bad":
            served[row["key"], row["t"]] = refold.expected(offset).steps
    assert learned == served
    assert log.rejected > 30
    assert len(log.sequences) > 100
