"""Labels that come later are joined by key and time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from keyfold.training.config import Config, Data, Labels, SettingsError, Split
from keyfold.training.data import DataError, read_log
from keyfold.training.delayed import with_labels

NAN = float("nan")


def config(folder: Path, labels: list[dict[str, object]], **settings: object) -> Config:
    events = [{"key": k, "t": t, "a": 1.0} for t in range(0, 50, 10) for k in ("p", "q")]
    for name, rows in (("events", events), ("labels", labels)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    data = Data(
        features=("a",), label="bad", kind="regression", time_field="t", time_unit="s",
        files=(str(folder / "events.jsonl"),),
    )  # fmt: skip
    labelled = Labels(files=(str(folder / "labels.jsonl"),), within_s=15.0)
    split = Split(by="order", validation_share=0.2)
    return replace(Config(data, split, labels=labelled), **settings)  # type: ignore[arg-type]


def joined(settings: Config) -> dict[str, list[float]]:
    log = with_labels(read_log(settings), settings)
    return {sequence.key: sequence.labels.tolist() for sequence in log.sequences}


def test_an_event_gets_its_keys_first_label_within_the_time_allowed(tmp_path: Path) -> None:
    labels = [{"key": "p", "t": 42, "bad": 2}, {"key": "p", "t": 10, "bad": 1}]
    found = joined(config(tmp_path, labels))
    assert np.array_equal(found["p"], [1, 1, NAN, 2, 2], equal_nan=True)
    assert np.isnan(found["q"]).all()


def test_classes_may_be_known_from_the_later_log_alone(tmp_path: Path) -> None:
    labels = [{"key": "q", "t": 0, "bad": "yes"}, {"key": "p", "t": 0, "bad": "no"}]
    settings = config(tmp_path, labels)
    settings = replace(settings, data=replace(settings.data, kind="classification"))
    log = with_labels(read_log(settings), settings)
    assert log.outputs.names == ("no", "yes")
    assert [sequence.labels[0] for sequence in log.sequences] == [0, 1]


def test_labels_that_fit_no_event_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"within 15\.0 s \(labels\.within_s\).*got none that fits"):
        joined(config(tmp_path, [{"key": "p", "t": 500, "bad": 1}]))


def test_a_bad_label_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)labels\.jsonl, line 1: field 'bad': expected"):
        joined(config(tmp_path, [{"key": "p", "t": 0, "bad": "x"}]))


def test_labels_need_a_name_for_what_is_predicted() -> None:
    with pytest.raises(SettingsError, match=r"labels\.files: expected data\.label"):
        Config(
            Data(features=("a",), files=("e.csv",)),
            Split(by="order", validation_share=0.2),
            labels=Labels(files=("l.csv",)),
        )
