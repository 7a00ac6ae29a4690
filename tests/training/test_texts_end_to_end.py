"""From a log of texts to a proven bundle, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.training.cli import main as train
from keyfold.worker.model import Model
from keyfold.worker.verify.cli import main as verify

pytestmark = KERAS
SMALL = ("--set", "model.units=24", "--set", "fit.window=32", "--set", "fit.threads=1")
MOODS = {"glad": ("good", "nice", "fine"), "sad": ("bad", "poor", "grim")}


def write_log(file: Path) -> None:
    """Short texts whose one telling word says the mood."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(600):
        mood = str(draw.choice(list(MOODS)))
        words = [*draw.choice(["a", "day", "it", "was", "so"], 3), draw.choice(MOODS[mood])]
        rows.append({"key": f"k{number % 20}", "line": " ".join(draw.permutation(words)),
                     "mood": mood})  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def settings(folder: Path, more: str) -> None:
    write_log(folder / "log.jsonl")
    (folder / "training.toml").write_text(
        f'[data]\nfiles = ["log.jsonl"]\ntext = "line"\n{more}\n'
        '[split]\nby = "key"\nvalidation_share = 0.2\ntest_share = 0.2\n',
        encoding="utf-8",
    )


def test_texts_become_a_bundle_that_says_their_mood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings(tmp_path, 'label = "mood"\nkind = "classification"\n[text]\ntokenizer = "char"')
    assert train(["training.toml", *SMALL, "--set", "fit.passes=25"]) == 0
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["test"]["accuracy"] > 0.9
    assert metrics["metrics"]["test"]["events"] == 120
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    bundle = contract.load(path)
    text = bundle.manifest.features.text
    assert text is not None
    assert set(text.symbols) == set("".join(["a day it was so", *MOODS["glad"], *MOODS["sad"]]))
    assert bundle.manifest.version == "1.2"
    # Whatever stands beyond a row's length must not end the worker.
    x = np.array([[[2.0], [np.nan]], [[3.0], [1e9]]], np.float32)
    model = Model(bundle)
    states = contract.initial_states(bundle.manifest, 2)
    y, _ = model.step(x, np.ones(2, np.int32), states)
    assert np.isfinite(y[:, 0]).all()


def test_a_trained_tokenizer_reads_other_files_and_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings(tmp_path, 'label = "mood"\nkind = "classification"\n[text]\ntokenizer = "word"')
    assert train(["training.toml", *SMALL, "--set", "fit.passes=8"]) == 0
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    lines = [f'{row["key"]},"{row["line"]}",{row["mood"]}' for row in rows]
    (tmp_path / "log.csv").write_text("\n".join(["key,line,mood", *lines]), encoding="utf-8")
    assert train(["evaluate", "runs/latest", "log.csv", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["events"] == 600
    assert judged["accuracy"] > 0.9
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    arguments = ["score", "log.csv", str(path), "--out", "out.jsonl", "--key", "key"]
    assert verify(arguments) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    right = [one["output"]["label"] == row["mood"] for one, row in zip(found, rows, strict=True)]
    assert np.mean(right) == pytest.approx(judged["accuracy"], abs=0.01)
    # A child begins with its parent's weights and vocabulary.
    more = ["--parent", "runs/latest", "--against", "runs/latest"]
    assert train(["training.toml", *SMALL, "--set", "fit.passes=1", *more]) == 0
    again = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    worst = metrics["metrics"]["test"]["cross_entropy"] + 0.05
    assert again["metrics"]["test"]["cross_entropy"] <= worst
    assert again["against"]["old"] == pytest.approx(metrics["metrics"]["test"]["cross_entropy"])


def test_texts_without_a_label_become_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings(tmp_path, "")
    assert train(["training.toml", *SMALL, "--set", "fit.passes=8"]) == 0
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    judged, naive = metrics["metrics"]["test"], metrics["naive"]["test"]
    assert judged["cross_entropy"] < 0.7 * naive["cross_entropy"]
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    assert contract.load(path).manifest.outputs.names[:2] == ("<end>", "<unknown>")
