"""Nothing is learned from what is held out, and the anomaly threshold from validation alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("keras")
from keyfold.export.outputs import Anomaly
from keyfold.training.config import Config, Data, Forecast, Split
from keyfold.training.scaling import Scaling
from keyfold.training.train import Study, _calibrated, _scaling, prepare

pytestmark = pytest.mark.tensorflow

KEYS = ("k0", "k1", "k2", "k3")
EACH = 40  # events of a key
SPLITS = {
    "key": Split("key", validation_keys=("k2",), test_keys=("k3",)),
    "order": Split("order", validation_share=0.25, test_share=0.25),
    "time": Split("time", validation_share=0.25, test_share=0.25),
}
FORECAST = Data(
    features=("a", "b", "mode"), categories=("mode",), time_field="t", missing_mask=("b",)
)  # fmt: skip
LABELLED = replace(FORECAST, label="y", kind="regression")


def part_of(by: str, key: str, place: int) -> str:
    """Return the part that an event belongs to."""
    if by == "key":
        return {"k2": "validation", "k3": "test"}.get(key, "train")
    return "train" if place < EACH // 2 else "validation" if place < EACH * 3 // 4 else "test"


def config(folder: Path, data: Data, by: str, *shifted: str) -> Config:
    """Write a log whose `shifted` parts are far away and have a word of their own."""
    draw = np.random.default_rng(1)
    events: list[dict[str, Any]] = []
    for place in range(EACH):
        for key in KEYS:
            a, b, y = draw.normal(size=3).tolist()
            part = part_of(by, key, place)
            far = 1e3 if part in shifted else 0.0
            event = {"key": key, "t": place, "a": a + far, "b": b + far, "y": y + far}
            event["b"] = None if place % 5 == 0 else event["b"]
            event["mode"] = part if far else ("auto", "hand")[place % 2]
            events.append(event)
    file = folder / ("-".join(("log", *shifted)) + ".jsonl")
    file.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    forecast = Forecast() if data.label else Forecast(("a", "b"), (1, 3))
    return Config(replace(data, files=(str(file),)), SPLITS[by], forecast=forecast)


def learned(settings: Config) -> tuple[Study, Scaling]:
    study = prepare(settings, Console(quiet=True))
    return study, _scaling(study, settings)


@pytest.mark.parametrize("by", sorted(SPLITS))
@pytest.mark.parametrize("data", [FORECAST, LABELLED], ids=["forecast", "regression"])
def test_inputs_and_scales_are_those_of_the_training_part(
    tmp_path: Path, data: Data, by: str
) -> None:
    study, scaling = learned(config(tmp_path, data, by))
    other, same = learned(config(tmp_path, data, by, "validation", "test"))
    assert other.parts["test"].sequences[-1].x.max() > 900  # it is there
    assert other.log.features == study.log.features
    assert same == scaling
    moved, far = learned(config(tmp_path, data, by, "train"))
    assert moved.log.features != study.log.features
    assert far != scaling


@pytest.mark.parametrize("by", sorted(SPLITS))
def test_scales_and_threshold_of_anomalies_are_those_of_the_validation_part(
    tmp_path: Path, by: str
) -> None:
    def anomaly(*shifted: str) -> Anomaly:
        settings = config(tmp_path, FORECAST, by, *shifted)
        study = prepare(settings, Console(quiet=True))
        y = [np.zeros((len(s), len(study.outputs.names)), np.float32) for s in study.log.sequences]
        found = _calibrated(study, y, settings).outputs.anomaly
        assert found is not None
        return found

    assert anomaly("train", "test") == anomaly()
    assert anomaly("validation").scales[0] > 900


def test_what_never_changes_within_a_key_is_no_input_to_forecast_unless_it_is_named(
    tmp_path: Path,
) -> None:
    lines = [
        {"key": key, "t": place, "a": place % 7, "size": size}
        for place in range(EACH)
        for key, size in zip(KEYS, (1.0, 2.0, 3.0, 4.0), strict=True)
    ]
    file = tmp_path / "sizes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = Data(features=("a", "size"), time_field="t", files=(str(file),))
    for named, expected in (((), ("a",)), (("a", "size"), ("a", "size"))):
        study = prepare(Config(data, SPLITS["key"], forecast=Forecast(named)), Console(quiet=True))
        assert study.outputs.forecast is not None
        assert study.outputs.forecast.fields == expected
