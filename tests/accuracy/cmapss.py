"""C-MAPSS: remaining useful life at each official test engine's last cycle.

Owns what is judged: the root mean squared error of the last prediction of each test engine, of
labels capped at 125 as published results take them, and of labels as they are. A C-MAPSS task
chooses nothing: settings were chosen on validation engines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from accuracy.task import TRAIN, Answers, Asked, Events, Figures, Task

from keyfold.training.datasets import cmapss

CAP = 125.0
# Root mean squared errors on capped labels, in the order FD001 to FD004.
PUBLISHED = {
    "deep LSTM (Zheng 2017)": (16.14, 24.49, 16.18, 28.17),
    "best in one published table": (10.97, 12.55, 10.90, 14.08),
}
ASKED = (12.0, 12.8, 12.0, 14.5)


def judge(events: Events, answers: Answers) -> Figures:
    """Compare each engine's last prediction with what it had left."""
    raw, capped = [], []
    for engine, cycles in events.items():
        got, truth = answers[engine][-1]["rul"], cycles[-1]["rul"]
        raw.append((got - truth) ** 2)
        capped.append((got - min(truth, CAP)) ** 2)
    return {
        "capped": math.sqrt(sum(capped) / len(capped)),
        "raw": math.sqrt(sum(raw) / len(raw)),
    }


def mean_life(folder: Path) -> dict[str, Figures]:
    """Judge the answer that is always the mean of the capped training labels."""
    with (folder / TRAIN).open(encoding="utf-8") as log:
        labels = [min(json.loads(line)["rul"], CAP) for line in log]
    always = sum(labels) / len(labels)
    events: dict[str, list[dict[str, float]]] = {}
    with (folder / "test.jsonl").open(encoding="utf-8") as log:
        for event in map(json.loads, log):
            events.setdefault(event["key"], []).append(event)
    answers = {engine: [{"rul": always}] for engine in events}
    return {"training mean": judge(events, answers)}


def _prepare(subset: str) -> Callable[[Path, Path], object]:
    return lambda source, folder: cmapss.write(source, subset, folder)


TASKS = tuple(
    Task(
        name=f"cmapss-fd00{number}",
        title=f"C-MAPSS FD00{number}, RMSE (capped labels)",
        source="cmapss",
        config=f"cmapss_fd00{number}",
        prepare=_prepare(f"FD00{number}"),
        judge=judge,
        main="capped",
        asked=(Asked("capped", ASKED[number - 1], is_least=False),),
        baselines=mean_life,
        published={name: {"capped": rmse[number - 1]} for name, rmse in PUBLISHED.items()},
    )
    for number in (1, 2, 3, 4)
)
