"""Labels that come later are joined by key and time."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from keyfold.training import show
from keyfold.training.config import Config, Data, Labels, SettingsError, Split, read_config
from keyfold.training.data import DataError, read_log
from keyfold.training.delayed import with_labels
from keyfold.training.split import split

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


def test_labels_that_belong_to_no_key_or_to_no_event_are_counted_and_named(tmp_path: Path) -> None:
    labels = [{"key": k, "t": t, "bad": 1} for k, t in (("p", 10), ("P", 10), ("q", 900))]
    settings = config(tmp_path, list(labels))
    console = Console(record=True, width=80, file=io.StringIO())
    show.log(with_labels(read_log(settings), settings), console)
    assert console.export_text().splitlines()[-3:] == [
        "  labels: 1 of 3 labels joined events",
        "  labels: 1 of 3 labels belong to no key: P",
        "  labels: 1 of 3 labels belong to no event within 15 s before",
    ]


def test_labels_are_set_up_as_the_readme_says(tmp_path: Path) -> None:
    config(tmp_path, [])
    faults = tmp_path / "faults.csv"
    faults.write_text("key,t,fault\np,10,1\nq,10,0\n")
    file = tmp_path / "training.toml"
    file.write_text(
        f'[data]\nfeatures = ["a"]\nfiles = ["{tmp_path}/events.jsonl"]\ntime_field = "t"\n'
        'time_unit = "s"\nlabel = "fault"\nkind = "classification"\n'
        f'[labels]\nfiles = ["{faults}"]\nwithin_s = 3600\n'
        '[split]\nby = "order"\nvalidation_share = 0.2\n'
    )
    settings = read_config(file, environment={})
    assert [labels[0] for labels in joined(settings).values()] == [1.0, 0.0]
    readme = Path("README.md").read_text()
    for said in ('`label = "fault"` with its `kind`', 'files = ["faults.csv"]', "`csv_encoding`"):
        assert said in readme


def test_a_log_of_labels_may_be_written_otherwise_than_the_events(tmp_path: Path) -> None:
    settings = config(tmp_path, [])
    file = tmp_path / "faults.csv"
    file.write_bytes("key;t;bad;wo\np;10;1,5;Süd\n".encode("latin-1"))
    written = Labels((str(file),), within_s=15.0, csv_separator=";", csv_decimal=",",
                     csv_encoding="latin-1")  # fmt: skip
    assert joined(replace(settings, labels=written))["p"][0] == 1.5


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


def test_a_label_of_a_keys_next_life_says_nothing_of_the_one_before(tmp_path: Path) -> None:
    labels = [{"key": "p", "t": 100, "bad": 7}, {"key": "p", "t": 15, "bad": 1}]
    settings = config(tmp_path, labels)
    log = tmp_path / "events.jsonl"
    anew = [{"key": "p", "t": t, "a": 1.0} for t in (90, 95)]
    log.write_text(log.read_text() + "".join(json.dumps(event) + "\n" for event in anew))
    data = replace(settings.data, reset_after_s=30.0)
    settings = replace(settings, data=data, labels=replace(settings.labels, within_s=100.0))
    read = with_labels(read_log(settings), settings)
    found = [s.labels.tolist() for s in read.sequences if s.key == "p"]
    assert np.array_equal(found[0], [1, 1, NAN, NAN, NAN], equal_nan=True)
    assert found[1] == [7, 7]


BY_TIME = Split(by="time", validation_from="1970-01-01T00:00:35")


@pytest.mark.parametrize(
    ("by", "expected", "of_the_silent"),
    [
        # The first event of p that is held out is at 40 s; by time all from then on is, of all.
        (Split(by="order", validation_share=0.2), [1, 1, 3, NAN], 5),
        (BY_TIME, [1, 1, 3, NAN], NAN),
        (replace(BY_TIME, validation_from="1970-01-01T00:00:22"), [1, 1, NAN], NAN),
    ],
)
def test_a_label_that_came_after_the_split_does_not_train(
    tmp_path: Path, by: Split, expected: list[float], of_the_silent: float
) -> None:
    labels = [{"key": "p", "t": t, "bad": bad} for t, bad in ((12, 1), (24, 3), (40, 4))]
    settings = config(tmp_path, [*labels, {"key": "r", "t": 50, "bad": 5}])
    file = tmp_path / "events.jsonl"
    file.write_text(file.read_text() + '{"key": "r", "t": 0, "a": 1.0}\n')
    settings = replace(settings, labels=replace(settings.labels, within_s=100.0))
    parts = split(with_labels(read_log(settings), settings).sequences, by)
    train = {sequence.key: sequence.labels for sequence in parts.train.sequences}
    assert np.array_equal(train["p"], expected, equal_nan=True)
    assert np.array_equal(train["r"], [of_the_silent], equal_nan=True)
    (held_out,) = [s for s in parts.validation.sequences if s.key == "p"]
    assert held_out.labels[-2:].tolist() == [4, 4]  # what is held out keeps its labels
