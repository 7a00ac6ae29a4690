"""keyfold-train --parent: a child begins with its parent's weights and keeps what is around them.

From a log to a bundle, by the commands alone; the bundles are checked as keyfold-state does.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.export.errors import BundleError
from keyfold.export.lineage import PARENT, WEIGHTS, check_inherits, weights_sha256
from keyfold.training import parent as parents
from keyfold.training.cli import main as train
from keyfold.training.config import read_config
from keyfold.training.parent import ParentError, taken_over

pytestmark = KERAS

CONFIG = """
[data]
files = ["log.jsonl"]
features = ["a", "b", "mode"]
categories = ["mode"]
missing_mask = ["b"]
time_field = "t"
{label}
[split]
by = "order"
validation_share = 0.25
[model]
units = [4]
[fit]
rows = 4
window = 8
passes = 2
"""
LABELS = {
    "forecast": "",
    "regression": 'label = "y"\nkind = "regression"',
    "classification": 'label = "word"\nkind = "classification"',
}
STAYS = ("--set", "fit.learning_rate=0")


def write_log(folder: Path, *, far: float = 0.0, modes: tuple[str, str] = ("on", "off")) -> None:
    """Write events of five keys; `far` and `modes` make them other ones than the parent saw."""
    draw = np.random.default_rng(int(far))
    lines = []
    for i in range(400):
        a, b = draw.normal(size=2)
        event: dict[str, Any] = {"key": f"k{i % 5}", "t": 1000 * i, "a": a + far, "y": a + far}
        event |= {"b": None if i % 7 == 0 else b + far, "mode": modes[i // 5 % 2]}
        lines.append(json.dumps(event | {"word": "up" if a > 0 else "down"}))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a log."""
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path)
    return tmp_path


def trained(kind: str, *arguments: str) -> Path:
    """Train and return the run's folder."""
    Path("training.toml").write_text(CONFIG.format(label=LABELS[kind]), encoding="utf-8")
    assert train(["training.toml", *arguments]) == 0
    return Path("runs/latest").resolve()


def bundled(run: Path, out: str = "bundles") -> contract.Bundle:
    """Export a run and load the bundle."""
    before = set(Path(out).glob("*"))
    assert export([str(run), "--out", out]) == 0
    (path,) = set(Path(out).glob("*")) - before
    return contract.load(path)


def read(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", ["forecast", "regression", "classification"])
def test_a_child_that_learns_nothing_is_its_parent(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = trained(kind)
    child = trained(kind, "--parent", str(parent), *STAYS)
    assert child != parent
    assert read(child, "spec.json") == read(parent, "spec.json")
    metrics = read(child, "metrics.json")
    assert metrics["metrics"] == read(parent, "metrics.json")["metrics"]
    assert metrics[WEIGHTS] == read(parent, "metrics.json")[WEIGHTS]
    assert metrics["history"]["best_pass"] == 0
    said = f"no pass was better on validation than {parent.name}: its weights are kept"
    assert said in capsys.readouterr().out
    assert bundled(child).id == bundled(parent, "others").id


def test_a_child_learns_from_its_parent_s_weights_and_keeps_what_is_around_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = trained("regression")
    write_log(folder, far=2.0, modes=("on", "new"))
    child = trained("regression", "--parent", "runs/latest", "--set", "fit.learning_rate=0.02")
    assert f"from the weights of {parent.name}, better on validation" in capsys.readouterr().out
    alone = trained("regression")
    specs = [read(run, "spec.json") for run in (parent, child, alone)]
    assert specs[0] == specs[1]
    assert specs[0]["scaling"] != specs[2]["scaling"]
    assert specs[0]["features"] != specs[2]["features"]
    hashes = [read(run, "metrics.json")[WEIGHTS] for run in (parent, child)]
    assert hashes[0] != hashes[1]


def test_the_bundle_of_a_child_proves_whose_child_it_is(folder: Path) -> None:
    first = trained("forecast")
    old = bundled(first)
    assert old.manifest.provenance[WEIGHTS] == read(first, "metrics.json")[WEIGHTS]
    assert PARENT not in old.manifest.provenance
    faster = ("--set", "fit.learning_rate=0.02")
    by_run = bundled(trained("forecast", "--parent", str(first), *faster))
    assert by_run.manifest.provenance[PARENT] == {
        "run": first.name, WEIGHTS: old.manifest.provenance[WEIGHTS],
    }  # fmt: skip
    check_inherits(by_run, old)
    again = ("--set", "fit.learning_rate=0.03")
    by_bundle = bundled(trained("forecast", "--parent", str(old.path), *again))
    assert by_bundle.manifest.provenance[PARENT]["bundle"] == old.id
    check_inherits(by_bundle, old)
    stranger = bundled(trained("forecast", "--set", "fit.seed=5"))
    with pytest.raises(BundleError, match="got one that names none"):
        check_inherits(stranger, old)
    with pytest.raises(BundleError, match=f"expected one that names {stranger.id}"):
        check_inherits(by_run, stranger)
    with pytest.raises(BundleError, match="got one that names"):
        check_inherits(by_bundle, by_run)


@pytest.mark.parametrize(
    ("kind", "setting", "said"),
    [
        ("regression", "model.units=5", "model.units: expected [4], as it has it, got [5]"),
        ("regression", "model.cell=gru", "model.cell: expected 'lstm', as it has it, got 'gru'"),
        ("regression", "model.dense=3", "model.dense: expected 0, as it has it, got 3"),
        ("regression", "data.missing_mask=a,b", "data.missing_mask: expected ['b'], as it has it"),
        ("regression", "data.reset_after_s=9", "data.reset_after_s: expected None, as it has it"),
        ("regression", "data.label=z", "data.label: expected 'y', as it has it, got 'z'"),
        ("regression", "data.features=b,a,mode", "data.features: expected ['a', 'b', 'mode'], as"),
        ("classification", "data.classes=up,down", "data.classes: expected ['down', 'up'], as it"),
        ("forecast", "forecast.horizons=1,2", "forecast.horizons: expected [1], as it has it, got"),
        ("forecast", "forecast.fields=a", "forecast.fields: expected ['a', 'b'], as it has it"),
        ("forecast", "forecast.anomaly=false", "forecast.anomaly: expected True, as it has it"),
        ("forecast", "forecast.threshold=dynamic", "expected 'quantile', as it has it, got 'dyn"),
    ],
)
def test_what_differs_from_the_parent_is_refused_in_one_line(
    folder: Path, kind: str, setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = trained(kind, "--set", "fit.passes=1")
    capsys.readouterr()
    assert train(["training.toml", "--parent", str(parent), "--set", setting]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(f"keyfold-train: --parent {parent.name}: ")
    assert error.endswith(
        ": train without --parent, and let the new bundle's states be folded anew\n"
    )
    assert error.count("\n") == 1
    assert Path("runs/latest").resolve() == parent, "nothing was trained"


def test_other_conditions_are_not_taken_for_the_parent_s(folder: Path) -> None:
    parent = parents.load(trained("regression", "--set", "fit.passes=1"), Path("runs"))
    more = ("data.conditions=a,b", "data.condition_count=2")
    config = read_config(Path("training.toml"), more, {})
    with pytest.raises(ParentError, match=r"data\.conditions: expected \[\], as it has it"):
        taken_over(config, parent)


TEXTS = """
[data]
files = ["log.jsonl"]
text = "word"
[text]
tokenizer = "char"
[split]
by = "order"
validation_share = 0.25
[model]
units = [4]
[fit]
rows = 4
window = 8
passes = 1
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("text.tokenizer=word", "text.tokenizer: expected 'char', as it has it, got 'word'"),
        ("text.lower=true", "text.lower: expected False, as it has it, got True"),
        ("text.size=5", "text.size: expected 8000, as it has it, got 5"),
    ],
)
def test_another_reading_of_texts_is_not_taken_for_the_parent_s(
    folder: Path, text_parent: parents.Parent, setting: str, said: str
) -> None:
    (folder / "texts.toml").write_text(TEXTS, encoding="utf-8")
    with pytest.raises(ParentError, match=re.escape(said)):
        taken_over(read_config(folder / "texts.toml", (setting,), {}), text_parent)
    taken_over(read_config(folder / "texts.toml", (), {}), text_parent)


@pytest.fixture(scope="module")
def text_parent(tmp_path_factory: pytest.TempPathFactory) -> parents.Parent:
    """Return a model that was trained on texts."""
    folder = tmp_path_factory.mktemp("texts")
    write_log(folder)
    (folder / "texts.toml").write_text(TEXTS, encoding="utf-8")
    with contextlib.chdir(folder):
        assert train(["texts.toml"]) == 0
        return parents.load(Path("runs/latest").resolve(), Path("runs"))


def test_past_scores_stay_in_the_unit_of_the_parent_s_scales(folder: Path) -> None:
    """A threshold of a key's own is made of them, and they are a part of its state."""
    dynamic = ("--set", "forecast.threshold=dynamic")
    parent = trained("forecast", *dynamic)
    write_log(folder, far=3.0)
    child = trained("forecast", *dynamic, "--parent", str(parent))
    before, after = (read(run, "spec.json")["outputs"]["anomaly"] for run in (parent, child))
    assert after["scales"] == before["scales"]
    plain = trained("forecast")
    write_log(folder)
    other = trained("forecast", "--parent", str(plain))
    before, after = (read(run, "spec.json")["outputs"]["anomaly"] for run in (plain, other))
    assert after["scales"] != before["scales"], "without one they follow the newer events"


def test_a_run_that_was_trained_anew_is_not_taken_for_the_parent(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("regression")
    bundle = bundled(run)
    other = trained("regression", "--set", "fit.seed=3")
    (run / "model.keras").write_bytes((other / "model.keras").read_bytes())
    assert train(["training.toml", "--parent", str(bundle.path)]) == 1
    error = capsys.readouterr().err
    assert f"--parent bundles/{bundle.id}: expected the run it was made of, with weights " in error
    assert train(["training.toml", "--parent", "nowhere"]) == 1
    assert "--parent nowhere: expected a training run's folder, or a bundle's" in (
        capsys.readouterr().err
    )


def test_weights_are_told_apart_by_their_numbers_shapes_and_order() -> None:
    one, two = np.zeros((2, 3), np.float32), np.ones(4, np.float32)
    assert weights_sha256([one, two]) == weights_sha256([one.copy(order="F"), two])
    others: tuple[list[Any], ...] = (
        [two, one],
        [one.reshape(3, 2), two],
        [one, two.astype(np.float64)],
        [one],
    )
    assert len({weights_sha256(some) for some in ([one, two], *others)}) == 5
