"""A search over ranges: valid values only, judged on validation, resumable, ends in a config."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.training.config import read_config
from keyfold.training.search_ranges import Range, read_ranges, with_values
from keyfold.training.search_toml import write_best

pytest.importorskip("keras")
pytest.importorskip("optuna")
from keyfold.training.cli import main
from keyfold.training.search import Search

pytestmark = KERAS

CONFIG = """
[data]
files = ["{log}"]
features = ["a"]
label = "y"
kind = "regression"
[split]
by = "key"
validation_share = 0.3
test_keys = ["k0"]
[model]
units = [3]
[fit]
rows = 4
window = 8
passes = 2
learning_rate = 0.01
"""
RANGES = """
[fit]
learning_rate = {from = 0.001, to = 0.1, log = true}
rows = {from = 2, to = 6}
[model]
units = [[3], [4, 2]]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a log, a config and ranges."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    lines = []
    for i in range(150):
        a = float(draw.normal())
        lines.append(json.dumps({"key": f"k{i % 7}", "a": a, "y": 2 * a}))
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "small.toml").write_text(CONFIG.format(log="log.jsonl"), encoding="utf-8")
    (tmp_path / "ranges.toml").write_text(RANGES, encoding="utf-8")
    return tmp_path


def search(trials: int, *more: str) -> int:
    return main(["search", "small.toml", "ranges.toml", "--trials", str(trials), *more])


def test_the_best_settings_are_a_config_that_trains_to_the_same_loss(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(3) == 0
    said = capsys.readouterr().out
    assert "next: keyfold-train runs/search-small/best.toml" in said
    assert said.count("fit.learning_rate=") == 6  # as they come, then in order
    best = folder / "runs" / "search-small" / "best.toml"
    head = best.read_text(encoding="utf-8").splitlines()[1]
    loss = float(head.partition("validation loss of ")[2].partition(". Its")[0])
    assert main([str(best)]) == 0
    metrics = json.loads((folder / "runs/latest/metrics.json").read_text(encoding="utf-8"))
    assert min(metrics["history"]["validation_loss"]) == pytest.approx(loss, rel=1e-5)


def test_the_first_trial_is_the_config_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(1) == 0
    assert "fit.learning_rate=0.01 fit.rows=4 model.units=3\n" in capsys.readouterr().out


def test_a_search_that_was_killed_goes_on_as_one_that_was_not(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search(4, "--out", "whole") == 0
    whole = capsys.readouterr().out
    fitted = Search._fitted

    def killed(self: Search, trial: Any) -> float:
        fitted(self, trial)
        if trial.number == 2:
            raise KeyboardInterrupt  # as a kill: the library hears nothing of the trial's end
        return 1.0

    assert search(2) == 0
    monkeypatch.setattr(Search, "_fitted", killed)
    assert search(4) == 130
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert search(4) == 0
    said = capsys.readouterr().out
    assert "2 of 4 trials are done" in said
    values = [
        {line.split("  ")[-1] for line in text.splitlines() if "fit.rows=" in line}
        for text in (whole, said)
    ]
    assert values[0] == values[1]


def test_another_search_in_the_same_folder_is_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(1) == 0
    assert search(2, "--set", "fit.window=4") == 1
    assert "search-small: fit.window: expected 8, as the search began, got 4" in (
        capsys.readouterr().err
    )
    (folder / "ranges.toml").write_text(RANGES.replace("to = 6", "to = 7"), encoding="utf-8")
    assert search(2) == 1
    assert "range of.fit.rows: expected Range(" in capsys.readouterr().err


def test_the_test_part_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for number in range(2):
        assert search(2, "--out", f"out{number}") == 0
        said.append([line[:20] for line in capsys.readouterr().out.splitlines() if "rows=" in line])
        events = [
            json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").split("\n")
        ]
        for event in events:
            event["y"] = 1e6 if event["key"] == "k0" else event["y"]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    assert said[0] == said[1]


def test_settings_that_contradict_each_other_are_a_trial_without_a_loss(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = '[fit]\noptimizer = ["adam", "sgd"]\nmomentum = [0.0]\nweight_decay = [0.0]\n'
    (folder / "ranges.toml").write_text(ranges, encoding="utf-8")
    assert search(2, "--set", "fit.optimizer=sgd", "--set", "fit.momentum=0.0") == 0
    (folder / "ranges.toml").write_text("[fit]\nwarm_up = [0.5, 1.5]\n", encoding="utf-8")
    # Each value is valid with two passes, not with one.
    assert search(2, "--out", "b", "--set", "fit.passes=1") == 1
    assert "warm_up: expected fewer passes than passes = 1, got 1.5" in capsys.readouterr().err


def test_settings_that_make_no_network_are_a_trial_without_a_loss_and_the_search_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = "[model]\nwindow = [200000, 4]\n"  # a state above 64 KiB a key
    (folder / "ranges.toml").write_text(ranges, encoding="utf-8")
    more = ("--set", "model.attention=additive", "--set", "model.window=200000")
    assert search(2, "--out", "c", *more) in (0, 1)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert search(3, "--out", "c", *more) == 0


def test_a_trial_of_events_that_are_no_ids_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ranges.toml").write_text("[fit]\nrows = [3, 4]\n", encoding="utf-8")
    ids = ("--set", "model.embedding=2", "--set", "model.tokens=5")
    assert search(1, "--out", "ids", *ids) == 1
    assert "model.tokens: expected whole numbers from 0 to 4 in every event" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ("[data]\nlabel = ['y']", "expected sections [model] and [fit], got 'data'"),
        ("[fit]\nepochs = [1, 2]", "unknown setting fit.epochs"),
        ("[fit]\nrows = [1, 0]", "rows: expected at least 1, got 0"),
        ("[fit]\nrows = ['many']", "fit.rows: expected int, got text"),
        ("[fit]\nrows = [4, 4]", "fit.rows: expected distinct values, got one twice"),
        ("[fit]\nrows = {from = 4}", "fit.rows: expected [a, b, ...] or {from = LEAST"),
        ("[fit]\nrows = {from = 9, to = 4}", "with from < to, got"),
        ("[fit]\nlearning_rate = {from = 0, to = 1, log = true}", "with from < to, got"),
        ("[fit]\nseed = [1, 2]", "fit.seed: expected a setting that makes a model better"),
        ("", "expected ranges of settings, such as fit.rows, got none"),
        ("rows = 3", "expected sections [model] and [fit], got 'rows'"),
        ("[fit", "expected TOML, got"),
    ],
)
def test_ranges_are_refused_by_name_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], ranges: str, expected: str
) -> None:
    (folder / "ranges.toml").write_text(ranges, encoding="utf-8")
    (folder / "log.jsonl").unlink()
    assert search(1) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_values_of_a_range_are_valid_settings(folder: Path) -> None:
    config = folder / "small.toml"
    ranges = read_ranges(folder / "ranges.toml", config, ())
    assert [item.name for item in ranges] == ["fit.learning_rate", "fit.rows", "model.units"]
    chosen = with_values(config, (), {"model.units": "4,2", "fit.rows": "5"})
    assert chosen.model.units == (4, 2)
    assert chosen.fit.rows == 5
    assert Range("fit.rows", (), 2, 6, whole=True).text(3.0) == "3"
    assert Range("model.units", ("3", "4,2")).holds((4, 2)) == "4,2"
    assert Range("model.units", ("3", "4,2")).holds((9,)) is None


def test_what_a_config_holds_is_written_as_it_was_read(folder: Path) -> None:
    file, out = folder / "odd.toml", folder / "best.toml"
    odd = 'csv_separator = "\\t"\nnull_words = ["a\\"b", "\\u007f", "ü"]\n'
    text = CONFIG.format(log="log.csv").replace("[split]", odd + "[split]", 1)
    file.write_text(text + '[security]\nprotocol = "plaintext"\n', encoding="utf-8")
    settings = with_values(file, (), {"fit.rows": "7"})
    write_best((file, settings), ["fit.rows"], ["found"], out)
    assert out.read_text(encoding="utf-8").startswith("# found\n")
    assert read_config(out, environment={}) == settings
    read = [tomllib.loads(path.read_text(encoding="utf-8")) for path in (file, out)]
    read[0]["fit"]["rows"] = 7
    assert read[0] == read[1]
    assert out.stat().st_mode & 0o077 == 0
