"""A silent key starts anew in training, in evaluation, in the bundle and when served: alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.worker.verify.refold import OfflineStep, Refold

pytest.importorskip("keras")
from keyfold.training import run
from keyfold.training.cli import main as train
from keyfold.training.data import build
from keyfold.training.evaluate import predict
from keyfold.training.sources import read_files
from keyfold.training.split import Part

pytestmark = KERAS

CONFIG = """
[data]
files = ["{log}"]
features = ["a", "b"]
label = "y"
kind = "regression"
time_field = "t"
reset_after_s = 30.0
[split]
by = "key"
validation_share = 0.25
[model]
units = [4]
[fit]
passes = 1
"""


def write_log(file: Path) -> list[dict[str, float | str]]:
    """Write events of 8 keys, in order of time, some of them after a long silence."""
    draw = np.random.default_rng(0)
    events: list[dict[str, float | str]] = []
    for i in range(240):
        # Above, below and exactly at the limit.
        time = 3000 * i + int(draw.integers(0, 2000))
        key = f"k{int(draw.integers(0, 8))}"
        row: dict[str, float | str] = {"key": key, "t": time, "y": float(i)}
        events.append({**row, "a": float(draw.normal()), "b": float(draw.normal())})
    file.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return events


def test_evaluation_and_the_offline_fold_reset_at_the_same_events(tmp_path: Path) -> None:
    events = write_log(tmp_path / "log.jsonl")
    config = tmp_path / "small.toml"
    config.write_text(CONFIG.format(log=tmp_path / "log.jsonl"), encoding="utf-8")
    assert train([str(config), "--out", str(tmp_path / "runs")]) == 0
    assert export([str(tmp_path / "runs/latest"), "--out", str(tmp_path / "bundles")]) == 0
    (folder,) = (tmp_path / "bundles").iterdir()
    bundle = contract.load(folder)
    assert bundle.manifest.events.reset_after_ms == 30_000

    saved = run.load(tmp_path / "runs/latest")
    log = build(saved.data, read_files([str(tmp_path / "log.jsonl")]), keyed=False)
    y = predict(saved.network, Part(log.sequences, (0,) * len(log.sequences)))
    evaluated = {
        (sequence.key, int(time)): (step + 1, value)
        for sequence, values in zip(log.sequences, y, strict=True)
        for step, (time, value) in enumerate(zip(sequence.times_ms, values, strict=True))
    }

    refold = Refold(OfflineStep(bundle))
    for offset, event in enumerate(events):
        key, time = str(event["key"]), int(event["t"])
        refold.fold(offset, time, key.encode(), json.dumps(event).encode())
        expected = refold.expected(offset)
        steps, value = evaluated[key, time]
        assert steps == expected.steps
        np.testing.assert_allclose(value, expected.output, rtol=1e-4, atol=1e-4)
    assert refold.expired > 20
