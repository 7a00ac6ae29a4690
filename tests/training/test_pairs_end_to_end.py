"""From a log of pairs to a proven bundle that translates, by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.training import run
from keyfold.training.cli import main as train
from keyfold.training.reread import as_seen, read_for
from keyfold.training.saying import said
from keyfold.training.sources import read_files
from keyfold.worker.verify.cli import main as verify

pytestmark = KERAS
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
SETTINGS = """
[data]
files = ["log.jsonl"]
text = "en"
target_text = "de"
[split]
by = "key"
validation_share = 0.1
[text]
tokenizer = "word"
[target]
tokenizer = "word"
[generate]
most = 9
[model]
family = "seq2seq"
cell = "gru"
attention = "multiplicative"
window = 8
units = [32]
embedding = 12
[fit]
rows = 16
passes = 8
learning_rate = 0.02
threads = 1
"""


def write_log(file: Path) -> None:
    """Numbers in two languages, of which the answers are known."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(500):
        said = draw.choice(list(WORDS), int(draw.integers(1, 4))).tolist()
        answer = " ".join(WORDS[word] for word in said)
        rows.append({"key": f"k{number}", "en": " ".join(said), "de": answer})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_pairs_become_a_bundle_that_answers_as_keras_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.jsonl")
    (tmp_path / "training.toml").write_text(SETTINGS, encoding="utf-8")
    assert train(["training.toml"]) == 0
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    judged, naive = metrics["metrics"]["validation"], metrics["naive"]["validation"]
    assert judged["cross_entropy"] < 0.5 * naive["cross_entropy"]
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    manifest = contract.load(path).manifest
    assert manifest.decode is not None
    assert (manifest.decode.anew, manifest.state_bytes, manifest.version) == (True, 0, "1.3")
    assert {state.input for state in manifest.decode.states} >= set(manifest.decode.begins) - {
        state.input for state in manifest.states
    }
    assert verify(["score", "log.jsonl", str(path), "--out", "out.jsonl", "--key", "key"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = {one["key"]: one["output"]["text"] for one in found if "last" in one}
    saved = run.load(tmp_path / "runs/latest")
    log = as_seen(saved, read_for(saved, read_files(("log.jsonl",), saved.data), keyed=False))
    texts = said(saved.network, log.sequences, saved.outputs)
    assert answers == {s.key: text for s, text in zip(log.sequences, texts, strict=True)}
    pairs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean([answers[pair["key"]] == pair["de"] for pair in pairs]) > 0.5
    _check_a_child(tmp_path, judged["cross_entropy"])


def _check_a_child(folder: Path, before: float) -> None:
    """A child reads and says by its parent's vocabularies."""
    more = ["--parent", "runs/latest", "--against", "runs/latest", "--set", "fit.passes=1"]
    assert train(["training.toml", *more]) == 0
    again = json.loads((folder / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    assert again["metrics"]["validation"]["cross_entropy"] <= before + 0.05
    assert again["against"]["old"] == pytest.approx(before, rel=1e-4)


def test_a_model_of_next_symbols_answers_as_its_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.jsonl")
    settings = """
[data]
files = ["log.jsonl"]
text = "de"
[split]
by = "key"
validation_share = 0.1
[generate]
most = 20
temperature = 0.5
top_k = 4
[model]
units = [24]
[fit]
passes = 2
window = 16
threads = 1
"""
    (tmp_path / "training.toml").write_text(settings, encoding="utf-8")
    assert train(["training.toml"]) == 0
    assert export(["runs/latest"]) == 0
    (path,) = (tmp_path / "bundles").iterdir()
    manifest = contract.load(path).manifest
    assert manifest.outputs.generate is not None
    assert manifest.outputs.generate.to_json() == {"most": 20, "temperature": 0.5, "top_k": 4}
    assert manifest.decode is None
    assert verify(["score", "log.jsonl", str(path), "--out", "out.jsonl", "--key", "key"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sum("last" in one for one in found) == 500
    assert len({one["output"]["text"] for one in found if "last" in one}) > 20
