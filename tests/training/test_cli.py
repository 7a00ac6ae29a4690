"""keyfold-train from a log to a run folder, and on to a bundle, on a log of a few keys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from keyfold.training.cli import main

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15 with numpy 2 warns in its own code when weights are read; gone when it does not.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

CONFIG = """
[data]
files = ["{log}"]
features = ["a", "b"]
label = "y"
kind = "{kind}"
time_field = "t"
[split]
by = "key"
validation_share = 0.25
test_keys = ["k0"]
[model]
units = [4]
[fit]
rows = 4
window = 8
passes = 2
"""


def write(folder: Path, kind: str = "classification") -> Path:
    draw = np.random.default_rng(0)
    events = [
        {
            "key": f"k{i % 9}",
            "t": 1000 * i,
            "a": float(draw.normal()),
            "b": float(draw.normal(5)),
            "y": ("up" if draw.random() < 0.5 else "down") if kind == "classification" else i,
        }
        for i in range(200)
    ]
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    config = folder / "small.toml"
    config.write_text(CONFIG.format(log=log, kind=kind), encoding="utf-8")
    return config


def test_a_run_folder_holds_what_export_and_a_reader_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main([str(write(tmp_path)), "--out", str(runs)]) == 0
    latest = runs / "latest"
    assert latest.is_symlink()
    assert {file.name for file in latest.iterdir()} == {
        "model.keras",
        "spec.json",
        "config.json",
        "metrics.json",
        "loss.png",
    }
    metrics = json.loads((latest / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["held_out_keys"]["test"] == ["k0"]
    assert metrics["metrics"]["test"]["events"] == 23
    assert len(metrics["data"]["sha256"]) == 64
    assert (latest / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"next: keyfold-export {latest.resolve()}" in capsys.readouterr().out


def test_a_second_run_is_another_folder_and_becomes_the_latest(tmp_path: Path) -> None:
    config, runs = str(write(tmp_path)), tmp_path / "runs"
    seen = set()
    for _ in range(2):
        assert main([config, "--out", str(runs), "--set", "fit.passes=1"]) == 0
        seen.add((runs / "latest").resolve())
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_evaluate_gives_the_same_numbers_as_training_did(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main([str(write(tmp_path, kind)), "--out", str(runs)]) == 0
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(line for line in lines if '"k0"' in line), encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", str(runs / "latest"), str(held_out), "--json"]) == 0
    metrics = json.loads((runs / "latest" / "metrics.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == pytest.approx(metrics["metrics"]["test"])


def test_a_run_can_be_exported(tmp_path: Path) -> None:
    from keyfold.export import bundle
    from keyfold.export.cli import main as export

    runs, bundles = tmp_path / "runs", tmp_path / "bundles"
    assert main([str(write(tmp_path, "regression")), "--out", str(runs)]) == 0
    assert export([str(runs / "latest"), "--out", str(bundles)]) == 0
    (path,) = bundles.iterdir()
    manifest = bundle.load(path).manifest
    assert manifest.outputs.names == ("y",)
    assert manifest.features.columns == ("a", "b")
    assert manifest.events.time_field == "t"


def test_an_unknown_setting_ends_with_one_line_and_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main([str(write(tmp_path)), "--out", str(runs), "--set", "fit.epochs=3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("keyfold-train: --set fit.epochs: unknown setting fit.epochs")
    assert error.count("\n") == 1
    assert not runs.exists()


def test_a_folder_that_is_no_run_cannot_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path), "log.jsonl"]) == 1
    assert "spec.json: expected a training run's file" in capsys.readouterr().err


def test_dataset_cmapss_prints_where_to_get_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "cmapss", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "NASA Prognostics" in capsys.readouterr().err
