"""Texts' scores in training: by hand, calibrated, and the same as those that are served."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.outputs import Likelihood, OutputSpec
from keyfold.training.config import SettingsError, read_config
from keyfold.training.likelihood import (
    LikelihoodError,
    calibrate,
    check_room,
    event_scores,
    part_scores,
)
from keyfold.training.sequence import Sequence
from keyfold.training.split import Part

pytest.importorskip("keras")
pytestmark = KERAS
WORDS = ("open", "read", "read", "write", "close")
SPLIT = '[split]\nby = "key"\nvalidation_share = 0.2\ntest_share = 0.2\n'


def sequence(ends: list[int]) -> Sequence:
    rows = ends[-1]
    x = np.zeros((rows, 1), np.float32)
    labels = np.append(x[1:, 0], np.float32(np.nan))
    times = np.zeros(rows, np.int64)
    return Sequence("k", x, times, labels, ends=np.array(ends, np.int64), reach=(1,))


def judged(*likely: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return what is kept to judge by: of each symbol's next one its rank and its probability."""
    return np.array([[0.0, one] for one in (*likely, 0.0)], np.float32)


def test_an_event_s_symbols_are_judged_by_what_was_said_before_them() -> None:
    found = event_scores(judged(0.5, 0.25, 1.0, 0.125), sequence([1, 3, 5]))
    assert np.isnan(found[0]).all()  # the key's first symbol, alone in its event
    np.testing.assert_allclose(found[1], [1.5 * math.log(2), 2 * math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(found[2], [1.5 * math.log(2), 3 * math.log(2)], rtol=1e-6)
    later = event_scores(judged(0.5, 0.25, 1.0, 0.125), sequence([1, 3, 5]), start=3)
    assert later.tolist() == found[2:].tolist()


def test_the_threshold_leaves_so_many_validation_events_above_it() -> None:
    draw = np.random.default_rng(0)
    ends = list(range(1, 1002))
    part = Part((sequence(ends),), (0,), (0,))
    likely = judged(*draw.random(1000).tolist())
    found = calibrate([likely], part, 0.05)
    scores = part_scores([likely], part)
    assert len(scores) == 1000  # all but the first event
    assert (scores[:, 0] > found.threshold).mean() == pytest.approx(0.05, abs=0.002)
    assert found.rate == 0.05
    assert calibrate([judged()], Part((sequence([1]),), (0,), (0,)), 0.05) == Likelihood(0.0, 0.05)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('text = "a"\nlabel = "b"\nkind = "classification"\n[outputs]\nlikelihood = true',
         r"outputs\.likelihood: expected data\.text and neither a label nor features with it"),
        ('features = ["a"]\n[outputs]\nlikelihood = true', r"outputs\.likelihood: expected data"),
        ('features = ["a"]\n[outputs]\ntop = 2',
         r"outputs\.top: expected a classification or next symbols with it, got forecasts"),
        ('text = "a"\n[outputs]\nlikelihood = true\nread = "every"',
         r"outputs\.read: expected 'last' with outputs\.likelihood, got 'every'"),
        ('text = "a"\n[outputs]\ntop = -1', r"outputs\.top: expected at least 0, got -1"),
        ('text = "a"\n[outputs]\nanomaly_rate = 1.0',
         r"outputs\.anomaly_rate: expected 0 < rate < 1, got 1"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(tmp_path: Path, lines: str, expected: str) -> None:
    file = tmp_path / "training.toml"
    file.write_text(f'[data]\nfiles = ["a.csv"]\n{lines}\n{SPLIT}', encoding="utf-8")
    with pytest.raises(SettingsError, match=expected):
        read_config(file, environment={})


def test_a_vocabulary_too_large_for_a_state_is_refused_before_training() -> None:
    names = tuple(map(str, range(15_000)))
    check_room((512, 512), OutputSpec("classification", names))
    with pytest.raises(LikelihoodError, match=r"at most 65536 bytes a key, got 68096: 16,000 symb"):
        check_room((512, 512), OutputSpec("classification", tuple(map(str, range(16_000)))))


def test_ranks_say_which_label_is_among_the_largest() -> None:
    from keyfold.training.evaluate import judged as judge
    from keyfold.training.evaluate import measure

    y = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], np.float32)
    labels = np.array([2, 0, np.nan], np.float32)
    found = judge(y, labels)
    assert found.tolist() == [[2.0, 0.25], [1.0, 0.25], [0.0, 0.0]]
    part = Part((Sequence("k", y, np.zeros(3, np.int64), labels),), (0,), (0,))
    metrics = measure([y], part, OutputSpec("classification", ("a", "b", "c"), top=2))
    assert (metrics["accuracy"], metrics["accuracy_top_2"]) == (0.0, 0.5)


def test_a_trained_model_scores_texts_when_served_as_it_did_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyfold.export.cli import main as export
    from keyfold.training.cli import main as train
    from keyfold.worker.verify.cli import main as verify

    monkeypatch.chdir(tmp_path)
    rows = [
        {"key": f"p{number % 20}", "calls": " ".join(WORDS * (1 + number % 3))}
        for number in range(200)
    ]
    Path("log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("training.toml").write_text(
        f'[data]\nfiles = ["log.jsonl"]\ntext = "calls"\n[text]\ntokenizer = "word"\n{SPLIT}'
        "[outputs]\ntop = 2\nlikelihood = true\nanomaly_rate = 0.1\n[model]\nunits = [24]\n"
        "[fit]\npasses = 12\nwindow = 32\nlearning_rate = 0.02\nthreads = 1\n",
        encoding="utf-8",
    )
    assert train(["training.toml"]) == 0
    metrics = json.loads(Path("runs/latest/metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["test"]["accuracy_top_2"] >= metrics["test"]["accuracy"]
    assert 0.0 <= metrics["validation"]["flagged"] <= 0.1
    assert export(["runs/latest"]) == 0
    (path,) = Path("bundles").iterdir()
    manifest = contract.load(path).manifest
    assert manifest.outputs.likelihood is not None
    odd = {"key": "odd", "calls": "close write close open write open write write"}
    unseen = {"key": "unseen", "calls": "open exec open"}
    Path("new.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows[:40], odd, unseen])), encoding="utf-8"
    )
    assert verify(["score", "new.jsonl", str(path), "--out", "out.jsonl", "--key", "key"]) == 0
    outputs = [json.loads(line)["output"] for line in Path("out.jsonl").read_text().splitlines()]
    scores = [one["anomaly"]["score"] for one in outputs]
    offline = _offline(Path("new.jsonl"))
    np.testing.assert_allclose(scores, offline, atol=1e-3)
    flags = [one["anomaly"]["flag"] for one in outputs]
    assert flags == [score > manifest.outputs.likelihood.threshold for score in scores]
    assert flags[-2:] == [True, True]  # what never was in that order, and what never was at all
    assert min(scores[-2:]) > max(scores[:-2])
    assert {len(one["top"]) for one in outputs} == {2}


def _offline(log: Path) -> list[float]:
    """Return each event's score, in the log's order, as Keras has it."""
    from keyfold.training import run
    from keyfold.training.evaluate import predict
    from keyfold.training.reread import as_seen, read_for
    from keyfold.training.sources import read_files
    from keyfold.training.split import whole

    saved = run.load(Path("runs/latest"))
    part = whole(as_seen(saved, read_for(saved, read_files((str(log),), saved.data), keyed=False))
                 .sequences)  # fmt: skip
    by_key = {
        sequence.key: event_scores(one, sequence)[:, 0].tolist()
        for one, sequence in zip(predict(saved.network, part), part.sequences, strict=True)
    }
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    return [by_key[key].pop(0) for key in keys]
