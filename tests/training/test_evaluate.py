"""Metrics say what they say."""

from __future__ import annotations

import numpy as np
import pytest

from keyfold.export.events import OutputSpec
from keyfold.training.data import Sequence
from keyfold.training.split import Part

pytest.importorskip("keras")
from keyfold.training.baselines import majority, nonrecurrent
from keyfold.training.evaluate import measure

pytestmark = pytest.mark.tensorflow
VALUE = OutputSpec("regression", ("value",))
CLASSES = OutputSpec("classification", ("p", "q"))


def part(*labels: list[float], counts_from: tuple[int, ...] = ()) -> Part:
    sequences = []
    for i, some in enumerate(labels):
        values = np.array(some, np.float32)
        sequences.append(Sequence(f"k{i}", values[:, None], np.zeros(len(some), np.int64), values))
    return Part(tuple(sequences), counts_from or (0,) * len(sequences))


def test_regression_reports_every_event_and_each_keys_last_one() -> None:
    judged = part([10, 20, 200], [np.nan, 5], [np.nan])
    y = [np.array([[13], [20], [100]]), np.array([[9], [9]]), np.array([[0]])]
    metrics = measure([a.astype(np.float32) for a in y], judged, VALUE, label_cap=100.0)
    assert metrics == {
        "events": 4,
        "rmse": pytest.approx(((9 + 0 + 1e4 + 16) / 4) ** 0.5),
        "rmse_last": pytest.approx(((1e4 + 16) / 2) ** 0.5),
        "rmse_capped": pytest.approx(((9 + 0 + 0 + 16) / 4) ** 0.5),
        "rmse_last_capped": pytest.approx(((0 + 16) / 2) ** 0.5),
    }


def test_only_events_that_count_are_judged() -> None:
    y = [np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)]
    assert measure(y, part([1, 1], counts_from=(1,)), CLASSES)["accuracy"] == 1.0
    assert measure(y, part([1, 1]), CLASSES)["accuracy"] == 0.5
    assert measure(y, part([np.nan, np.nan]), CLASSES) == {"events": 0}


def test_the_majority_baseline_answers_the_most_frequent_training_class() -> None:
    metrics = majority(part([1, 1, 0]), part([1, 0, 0, 0]), CLASSES)
    assert metrics["accuracy"] == 0.25


def test_the_non_recurrent_baseline_learns_what_one_event_shows() -> None:
    draw = np.random.default_rng(0)
    train, judged = (part([float(v) for v in draw.integers(0, 2, 600)]) for _ in range(2))
    assert nonrecurrent(train, judged, CLASSES, passes=20)["accuracy"] > 0.95
