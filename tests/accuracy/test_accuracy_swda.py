"""Every utterance of a conversation is judged, and the simple methods know training alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accuracy.swda import judge, simple_methods


def test_every_utterance_is_judged_in_its_order() -> None:
    events = {"c": [{"act": "b"}, {"act": "sd"}], "d": [{"act": "qy"}]}
    answers = {"c": [{"label": "b"}, {"label": "b"}], "d": [{"label": "qy"}]}
    assert judge(events, answers) == {"accuracy": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="shorter"):
        judge(events, {**answers, "c": answers["c"][:1]})


def test_simple_methods_answer_by_what_training_said(tmp_path: Path) -> None:
    train = [("Yeah.", "b"), ("Yeah.", "b"), ("Yeah.", "aa"), ("So?", "qy"), ("I do.", "b")]
    test = [("Yeah.", "b"), ("So?", "qy"), ("New.", "sd")]
    for name, said in (("train.jsonl", train), ("test.jsonl", test)):
        lines = [json.dumps({"utterance": text, "act": act}) for text, act in said]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    assert simple_methods(tmp_path) == {
        "most frequent act": {"accuracy": pytest.approx(1 / 3)},
        "same utterance": {"accuracy": pytest.approx(2 / 3)},
    }
