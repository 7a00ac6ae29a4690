"""The tasks of texts, judged by hand-computed cases; networks compared are equally large."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accuracy import adfa_ld, cells, shakespeare
from accuracy.ngram import Ngram

from keyfold.training.datasets.shakespeare import write

CORPUS = "it was the best of times, it was the worst of times\n" * 3


def test_an_attack_above_every_normal_trace_is_worth_one_and_a_tie_a_half() -> None:
    assert adfa_ld.roc_auc([0.1, 0.2, 0.9], [False, False, True]) == 1.0
    assert adfa_ld.roc_auc([0.5, 0.5], [False, True]) == 0.5
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 5, 60).astype(float).tolist()
    marks = (draw.random(60) < 0.3).tolist()
    pairs = [
        (up > down) + (up == down) / 2
        for up, is_up in zip(scores, marks, strict=True)
        for down, is_down in zip(scores, marks, strict=True)
        if is_up and not is_down
    ]
    assert adfa_ld.roc_auc(scores, marks) == pytest.approx(np.mean(pairs))


def test_a_trace_is_judged_by_all_its_calls_whatever_its_pieces() -> None:
    events = {
        "a": [{"calls": "3 4 5", "attack": True}, {"calls": "6", "attack": True}],
        "n": [{"calls": "3", "attack": False}],
    }
    # Of the first piece three of four symbols are judged, of the second both: mean 9 / 5.
    answers = {
        "a": [{"anomaly": {"score": 1.0}}, {"anomaly": {"score": 3.0}}],
        "n": [{"anomaly": {"score": 1.75}}],
    }
    assert adfa_ld.judge(events, answers) == {"auc": 1.0}
    answers["n"][0]["anomaly"]["score"] = 1.85
    assert adfa_ld.judge(events, answers) == {"auc": 0.0}


def test_every_character_counts_once_and_a_line_break_is_one() -> None:
    events = {"test": [{"line": ""}, {"line": "ab"}, {"line": "c"}]}
    answers = {"test": [{"anomaly": {"score": score}} for score in (None, 2.0, 1.0)]}
    figures = shakespeare.judge(events, answers)
    assert figures["nats"] == pytest.approx((3 * 2.0 + 2 * 1.0) / 5)
    assert figures["bits"] == pytest.approx(figures["nats"] / math.log(2))


def test_an_n_gram_is_a_distribution_and_knows_what_it_has_seen() -> None:
    model: Ngram[str] = Ngram(3, len(set(CORPUS)) + 1)
    model.learn([CORPUS])
    for history in ("it", "x", "", "zz"):
        total = sum(math.exp(-model.surprises(history + one)[-1]) for one in set(CORPUS))
        unseen = math.exp(-model.surprises(history + "Z")[-1])
        assert total + unseen == pytest.approx(1.0)
    assert model.surprises("it was")[-1] < 0.5
    assert model.surprises("it wax")[-1] > 4.0


def test_a_text_is_cut_at_a_character_and_all_of_it_is_in_the_logs(tmp_path: Path) -> None:
    source = tmp_path / "tinyshakespeare"
    source.mkdir()
    text = CORPUS * 100
    (source / "input.txt").write_text(text, encoding="utf-8")
    write(source / "input.txt", tmp_path)
    train, test = (shakespeare._texts(tmp_path / name) for name in ("train.jsonl", "test.jsonl"))
    assert "".join(test) == text[int(0.9 * len(text)) :]
    assert abs(len("".join(train)) - int(0.9 * len(text))) <= 2  # lines cut in two end twice
    assert len(test) == 1
    figures = shakespeare.by_counts(tmp_path)["own 6-gram"]
    assert figures["nats"] < 0.2


@pytest.mark.tensorflow
def test_the_compared_networks_have_the_weights_that_are_said() -> None:
    keras = pytest.importorskip("keras")
    from keyfold.export.outputs import OutputSpec
    from keyfold.training.config import Model
    from keyfold.training.model import build
    from keyfold.training.scaling import Scaling

    outputs = OutputSpec("classification", tuple(map(str, range(cells.SYMBOLS))))
    scaling = Scaling((0.0,), (1.0,), 0.0, 1.0, symbols=cells.SYMBOLS)
    for network in cells.NETWORKS:
        given: dict[str, Any] = dict(
            one.removeprefix("model.").split("=") for one in network.settings()
        )
        given = {name: json.loads(v) if v[0] in "[0123456789" else v for name, v in given.items()}
        built = build(Model(**given), scaling, outputs)
        assert built.whole.count_params() == network.count(network.units), network.name
        assert network.count(network.units) == pytest.approx(cells.PARAMETERS, rel=0.03)
        keras.backend.clear_session()


def test_the_table_puts_the_best_first() -> None:
    one = {"units": 10, "weights": 4000, "passes": 3, "validation": 1.6, "nats": 1.7}
    lines = cells.table({"a": one, "b": {**one, "validation": 1.5}}).splitlines()
    assert [line[:4] for line in lines[2:]] == ["| b ", "| a "]
