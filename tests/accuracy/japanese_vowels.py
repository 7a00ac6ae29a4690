"""Japanese Vowels: who is speaking, judged at an utterance's last frame.

Owns what is judged: the share of test utterances whose last prediction names the speaker.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from accuracy.task import TEST, TRAIN, Answers, Asked, Events, Figures, Task

from keyfold.training.datasets import japanese_vowels


def judge(events: Events, answers: Answers) -> Figures:
    """Compare each utterance's last prediction with its speaker."""
    right = [answers[key][-1]["label"] == frames[-1]["speaker"] for key, frames in events.items()]
    return {"accuracy": sum(right) / len(right)}


def majority(folder: Path) -> dict[str, Figures]:
    """Judge the answer that is always the most frequent speaker in training."""
    usual = Counter(_speakers(folder / TRAIN)).most_common(1)[0][0]
    test = _speakers(folder / TEST)
    return {"most frequent speaker": {"accuracy": test.count(usual) / len(test)}}


def _speakers(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as log:
        ends = (json.loads(line).get("speaker_at_end") for line in log)
        return [speaker for speaker in ends if speaker is not None]


TASKS = (
    Task(
        name="japanese-vowels",
        title="Japanese Vowels, accuracy at the last frame",
        source="japanese_vowels",
        config="japanese_vowels",
        prepare=japanese_vowels.write,
        judge=judge,
        main="accuracy",
        asked=(Asked("accuracy", 0.98, is_least=True),),
        baselines=majority,
        published={"DTW": {"accuracy": 0.949}, "MLSTM-FCN": {"accuracy": 1.0}},
    ),
)
