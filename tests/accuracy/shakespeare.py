"""Texts by character: tinyshakespeare, and War and Peace as far as it is here.

Owns what is judged: the mean negative log-likelihood of every character of the text's last part,
read as one key from a cold start on with the state carried, in nats. A line's break is its end
symbol (training/datasets/shakespeare.py), so that characters and symbols are the same; the first
one, before which nothing was said, is not judged.

The simple method is an n-gram model (ngram.py) over the same characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from accuracy.ngram import Ngram
from accuracy.task import TEST, TRAIN, Answers, Asked, Events, Figures, Task

from keyfold.training.datasets import shakespeare

ORDER = 6
WARPEACE_SHARE = 1 / 9  # of the first 90 % that are here: 80 to 90 % of the whole


def judge(events: Events, answers: Answers) -> Figures:
    """Add up all characters' surprises."""
    total, count = 0.0, 0
    for key, lines in events.items():
        for place, (line, answer) in enumerate(zip(lines, answers[key], strict=True)):
            characters = len(line["line"]) + 1 - (not place)
            total += characters * (answer["anomaly"]["score"] or 0.0)
            count += characters
    return {"nats": total / count, "bits": total / count / math.log(2)}


def by_counts(folder: Path) -> dict[str, Figures]:
    """Judge the n-gram model."""
    train, test = _texts(folder / TRAIN), _texts(folder / TEST)
    model: Ngram[str] = Ngram(ORDER, len(set("".join(train))) + 1)
    model.learn(train)
    surprises = [one for text in test for one in model.surprises(text)[1:]]
    nats = sum(surprises) / len(surprises)
    return {f"own {ORDER}-gram": {"nats": nats, "bits": nats / math.log(2)}}


def _texts(log: Path) -> list[str]:
    """Return each key's text."""
    found: dict[str, list[str]] = {}
    with log.open(encoding="utf-8") as lines:
        for event in map(json.loads, lines):
            found.setdefault(event["key"], []).append(event["line"] + "\n")
    return ["".join(lines) for lines in found.values()]


def _prepare(name: str, share: float) -> Callable[[Path, Path], object]:
    return lambda source, folder: shakespeare.write(source / name, folder, share)


TASKS = (
    Task(
        name="shakespeare",
        title="tinyshakespeare, nats a character",
        source="tinyshakespeare",
        config="shakespeare",
        prepare=_prepare("input.txt.xz", shakespeare.TEST_SHARE),
        judge=judge,
        main="nats",
        seeds=1,
        asked=(Asked("nats", 1.47, is_least=False),),
        baselines=by_counts,
        published={
            "nanoGPT (A100, 3 minutes)": {"nats": 1.4697},
            "nanoGPT (CPU, 3 minutes)": {"nats": 1.88},
        },
    ),
    Task(
        name="warpeace",
        title="War and Peace, nats a character (80 to 90 % of it)",
        source="warpeace",
        config="warpeace",
        prepare=_prepare("warpeace_first90.txt.xz", WARPEACE_SHARE),
        judge=judge,
        main="nats",
        seeds=1,
        baselines=by_counts,
    ),
)
