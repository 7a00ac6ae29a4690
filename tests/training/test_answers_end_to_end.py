"""Sessions, look-ahead and answers at every symbol: trained, exported, scored as they were judged.

What a run's evaluation holds against labels is what the bundle predicts over the same log, from the
worker's own path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.cli import main as export
from keyfold.worker.verify.cli import main as verify

pytest.importorskip("keras")
from keyfold.training import run
from keyfold.training.cli import main as train
from keyfold.training.evaluate import predict
from keyfold.training.reread import as_seen, read_for
from keyfold.training.run import Run
from keyfold.training.sources import read_files
from keyfold.training.split import whole

pytestmark = KERAS

CONFIG = """
[data]
files = ["{log}"]
{data}
time_field = "t"
[split]
by = "key"
validation_share = 0.25
[model]
{model}
[fit]
rows = 16
window = 32
{fit}
[outputs]
{outputs}
"""
Row = dict[str, Any]


def trained(folder: Path, rows: list[Row], **parts: str) -> tuple[Run, contract.Bundle]:
    """Train on rows and export; return run and bundle."""
    write(folder / "log.jsonl", rows)
    config = folder / "small.toml"
    parts = {"fit": "passes = 1", "outputs": "", **parts}
    config.write_text(CONFIG.format(log=folder / "log.jsonl", **parts), encoding="utf-8")
    assert train([str(config), "--out", str(folder / "runs")]) == 0
    assert export([str(folder / "runs/latest"), "--out", str(folder / "bundles")]) == 0
    (path,) = (folder / "bundles").iterdir()
    return run.load(folder / "runs/latest"), contract.load(path)


def write(file: Path, rows: list[Row]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def scored(folder: Path, bundle: contract.Bundle) -> list[Row]:
    """Return what the worker's path predicts over the log."""
    out = folder / "predictions.jsonl"
    assert verify(["score", str(folder / "log.jsonl"), str(bundle.path), "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def judged(folder: Path, saved: Run) -> Iterator[tuple[str, int, np.ndarray, float]]:
    """Yield key, time, outputs and label of all rows that evaluation holds against a label."""
    chunks = read_files([str(folder / "log.jsonl")])
    part = whole(as_seen(saved, read_for(saved, chunks, keyed=False)).sequences)
    for sequence, y in zip(part.sequences, predict(saved.network, part), strict=True):
        for row in np.flatnonzero(~np.isnan(sequence.labels)):
            yield sequence.key, int(sequence.times_ms[row]), y[row], float(sequence.labels[row])


def sessions(open_ones: bool = False) -> list[Row]:
    """Return sessions whose class is whether their numbers add up to more than nothing."""
    draw, rows = np.random.default_rng(0), list[Row]()
    for number in range(240):
        total, time = 0.0, 100_000 * number
        for place in range(count := int(draw.integers(1, 7))):
            total += (a := float(draw.normal(0.3 if number % 2 else -0.3)))
            row = {"key": f"k{number % 8}", "t": time + 1000 * place, "a": a}
            rows.append({**row, "mood": "up" if total > 0 else "down"})
        if not open_ones and number % 3:  # else the next event shows that it was over
            rows[-1]["bye"] = place == count - 1
    return rows


SESSIONS = {
    "data": 'features = ["a"]\nlabel = "mood"\nkind = "classification"\nend_field = "bye"\n'
    "reset_after_s = 50.0",
    "model": "units = [8]",
    "outputs": 'answers = "session"',
}


def test_a_session_is_trained_judged_and_answered_at_its_last_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = "passes = 25\npatience = 25\nlearning_rate = 0.02"
    saved, bundle = trained(tmp_path, sessions(), fit=fit, **SESSIONS)
    assert "\n  sessions: 240 (median " in capsys.readouterr().out
    assert bundle.manifest.version == "1.3"
    assert bundle.manifest.outputs.answers == "session"
    assert [s.input for s in bundle.manifest.kept][-2:] == ["back.answer", "back.answer_ms"]
    wanted = {(key, time): y for key, time, y, _ in judged(tmp_path, saved)}
    assert len(wanted) == 240  # one for each session, however many events
    found = scored(tmp_path, bundle)
    assert len(found) + 8 >= 240 > len(found)  # some are open where the log ends
    for one in found:
        y = wanted[one["key"], one["time"]]
        np.testing.assert_allclose(one["output"]["probabilities"], y, atol=1e-5)
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text())["metrics"]
    assert metrics["validation"]["events"] == 60
    assert metrics["validation"]["accuracy"] > 0.85


def ahead(delay: int) -> list[Row]:
    """Return events whose label is a number that comes `delay` events after them."""
    draw, rows = np.random.default_rng(1), list[Row]()
    for key in range(12):
        a = draw.integers(0, 2, 80)
        for t in range(80):
            y = float(a[t + delay]) if t + delay < 80 else None
            rows.append({"key": f"k{key}", "t": 1000 * t, "a": int(a[t]), "y": y})
    return rows


@pytest.mark.parametrize("layers", [1, 2])
def test_look_ahead_answers_later_what_it_could_not_know_before(
    tmp_path: Path, layers: int
) -> None:
    delay = 2 * layers
    saved, bundle = trained(
        tmp_path, ahead(delay),
        data='features = ["a"]\nlabel = "y"\nkind = "regression"',
        model=f'family = "bidirectional"\nunits = {[8] * layers}\nwindow = 6\nlook_ahead = 2',
        fit="passes = 12\npatience = 12\nlearning_rate = 0.03",
    )  # fmt: skip
    assert bundle.manifest.outputs.delay == delay
    wanted = list(judged(tmp_path, saved))
    found = scored(tmp_path, bundle)
    assert len(found) == 12 * (80 - delay) == len(wanted)
    # A row of the log is said by the time of the event that answers, a prediction by its own.
    by_time = {(key, time - 1000 * delay): y for key, time, y, _ in wanted}
    for one in found:
        offset, about = (int(one[name].split(":")[2]) for name in ("id", "about"))
        assert offset - about == delay
        assert one["cold"] == (one["steps"] == 1) == (one["time"] == 0)
        y = by_time[one["key"], one["time"]]
        np.testing.assert_allclose(one["output"]["y"], y[0], atol=1e-5)
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text())["metrics"]
    assert metrics["validation"]["rmse"] < 0.25  # of a coin flip: 0.5 without looking ahead


def texts() -> list[Row]:
    draw, rows = np.random.default_rng(2), list[Row]()
    for number in range(80):
        mood = ("glad", "sad")[number % 2]
        line = "".join(draw.choice(list("abc " if mood == "glad" else "xyz "), 6))
        rows.append({"key": f"k{number % 8}", "t": 1000 * number, "line": line, "mood": mood})
    return rows


@pytest.mark.parametrize("label", ['label = "mood"\nkind = "classification"', ""])
def test_every_symbol_of_a_text_is_judged_and_answered(tmp_path: Path, label: str) -> None:
    saved, bundle = trained(
        tmp_path, texts(), data=f'text = "line"\n{label}', model="units = [8]",
        outputs='read = "every"',
    )  # fmt: skip
    assert bundle.manifest.outputs.read == "every"
    found = scored(tmp_path, bundle)
    assert len(found) == 80 * 7  # six letters and the end
    if not label:
        return  # evaluation keeps of each symbol whether it was right, not all probabilities
    wanted = [y for *_, y, _ in judged(tmp_path, saved)]
    found = sorted(found, key=lambda p: (p["key"], *map(int, p["id"].split(":")[2:])))
    got = [one["output"]["probabilities"] for one in found]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_log_in_which_no_session_ends_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sessions(open_ones=True)
    rows[0]["bye"] = False  # else training says that no event has it
    _, bundle = trained(tmp_path, rows, **SESSIONS)
    write(tmp_path / "log.jsonl", rows[:3])
    assert len(scored(tmp_path, bundle)) == 0
    assert "1 sessions are open: not answered yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"outputs": 'answers = "session"', "data": 'features = ["a"]\nlabel = "mood"\n'
          'kind = "classification"'}, "outputs.answers: expected data.end_field"),
        ({"outputs": 'answers = "session"', "data": 'features = ["a"]\nend_field = "bye"'},
         "outputs.answers = 'session': expected data.label"),
        ({"outputs": 'read = "every"'}, "outputs.read: expected data.text"),
        ({"model": 'family = "bidirectional"\nunits = [4]\nwindow = 4\nlook_ahead = 4'},
         "look_ahead: expected 0 to 3"),
        ({"model": "units = [4]\nlook_ahead = 2"}, "look_ahead: expected 0 with family"),
        ({"model": 'family = "bidirectional"\nunits = [4]\nwindow = 4\nlook_ahead = 2'},
         "expected it alone"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: dict[str, str], said: str
) -> None:
    write(tmp_path / "log.jsonl", sessions())
    config = tmp_path / "small.toml"
    given = {"fit": "passes = 1", **SESSIONS, **parts}
    config.write_text(CONFIG.format(log=tmp_path / "log.jsonl", **given), encoding="utf-8")
    assert train([str(config), "--out", str(tmp_path / "runs")]) != 0
    assert said in capsys.readouterr().err
