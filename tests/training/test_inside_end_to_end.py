"""Texts beside numbers, from a log to a proven bundle and its answers, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.export.text import END
from keyfold.training.cli import main as train
from keyfold.training.config import read_config
from keyfold.training.data import DataError, read_log
from keyfold.training.learned import learn
from keyfold.training.split import split
from keyfold.worker.verify.cli import main as verify

pytestmark = KERAS
SMALL = ("--set", "model.units=16", "--set", "model.embedding=6", "--set", "fit.window=5",
         "--set", "fit.threads=1", "--set", "model.encoder_units=8",
         "--set", "fit.learning_rate=0.02")  # fmt: skip
SETTINGS = """[data]
files = ["log.csv"]
time_field = "at"
text = "line"
features = ["heat", "site"]
categories = ["site"]
missing_last = ["heat"]
since_last = true
label = "mood"
kind = "classification"
[text]
tokenizer = "word"
width = 4
[split]
by = "key"
validation_share = 0.2
test_share = 0.2
"""


def write_log(file: Path, count: int = 500) -> list[dict[str, Any]]:
    """Texts of which one word says the mood, the other way round where it is hot."""
    draw = np.random.default_rng(0)
    rows, last = [], dict.fromkeys(range(20), 0.0)
    for number in range(count):
        key, word = number % 20, str(draw.choice(["good", "bad"]))
        heat = float(draw.integers(0, 2)) if draw.random() < 0.8 else None
        last[key] = last[key] if heat is None else heat
        words = [*draw.choice(["a", "day", "it"], draw.integers(0, 3)), word]
        mood = "glad" if (word == "good") == (last[key] == 0) else "sad"
        rows.append({"key": f"k{key}", "at": number * 1000, "line": " ".join(words), "heat": heat,
                     "site": str(draw.choice(["north", "south"])), "mood": mood})  # fmt: skip
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    file.write_text("\n".join([",".join(rows[0]), *lines]), encoding="utf-8")
    return rows


def config(folder: Path, *sets: str) -> Any:
    (folder / "training.toml").write_text(SETTINGS, encoding="utf-8")
    return read_config(folder / "training.toml", sets, environment={})


def test_texts_beside_numbers_become_a_bundle_and_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_log(tmp_path / "log.csv")
    config(tmp_path)
    assert train(["training.toml", *SMALL, "--set", "fit.passes=25"]) == 0
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["test"]["accuracy"] > 0.9
    capsys.readouterr()
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert train(["evaluate", "runs/latest", "log.jsonl", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    manifest = contract.load(path).manifest
    assert manifest.version == "1.3"
    assert manifest.features.columns[-5:] == (
        "seconds since last", "line[0]", "line[1]", "line[2]", "line[3]",
    )  # fmt: skip
    answers = []
    for name in ("log.csv", "log.jsonl"):
        arguments = ["score", name, str(path), "--out", "out.jsonl", "--key", "key"]
        assert verify(arguments) == 0
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        answers.append([one["output"] for one in found])
    assert answers[0] == answers[1]
    right = [one["label"] == row["mood"] for one, row in zip(answers[0], rows, strict=True)]
    assert np.mean(right) == pytest.approx(judged["accuracy"], abs=0.005)
    # A child begins with its parent's vocabulary, and reads texts as it does.
    small = [*SMALL, "--set", "fit.passes=1", "--parent", "runs/latest"]
    assert train(["training.toml", *small]) == 0
    again = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    worst = metrics["metrics"]["test"]["cross_entropy"] + 0.1
    assert again["metrics"]["test"]["cross_entropy"] <= worst
    assert train(["training.toml", *small, "--set", "model.encoders=mean"]) == 1
    assert "model.encoders: expected ['convolution']" in capsys.readouterr().err
    assert train(["training.toml", *small, "--set", "text.width=5"]) == 1
    assert "text.width: expected 4" in capsys.readouterr().err


def test_columns_are_what_the_training_part_taught(tmp_path: Path) -> None:
    rows = write_log(tmp_path / "log.csv", 60)
    settings = config(tmp_path, f"data.files={tmp_path / 'log.csv'}")
    log = read_log(settings)
    assert log.sequences[0].documents[0] == rows[0]["line"]
    log = learn(log, split(log.sequences, settings.split).train, settings.text)
    text = log.features.text
    assert text is not None
    assert set(text.symbols) <= {"a", "day", "it", "good", "bad"}
    names = log.features.columns
    assert names == (
        "heat", "heat?", "site=north", "site=south", "seconds since last",
        "line[0]", "line[1]", "line[2]", "line[3]",
    )  # fmt: skip
    for number, sequence in enumerate(log.sequences):
        mine = [row for row in rows if row["key"] == sequence.key]
        assert sequence.key == f"k{number}"
        assert sequence.x.shape == (3, len(names))
        assert sequence.documents == ()
        for x, row in zip(sequence.x, mine, strict=True):
            numbers = [text.symbols.index(word) + 2 for word in row["line"].split()]
            assert x[5:].tolist() == [*numbers, *[END] * (4 - len(numbers))]
            assert x[1] == (row["heat"] is None)
            assert x[2:4].tolist() == [row["site"] == "north", row["site"] == "south"]


@pytest.mark.parametrize("name", ["line", "heat"])
def test_a_column_that_no_event_has_is_refused_by_its_setting(tmp_path: Path, name: str) -> None:
    write_log(tmp_path / "log.csv", 20)
    what = "data.text=gone" if name == "line" else 'data.features=["site", "gone"]'
    sets = [f"data.files={tmp_path / 'log.csv'}", what]
    sets += ["data.missing_last=[]"] if name == "heat" else []
    setting = "text" if name == "line" else "features"
    with pytest.raises(DataError, match=rf"data\.{setting}: expected a column of .*got 'gone'"):
        read_log(config(tmp_path, *sets))


def test_what_is_no_text_counts_as_a_reject_in_training(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = write_log(tmp_path / "log.csv", 40)
    rows[3]["line"], rows[4]["heat"] = None, "hot"
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = f"data.files={tmp_path / 'log.jsonl'}"
    log = read_log(config(tmp_path, files, "data.max_reject_share=0.1"))
    assert (log.records, log.rejected) == (40, 2)
    assert "field 'line': expected a text, got none" in log.rejects[0]
    assert "$.heat" in log.rejects[1]
    assert sum(len(one.documents) for one in log.sequences) == 38


def test_numbers_are_forecast_with_a_text_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.csv", 300)
    (tmp_path / "training.toml").write_text(
        '[data]\nfiles = ["log.csv"]\ntime_field = "at"\ntext = "line"\nfeatures = ["heat"]\n'
        'missing = "last"\n[text]\nwidth = 4\ntokenizer = "byte"\n[model]\nencoders = ["bi_gru"]\n'
        '[split]\nby = "order"\nvalidation_share = 0.2\n',
        encoding="utf-8",
    )
    assert train(["training.toml", *SMALL, "--set", "fit.passes=2"]) == 0
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    arguments = ["score", "log.csv", str(path), "--out", "out.jsonl", "--key", "key"]
    assert verify(arguments) == 0
    last = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])
    assert set(last["output"]) == {"forecast", "anomaly"}
