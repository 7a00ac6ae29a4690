"""ADFA-LD: attacks found by how unlikely a trace's system calls are.

Owns what is judged: the area under the ROC curve of each trace's mean negative log-likelihood, the
attacks against the normal traces that were not trained on. A trace is scored by all of its calls,
taken together from the scores of its pieces. Nothing is chosen here: the training log holds normal
traces alone, and no score depends on the others.

The simple method is an n-gram model (ngram.py), trained and judged likewise.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from accuracy.ngram import Ngram
from accuracy.task import TEST, TRAIN, Answers, Events, Figures, Task

from keyfold.training.datasets import adfa_ld

ORDER = 5


def judge(events: Events, answers: Answers) -> Figures:
    """Compare the traces' means over all of their calls and end symbols."""
    scores, attacks = [], []
    for trace, pieces in events.items():
        # The first symbol of a trace is not judged: nothing was said before it.
        counts = [len(piece["calls"].split()) + 1 - (not place) for place, piece in
                  enumerate(pieces)]  # fmt: skip
        means = [answer["anomaly"]["score"] or 0.0 for answer in answers[trace]]
        scores.append(float(np.average(means, weights=counts)))
        attacks.append(bool(pieces[0]["attack"]))
    return {"auc": roc_auc(scores, attacks)}


def roc_auc(scores: list[float], positive: list[bool]) -> float:
    """Return how often a positive scores above a negative, ties counted half."""
    values, marks = np.array(scores), np.array(positive)
    ups, downs = np.sort(values[marks]), np.sort(values[~marks])
    below = np.searchsorted(downs, ups, side="left").sum()
    upto = np.searchsorted(downs, ups, side="right").sum()
    return float(below + upto) / 2 / (len(ups) * len(downs))


def by_counts(folder: Path) -> dict[str, Figures]:
    """Judge the n-gram model."""
    train, test = _traces(folder / TRAIN), _traces(folder / TEST)
    calls = {call for trace, _ in train.values() for call in trace}
    model: Ngram[str] = Ngram(ORDER, len(calls) + 1)
    model.learn(trace for trace, _ in train.values())
    scores = [float(np.mean(model.surprises(trace))) for trace, _ in test.values()]
    return {f"own {ORDER}-gram": {"auc": roc_auc(scores, [mark for _, mark in test.values()])}}


def _traces(log: Path) -> dict[str, tuple[list[str], bool]]:
    """Return each trace's calls, and whether it is an attack."""
    found: dict[str, tuple[list[str], bool]] = {}
    with log.open(encoding="utf-8") as lines:
        for event in map(json.loads, lines):
            trace = found.setdefault(event["key"], ([], bool(event.get("attack"))))
            trace[0].extend(event["calls"].split())
    return found


TASKS = (
    Task(
        name="adfa-ld",
        title="ADFA-LD attacks by likelihood, ROC AUC",
        source="adfa_ld",
        config="adfa_ld",
        prepare=adfa_ld.write,
        judge=judge,
        main="auc",
        baselines=by_counts,
        published={
            "5-gram (Kim 2016)": {"auc": 0.836},
            "LSTM ensemble (Kim 2016)": {"auc": 0.928},
        },
    ),
)
