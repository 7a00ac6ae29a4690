"""keyfold-train from a log to a run folder, and on to a bundle, on a log of a few keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.training.checkpoint import Snapshot
from keyfold.training.cli import _held_back, main
from keyfold.training.config import read_config

pytest.importorskip("keras")
from keyfold.training.kept import checkpoint_of

pytestmark = KERAS

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
        "gradients.json",
        "gradients.png",
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


@pytest.mark.parametrize("inside", ["", "runs"])
def test_a_file_in_place_of_the_folder_of_runs_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    file = tmp_path / "taken"
    file.touch()
    # Not even the settings are there.
    assert main([str(tmp_path / "none.toml"), "--out", str(file / inside)]) == 1
    said = f"--out {file / inside}: expected a folder, or a name for one, got the file {file}\n"
    assert capsys.readouterr().err == f"keyfold-train: {said}"


def test_a_run_whose_loss_is_not_finite_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    wild = ("--set", "fit.learning_rate=1e30", "--set", "fit.clip_norm=1e30")
    config = str(write(tmp_path, "regression"))
    assert main([config, "--out", str(runs), "--set", "fit.optimizer=sgd", *wild]) == 1
    assert "the loss is not finite; lower fit.learning_rate" in capsys.readouterr().err
    assert list(runs.iterdir()) == []


def test_tensorboard_gets_a_file_of_numbers(tmp_path: Path) -> None:
    import tensorflow as tf

    runs = tmp_path / "runs"
    config = str(write(tmp_path))
    assert main([config, "--out", str(runs), "--set", "fit.tensorboard=true"]) == 0
    (file,) = (runs / "latest" / "tensorboard").iterdir()
    found: dict[str, list[int]] = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.setdefault(value.tag, []).append(event.step)
    assert found["loss/validation"] == [1, 2]
    assert {"loss/train", "learning_rate", "gradients/all", "gradients/recurrent0"} <= found.keys()


def test_weights_of_classes_need_classes_and_known_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--out", str(tmp_path / "runs"), "--set"]
    config = str(write(tmp_path, "regression"))
    assert main([config, *runs, "fit.class_weights=balanced"]) == 1
    assert "fit.class_weights: expected data.kind = 'classification' with it, got regression" in (
        capsys.readouterr().err
    )
    config = str(write(tmp_path))
    assert main([config, *runs, "fit.class_weights=upp=3"]) == 1
    assert "expected labels among 'down', 'up', got 'upp'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([config, *runs, "fit.class_weights=up=3"]) == 0


@pytest.mark.parametrize("what", ["runs", "nowhere"])
def test_what_is_no_unfinished_run_cannot_be_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    config = str(write(tmp_path))
    assert main([config, "--resume", str(tmp_path / what)]) == 1
    assert "expected the folder of an unfinished run, with checkpoint.npz, got none" in (
        capsys.readouterr().err
    )


def test_to_go_on_without_anything_unfinished_is_to_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main([str(write(tmp_path)), "--out", str(runs), "--resume"]) == 0
    assert "going on" not in capsys.readouterr().out
    assert (runs / "latest" / "metrics.json").is_file()


def test_what_tensorflow_says_while_it_is_loaded_is_not_shown(tmp_path: Path) -> None:
    program = "from keyfold.training.cli import _prepare_tensorflow as load; load(1, (128,))"
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ended = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_what_a_library_says_is_shown_where_loading_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def load() -> None:
        with _held_back():
            os.write(2, b"why\n")
            raise ImportError

    with pytest.raises(ImportError):
        load()
    with _held_back():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == "why\n"


def test_other_events_than_a_run_began_with_are_refused_and_the_run_is_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # as the command sets it
    config, folder = str(write(tmp_path)), tmp_path / "runs" / "small-20261122-000000"
    folder.mkdir(parents=True)
    settings = read_config(Path(config), environment={})
    checkpoint_of(folder, settings, "").save("other", Snapshot({}, {}))
    for _ in range(2):
        assert main([config, "--out", str(folder.parent), "--resume"]) == 1
        assert "the events: expected those with SHA-256 other" in capsys.readouterr().err
    assert (folder / "checkpoint.npz").is_file()


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
