"""Spoken digits from raw audio: which one, judged at a recording's last event; which ones, in turn.

Owns what is judged: the share of recordings whose last prediction names the digit; and of strings
of digits the edits between the symbols that the stream told and the words that were said. Test are
the data set's own takes 0 to 4; every choice was made on other takes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from accuracy.task import TEST, TRAIN, Answers, Asked, Events, Figures, Task

from keyfold.training.datasets import fsdd
from keyfold.training.edit_distance import edits


def judge(events: Events, answers: Answers) -> Figures:
    """Compare each recording's last prediction with its digit."""
    right = [answers[key][-1]["label"] == chunks[-1]["digit"] for key, chunks in events.items()]
    return {"accuracy": sum(right) / len(right)}


def usual_digit(folder: Path) -> dict[str, Figures]:
    """Judge the answer that is always the most frequent digit in training."""
    usual = Counter(_digits(folder / TRAIN)).most_common(1)[0][0]
    test = _digits(folder / TEST)
    return {"most frequent digit": {"accuracy": test.count(usual) / len(test)}}


def judge_strings(events: Events, answers: Answers) -> Figures:
    """Compare the symbols of each string's predictions, in order, with what its last event says."""
    wrong = symbols = right = 0
    for key, chunks in events.items():
        truth = [fsdd.WORDS.index(word) for word in chunks[-1]["words"].split()]
        told = [one["symbol"] for one in answers[key] if one["symbol"] is not None]
        distance = edits([fsdd.WORDS.index(word) for word in told], truth)
        wrong, symbols, right = wrong + distance, symbols + len(truth), right + (not distance)
    return {"symbol error rate": wrong / symbols, "strings right": right / len(events)}


def _digits(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as log:
        ends = (json.loads(line).get("digit_at_end") for line in log)
        return [digit for digit in ends if digit is not None]


TASKS = (
    Task(
        name="spoken-digits",
        title="Spoken digits (FSDD), accuracy at the last event",
        source="fsdd",
        config="fsdd",
        prepare=fsdd.write,
        judge=judge,
        main="accuracy",
        asked=(Asked("accuracy", 0.98, is_least=True),),
        baselines=usual_digit,
        published={"usual, 97 to 99 %": {"accuracy": 0.98}},
    ),
    Task(
        name="spoken-strings",
        title="Spoken strings of digits (FSDD, CTC), symbol error rate",
        source="fsdd",
        config="fsdd_strings",
        prepare=fsdd.write_strings,
        judge=judge_strings,
        main="symbol error rate",
    ),
)
