"""A run with operating conditions: trained, loaded again, exported and evaluated alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

pytest.importorskip("keras")
from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.export.settings import SettingsError
from keyfold.training import run
from keyfold.training.cli import main as train
from keyfold.training.config import read_config

pytestmark = KERAS

CONFIG = """
[data]
files = ["{log}"]
features = ["altitude", "heat"]
conditions = ["altitude"]
condition_count = 2
label = "wear"
kind = "regression"
[split]
by = "key"
validation_share = 0.25
[model]
units = [4]
[fit]
passes = 40
rows = 4
window = 16
learning_rate = 2e-2
"""


def write_log(file: Path) -> None:
    """Write events whose heat shows the wear only beside what it usually is at this altitude."""
    draw = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as log:
        for i in range(600):
            wear, high = float(draw.normal()), bool(draw.integers(2))
            altitude = (35.0 if high else 0.0) + float(draw.normal(0.0, 0.001))
            heat = (100.0 if high else 900.0) + wear
            row = {"key": f"k{i % 12}", "altitude": altitude, "heat": heat, "wear": wear}
            log.write(json.dumps(row) + "\n")


def test_conditions_are_learned_kept_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log.jsonl")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(log=tmp_path / "log.jsonl"), encoding="utf-8")
    assert train([str(config), "--out", str(tmp_path / "runs")]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "latest"
    conditions = run.load(folder).scaling.conditions
    assert conditions is not None
    assert np.allclose(np.array(conditions.centres), [[0.0], [35.0]], atol=0.01)
    assert np.allclose(np.array(conditions.means)[:, 1], [900.0, 100.0], atol=0.5)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    # Scaled by all events together, heat would be +-1 and its wear 1/400 of that.
    assert metrics["validation"]["rmse"] < 0.5
    assert export([str(folder), "--out", str(tmp_path / "bundles")]) == 0, capsys.readouterr().err
    (bundle,) = (tmp_path / "bundles").iterdir()
    assert contract.load(bundle).manifest.features.columns == ("altitude", "heat")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('["altitude"]', '["speed"]'), "conditions: expected names of features, got 'speed'"),
        (("condition_count = 2", ""), "condition_count: expected 2 or more with conditions"),
        (("condition_count = 2", "condition_count = 1"), "and 0 without, got 1"),
        (('conditions = ["altitude"]', ""), "and 0 without, got 2"),
        (
            ("condition_count = 2", 'condition_count = 2\nstandardise_by_key = ["altitude"]'),
            "conditions: expected plain numbers, got 'altitude'",
        ),
    ],
)
def test_contradictory_conditions_are_refused_by_name(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG.format(log="log.jsonl").replace(*change), encoding="utf-8")
    with pytest.raises(SettingsError, match=expected):
        read_config(file, environment={})
