"""From an unlabelled, gappy log to a proven bundle, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.training.cli import main as train

pytestmark = KERAS
SMALL = ("--set", "model.units=8", "--set", "fit.passes=6", "--set", "fit.stretch=100")


def write_log(file: Path) -> None:
    """Two machines that heat up and cool down in turn; a tenth of the values is missing."""
    draw = np.random.default_rng(0)
    lines = ["time;machine;temp;mode"]
    for i in range(800):
        for machine in range(2):
            on = (i // 20 + machine) % 2
            temp = f"{50 + (i % 20 if on else 20 - i % 20) + 0.1 * draw.normal():.2f}"
            temp = "" if draw.random() < 0.1 else temp.replace(".", ",")
            lines.append(f"{1_700_000_000 + 10 * i};m{machine};{temp};{'heat' if on else 'cool'}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_an_unlabelled_log_becomes_a_bundle_that_forecasts_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "readings.csv")
    assert train(["init", "readings.csv"]) == 0
    assert "next: keyfold-train training.toml" in capsys.readouterr().out
    quantiles = ("--set", "forecast.quantiles=0.1,0.5,0.9", "--set", "forecast.anomaly_rate=0.01")
    assert train(["training.toml", *SMALL, *quantiles]) == 0
    printed = capsys.readouterr().out
    assert "next: keyfold-export " in printed
    assert "temp+1" in printed
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    judged = metrics["metrics"]["test"]
    assert judged["skill"] > 0.3  # it knows the cycle; the last value does not
    assert 0.2 < judged["coverage"] < 1.0
    assert metrics["forecasts"]["test"][0]["name"] == "temp+1"
    assert (tmp_path / "runs/latest/forecast.png").read_bytes().startswith(b"\x89PNG")

    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    assert f"next: keyfold-worker init bundles/{path.name}" in capsys.readouterr().out
    manifest = contract.load(path).manifest
    assert manifest.features.columns == ("temp", "temp?", "mode=cool", "mode=heat")
    assert manifest.features.fields[0].fill == pytest.approx(60, abs=1)
    assert manifest.outputs.names[:3] == ("temp+1@0.1", "temp+1@0.5", "temp+1@0.9")
    assert manifest.outputs.anomaly is not None
    assert manifest.outputs.anomaly.rate == 0.01
    assert manifest.outputs.anomaly.threshold > 1
    y = contract.load(path).golden.y[0, :48].reshape(48, 2, 3)
    assert (np.diff(y, axis=2) >= 0).all()  # quantiles never cross

    assert train(["evaluate", "runs/latest", "readings.csv", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["skill"] > 0.3


def test_the_same_settings_give_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "readings.csv")
    assert train(["init", "readings.csv"]) == 0
    found = []
    for _ in range(2):
        assert train(["training.toml", *SMALL, "--set", "fit.passes=1"]) == 0
        metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
        found.append(metrics["metrics"])
    assert found[0] == found[1]


def test_a_worse_model_than_the_one_in_service_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "readings.csv")
    assert train(["init", "readings.csv"]) == 0
    assert train(["training.toml", *SMALL]) == 0
    assert export(["runs/latest"]) == 0
    (service,) = (tmp_path / "bundles").iterdir()
    assert export(["runs/latest", "--unless-worse"]) == 1
    assert "expected a comparison for --unless-worse, got none" in capsys.readouterr().err

    untaught = ("--set", "fit.passes=1", "--set", "fit.learning_rate=1e-9")
    assert train(["training.toml", *SMALL, *untaught, "--against", str(service)]) == 0
    assert "worse than training-" in capsys.readouterr().out
    assert export(["runs/latest", "--unless-worse"]) == 1
    error = capsys.readouterr().err
    assert "expected a model no worse than training-" in error
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [service.name]

    assert train(["training.toml", *SMALL, "--against", "runs/latest"]) == 0
    assert export(["runs/latest", "--unless-worse"]) == 0
    assert train(["training.toml", "--against", str(tmp_path)]) == 1
    assert "expected a training run's folder, or a bundle's" in capsys.readouterr().err
