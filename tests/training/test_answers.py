"""At which row a label counts: a session's last, behind a look-ahead, each symbol of a text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.training.answers import answered
from keyfold.training.data import EventLog, Sequence

VALUE = OutputSpec("regression", ("y",))


def log_of(labels: list[float], **more: Any) -> EventLog:
    count = len(labels)
    x, times = np.zeros((count, 1), np.float32), np.arange(count, dtype=np.int64) * 10
    sequence = Sequence("k", x, times, np.array(labels, np.float32), **more)
    features = FeatureSpec.numbers("a")
    return EventLog(EventSpec(), features, VALUE, (sequence,), "", count, 0, ())


def labels_of(log: EventLog, **new: Any) -> list[float | None]:
    (sequence,) = answered(log, replace(VALUE, **new)).sequences
    return [None if np.isnan(label) else float(label) for label in sequence.labels]


def test_a_session_is_judged_at_its_last_event() -> None:
    assert labels_of(log_of([1, 2, 3]), answers="session") == [None, None, 3]
    assert labels_of(log_of([4]), answers="session") == [4]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_look_ahead_is_judged_so_many_events_later(count: int) -> None:
    labels = [float(n) for n in range(count)]
    wanted = [None, None, 0.0, 1.0, 2.0][:count]
    assert labels_of(log_of(labels), delay=2) == wanted


def test_a_label_that_came_later_stays_as_late() -> None:
    came = np.array([5, 100, 25], np.int64)
    log = answered(log_of([1, 2, 3], label_times_ms=came), replace(VALUE, delay=1))
    (sequence,) = log.sequences
    assert sequence.labels[1:].tolist() == [1, 2]
    assert sequence.label_times_ms is not None
    assert sequence.label_times_ms[1:].tolist() == [5, 100]
    assert np.isnan(sequence.head(3, cut_ms=50).labels[2])  # nobody knew it by then


def test_each_symbol_of_a_text_is_judged_by_its_label() -> None:
    nan = float("nan")
    log = log_of([nan, nan, 1, nan, nan, nan], ends=np.array([3, 5, 6]))
    assert labels_of(log, read="every") == [1, 1, 1, None, None, None]


def test_what_answers_each_event_is_judged_as_it_was() -> None:
    log = log_of([1, 2])
    assert answered(log, VALUE) is log
