"""SwDA: the dialogue act of every utterance, from it and those before it alone.

Owns what is judged: the share of test utterances whose prediction names the act. Published figures
are of other cleanings of the corpus with 42 or 43 acts; those marked "later ones too" see the whole
conversation, which a stream cannot.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from accuracy.task import TEST, TRAIN, Answers, Asked, Events, Figures, Task

from keyfold.training.datasets import swda


def judge(events: Events, answers: Answers) -> Figures:
    """Compare each utterance's prediction with its act."""
    right = [
        answer["label"] == event["act"]
        for key, utterances in events.items()
        for event, answer in zip(utterances, answers[key], strict=True)
    ]
    return {"accuracy": sum(right) / len(right)}


def simple_methods(folder: Path) -> dict[str, Figures]:
    """Judge the usual act, and the act that exactly this utterance most often was."""
    of: dict[str, Counter[str]] = {}
    usual: Counter[str] = Counter()
    for said, act in _acts(folder / TRAIN):
        of.setdefault(said, Counter())[act] += 1
        usual[act] += 1
    ((always, _),) = usual.most_common(1)
    test = _acts(folder / TEST)
    known = [of[said].most_common(1)[0][0] if said in of else always for said, _ in test]
    return {
        "most frequent act": {"accuracy": sum(act == always for _, act in test) / len(test)},
        "same utterance": {
            "accuracy": sum(a == b for a, (_, b) in zip(known, test, strict=True)) / len(test)
        },
    }


def _acts(file: Path) -> list[tuple[str, str]]:
    with file.open(encoding="utf-8") as log:
        return [(event["utterance"], event["act"]) for event in map(json.loads, log)]


TASKS = (
    Task(
        name="swda",
        title="SwDA dialogue acts (41), accuracy",
        source="swda",
        config="swda",
        prepare=swda.write,
        judge=judge,
        main="accuracy",
        seeds=1,
        asked=(Asked("accuracy", 0.774, is_least=True),),
        baselines=simple_methods,
        published={
            "RNN, three utterances before (Bothe 2018)": {"accuracy": 0.7734},
            "bi-LSTM-CRF, later ones too (Kumar 2018)": {"accuracy": 0.792},
        },
    ),
)
