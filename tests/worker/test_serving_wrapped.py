"""Somebody's own model served: the worker, the oracle and keyfold-verify score agree on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from live_worker import Serving, make_events
from own_graphs import cell
from torch_graphs import TorchNet

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.cli import main as export
from keyfold.worker.verify.cli import main as verify

NET = TorchNet("LSTM", 2, batch_first=False, features=2)
CELL_FEATURES = "a,b,time"  # the cell takes three


def wrap(folder: Path, model: Any, *arguments: str) -> Bundle:
    onnx.save(model, folder / "own.onnx")
    given = ["wrap", str(folder / "own.onnx"), "--key", "key", "--time", "time"]
    outputs = ["--output", "regression", "p", "q"]
    assert export([*given, *arguments, *outputs, "--out", str(folder / "bundles")]) == 0
    (path,) = (folder / "bundles").glob("*")
    return contract.load(path)


@pytest.fixture(params=["PyTorch's LSTM", "a cell of one step"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """Return a wrapped bundle: one that runs bursts, and one that runs one step a call."""
    if request.param == "a cell of one step":
        scaling = ["--mean", "0,0,1.7e12", "--deviation", "1,1,1e9"]
        bundle = wrap(tmp_path, cell(), "--states", "h:hn", "--features", CELL_FEATURES, *scaling)
        assert bundle.manifest.max_steps == 1
        return bundle
    return wrap(tmp_path, NET.export(), "--states", *NET.pairs, "--features", "a,b")


def test_a_wrapped_model_is_served_as_the_oracle_folds_it(serving: Serving) -> None:
    serving.send(make_events(3000, 30, skew="zipf"))  # hot keys: bursts, or many waves
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(3000)


@pytest.mark.parametrize("bundle", ["PyTorch's LSTM"], indirect=True)
def test_a_scored_log_holds_what_the_net_computes_in_its_own_framework(
    tmp_path: Path, bundle: Bundle
) -> None:
    x = np.random.default_rng(7).normal(size=(5, 60, 2)).astype(np.float32)
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    with log.open("w") as file:
        for t in range(60):
            for key in range(5):
                a, b = map(float, x[key, t])
                file.write(json.dumps({"key": f"k{key}", "time": t, "a": a, "b": b}) + "\n")
    assert verify(["score", str(log), str(bundle.path), "--out", str(out)]) == 0
    got = np.zeros((5, 60, 2))
    for line in out.read_text().splitlines():
        p = json.loads(line)
        got[int(p["key"][1:]), p["time"]] = p["output"]["p"], p["output"]["q"]
    np.testing.assert_allclose(got, NET.run(x), atol=1e-5)
