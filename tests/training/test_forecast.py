"""Truth, naive forecasts and calibration of forecasts of a key's next events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.outputs import Anomaly, Forecast
from keyfold.training import show
from keyfold.training.config import Forecast as Settings
from keyfold.training.data import EventLog, Sequence
from keyfold.training.forecast import (
    calibrate,
    changing,
    coverage,
    flags,
    judge,
    learn_ahead,
    naive,
    points,
    score,
    summary,
    with_truth,
)
from keyfold.training.split import Part, whole

NAN = float("nan")


def log_of(*values: list[float], forecast: Forecast) -> EventLog:
    sequences = []
    for number, some in enumerate(values):
        observed = np.array(some, np.float32)[:, None]
        x = np.nan_to_num(observed)
        times = np.arange(len(some), dtype=np.int64)
        labels = np.full(len(some), np.nan, np.float32)
        sequences.append(Sequence(f"k{number}", x, times, labels, observed))
    log = EventLog(
        EventSpec(), FeatureSpec.numbers("a"), None, tuple(sequences), "", 0, 0, (), targets=("a",)
    )
    return with_truth(log, forecast)


def test_the_truth_is_the_value_so_many_events_ahead() -> None:
    log = log_of([1, 2, NAN, 4], forecast=Forecast(("a",), (1, 2)))
    expected = np.array([[2, NAN], [NAN, 4], [4, NAN], [NAN, NAN]], np.float32)
    assert np.array_equal(log.sequences[0].labels, expected, equal_nan=True)


def test_a_head_does_not_know_what_comes_after_it() -> None:
    log = log_of([1, 2, 3, 4, 5], forecast=Forecast(("a",), (1, 2)))
    labels = log.sequences[0].head(3).labels
    expected = np.array([[2, 3], [3, NAN], [NAN, NAN]], np.float32)
    assert np.array_equal(labels, expected, equal_nan=True)
    assert log.sequences[0].labels[2].tolist() == [4, 5]  # the whole is left as it was


def test_naive_forecasts_use_the_keys_past_only() -> None:
    log = log_of([NAN, 2, NAN, 6], forecast=Forecast(("a",)))
    last, mean = naive(log.sequences[0], Forecast(("a",)))
    assert np.array_equal(last[:, 0], np.array([NAN, 2, 2, 6], np.float32), equal_nan=True)
    assert np.array_equal(mean[:, 0], np.array([NAN, 2, 2, 4], np.float32), equal_nan=True)


def test_a_forecast_is_judged_against_the_better_naive_one() -> None:
    forecast = Forecast(("a",))
    log = log_of([0, 1, 0, 1, 0, 1, 0], forecast=forecast)
    right = np.array([1, 0, 1, 0, 1, 0, 1], np.float32)[:, None]
    (perfect,) = judge([right], whole(log.sequences), forecast)
    assert (perfect.model, perfect.last_value, perfect.skill) == (0.0, 1.0, 1.0)
    (naive_one,) = judge([1 - right], whole(log.sequences), forecast)
    assert naive_one.model == naive_one.last_value
    assert naive_one.skill < 0  # the key's mean is better here
    assert summary([perfect])["skill"] == 1.0


def test_only_events_that_count_are_judged() -> None:
    forecast = Forecast(("a",))
    log = log_of([0, 5, 5, 5], forecast=forecast)
    part = Part(log.sequences, (1,))
    (worth,) = judge([np.full((4, 1), 5, np.float32)], part, forecast)
    assert (worth.events, worth.model) == (2, 0.0)


def test_scales_are_the_usual_changes_and_never_tiny() -> None:
    forecast = Forecast(("a",), (1, 2), (0.1, 0.9))
    log = log_of([0, 1, 2, 3, 4, 5], [10, 11, 12, 13], forecast=forecast)
    ahead = learn_ahead(log.features, forecast, whole(log.sequences))
    assert ahead.sources == (0, 0, 0, 0)
    assert ahead.scales[0] == ahead.scales[1] == pytest.approx((8 / 9) ** 0.5)
    constant = log_of([7, 7, 7], forecast=Forecast(("a",)))
    ahead = learn_ahead(constant.features, Forecast(("a",)), whole(constant.sequences))
    assert ahead.scales == (7.0,)


def test_the_median_is_the_point_and_quantiles_are_covered() -> None:
    forecast = Forecast(("a",), (1,), (0.1, 0.5, 0.9))
    log = log_of([0, 1, 2, 9], forecast=forecast)
    y = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 0, 0]], np.float32)
    assert points(y, forecast)[:, 0].tolist() == [1, 2, 3, 0]
    assert coverage([y], whole(log.sequences), forecast) == pytest.approx(2 / 3)


def test_the_threshold_flags_the_share_that_was_asked_for() -> None:
    forecast = Forecast(("a",))
    draw = np.random.default_rng(0)
    log = log_of(draw.normal(size=5001).tolist(), forecast=forecast)
    part, y = whole(log.sequences), [np.zeros((5001, 1), np.float32)]
    anomaly = calibrate(y, part, forecast, Settings(anomaly_rate=0.01))
    assert anomaly.scales[0] == pytest.approx(1.0, rel=0.05)
    (scores,) = score(y, part, OutputSpec.of_forecast(forecast, anomaly))
    assert np.isnan(scores[0, 0])  # nothing was forecast for a key's first event
    assert flags(scores, anomaly).mean() == pytest.approx(0.01, abs=0.001)
    dynamic = calibrate(y, part, forecast, replace(Settings(), threshold="dynamic"))
    (scores,) = score(y, part, OutputSpec.of_forecast(forecast, dynamic))
    assert 0.0 < flags(scores, dynamic).mean() < 0.03  # by each key's own errors


def test_a_field_without_errors_still_has_a_scale() -> None:
    forecast = Forecast(("a",))
    log = log_of([3, 3, 3], forecast=forecast)
    anomaly = calibrate(
        [np.full((3, 1), 3, np.float32)], whole(log.sequences), forecast, Settings()
    )
    assert anomaly.scales[0] > 0
    assert anomaly.threshold == 0.0


def said(events: int, rate: float, capsys: pytest.CaptureFixture[str]) -> str:
    outputs = OutputSpec.of_forecast(Forecast(("a",), (1,)), Anomaly((1.0,), 3.0, rate))
    show.metrics({"validation": {"events": events, "skill": 0.5}}, outputs, Console(width=80))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    return " ".join(printed.split())


def test_a_threshold_that_flags_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    printed = said(804, 0.001, capsys)
    assert "the largest score of only 804 validation events, so that none of them is" in printed
    assert "a larger forecast.anomaly_rate: 0.0062 flags about 5 of them" in printed
    assert "warning" not in said(804, 0.0062, capsys)
    assert "99 validation events are too few to calibrate scores" in said(99, 0.05, capsys)


def test_what_never_changes_within_a_key_is_no_default_to_forecast() -> None:
    sequences = [
        Sequence(
            f"k{key}",
            np.zeros((4, 1), np.float32),
            np.arange(4, dtype=np.int64),
            np.full(4, np.nan, np.float32),
            np.array([[10 * key, i, NAN, 7] for i in range(4)], np.float32),
        )
        for key in range(2)
    ]
    log = EventLog(
        EventSpec(), FeatureSpec.numbers("b"), None, tuple(sequences), "", 0, 0, (),
        targets=("size", "b", "never", "same"),
    )  # fmt: skip
    assert changing(log, whole(log.sequences)) == ("b",)
    narrow = with_truth(log, Forecast(("b",), (1,)))
    assert narrow.targets == ("b",)
    assert narrow.sequences[0].observed is not None
    assert narrow.sequences[0].observed[:, 0].tolist() == [0, 1, 2, 3]
    assert narrow.sequences[1].labels[:3, 0].tolist() == [1, 2, 3]


def test_where_nothing_changes_everything_is_forecast() -> None:
    log = log_of([3, 3, 3], forecast=Forecast(("a",), (1,)))
    assert changing(log, whole(log.sequences)) == ("a",)
