"""keyfold-export: a bundle appears only when every check has passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.cli import main

# Keras 3.15 with numpy 2 warns in its own code when weights are read; gone when it no longer does.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPEC: dict[str, Any] = {
    "events": {
        "codec": "json",
        "key_field": "key",
        "time_field": None,
        "time_unit": "ms",
        "tombstone": "reject",
    },
    "features": {"fields": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}]},
    "outputs": {"kind": "classification", "names": ["p", "q", "r"]},
    "scaling": {
        "mean": [1.0, 100.0],
        "deviation": [0.5, 10.0],
        "label_mean": 0.0,
        "label_deviation": 1.0,
    },
    "label_cap": None,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run as keyfold-train writes it, with untrained weights."""
    keras = pytest.importorskip("keras")
    from keyfold.export.layers import Standardize

    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(1)
    x = keras.Input((None, 2), name="x")
    scaled = Standardize(SPEC["scaling"]["mean"], SPEC["scaling"]["deviation"])(x)
    z = keras.layers.LSTM(6, return_sequences=True)(scaled)
    keras.Model(x, keras.layers.Dense(3, "softmax")(z)).save(folder / "model.keras")
    (folder / "spec.json").write_text(json.dumps(SPEC), encoding="utf-8")
    metrics = {
        "metrics": {"validation": {"events": 12, "accuracy": 0.75}},
        "data": {"sha256": "ab" * 32},
        "versions": {"keras": keras.__version__},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


@pytest.mark.tensorflow
def test_a_run_becomes_a_bundle_that_loads_and_the_next_step_is_printed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles"
    assert main([str(run), "--out", str(out)]) == 0
    (path,) = out.iterdir()
    bundle = contract.load(path)
    assert bundle.id == path.name
    assert bundle.manifest.state_bytes == 48
    assert bundle.manifest.provenance["parity"]["carried_steps"] >= 1000
    assert bundle.manifest.provenance["run"] == "small"
    printed = capsys.readouterr().out
    assert f"next: keyfold-worker init {path}" in printed
    assert main([str(run), "--out", str(out)]) == 0
    assert [p.name for p in out.iterdir()] == [bundle.id]  # the same run is the same bundle


@pytest.mark.tensorflow
def test_a_graph_that_fails_parity_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyfold.export import convert

    honest = convert.reference

    def off_by_little(model: Any) -> Any:
        answer = honest(model)
        return lambda x: answer(x) + np.float32(1e-3)

    monkeypatch.setattr(convert, "reference", off_by_little)
    out = tmp_path / "bundles"
    assert main([str(run), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "of Keras, got a difference of 0.001" in error
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.tensorflow
def test_a_bundle_whose_features_do_not_fit_the_model_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {**SPEC, "outputs": {"kind": "classification", "names": ["p", "q"]}}
    (run / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    out = tmp_path / "bundles"
    assert main([str(run), "--out", str(out)]) == 1
    assert "expected y of shape" in capsys.readouterr().err
    assert not list(out.iterdir())


def test_a_folder_that_is_no_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    said = f"{tmp_path / 'spec.json'}: expected a training run's file, got: "
    assert capsys.readouterr().err == f"keyfold-export: {said}No such file or directory\n"


def test_inspect_prints_the_contract_within_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(
        tmp_path, kind="classification", features=[f"s{i}" for i in range(40)]
    )
    assert main(["inspect", str(bundle.path)]) == 0
    text = capsys.readouterr().out
    for expected in (
        bundle.id,
        "JSON object with 40 numbers",
        "field 'time', in ms since 1970-01-01 UTC",
        "calm, odd, wild",
        "32 bytes per key",
        "h -> h_out: float32 4, 16 bytes, starts at 0",
        "any number of rows B, at most 512 steps T",
    ):
        assert expected in text
    paths = [line for line in text.splitlines() if len(line) > 80]
    assert all(str(tmp_path) in line for line in paths)  # a path is not broken


def test_inspect_refuses_an_altered_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(tmp_path)
    bundle.step_path.write_bytes(bundle.step_path.read_bytes() + b"\0")
    assert main(["inspect", str(bundle.path)]) == 1
    assert "step.onnx: expected SHA-256" in capsys.readouterr().err


def test_inspect_tells_when_a_silent_key_starts_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reset_after_ms, expected in ((None, "keeps its state for ever"), (1_800_500, "1,800.5 s")):
        bundle = make_tiny_bundle(tmp_path, reset_after_ms=reset_after_ms)
        assert main(["inspect", str(bundle.path)]) == 0
        text = capsys.readouterr().out
        (line,) = (line for line in text.splitlines() if line.startswith("silent key"))
        assert expected in line
