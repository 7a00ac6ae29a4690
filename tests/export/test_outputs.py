"""Forecasts and anomaly scores: what the outputs mean and how they stand in a prediction.

Predictions are held by golden bytes: consumers parse them. Needs no service.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from keyfold.export.errors import SpecError
from keyfold.export.events import (
    Anomaly,
    Caused,
    Dynamic,
    Forecast,
    OutputSpec,
    PredictionEncoder,
)

NAN = float("nan")
CAUSED = Caused([7], [b"k"], [5], [2])
ANOMALY = Anomaly((0.5, 2.0), 3.0, 0.001)


def encoded(outputs: OutputSpec, y: list[float], scores: list[float] | None = None) -> bytes:
    encoder = PredictionEncoder(outputs, "b", "t")
    (payload,) = encoder.encode(
        0,
        CAUSED,
        np.array([y], np.float32),
        None if scores is None else np.array([scores], np.float32),
    )
    return payload


def test_names_of_a_forecast_go_field_by_field_then_horizon_then_quantile() -> None:
    forecast = Forecast(("temp", "p"), (1, 5), (0.1, 0.5, 0.95))
    assert forecast.names[:4] == ("temp+1@0.1", "temp+1@0.5", "temp+1@0.95", "temp+5@0.1")
    assert forecast.names[6] == "p+1@0.1"
    assert len(forecast.names) == 12
    assert forecast.point_columns == (1, 7)
    assert Forecast(("temp",), (1, 2)).names == ("temp+1", "temp+2")
    assert Forecast(("a", "b"), (1, 2)).point_columns == (0, 2)


def test_prediction_of_a_forecast_is_held_byte_for_byte() -> None:
    outputs = OutputSpec.of_forecast(Forecast(("temp", '"100 %"'), (1, 5)))
    assert encoded(outputs, [20.1, 20.4, 1e-7, -3]) == (
        b'{"id":"t:0:7:0","about":"t:0:7","key":"k","time":5,'
        b'"output":{"forecast":{"temp":{"1":20.1,"5":20.4},"\\"100 %\\"":{"1":1e-7,"5":-3.0}}},'
        b'"steps":2,"cold":false,"bundle":"b"}'
    )


def test_prediction_with_quantiles_and_a_score_is_held_byte_for_byte() -> None:
    outputs = OutputSpec.of_forecast(Forecast(("a", "b"), (1,), (0.1, 0.5)), ANOMALY)
    assert encoded(outputs, [1, 2, 3, 4], [3.25, 1]) == (
        b'{"id":"t:0:7:0","about":"t:0:7","key":"k","time":5,"output":{"forecast":'
        b'{"a":{"1":{"0.1":1.0,"0.5":2.0}},"b":{"1":{"0.1":3.0,"0.5":4.0}}},'
        b'"anomaly":{"score":3.25,"field":"b","flag":true}},'
        b'"steps":2,"cold":false,"bundle":"b"}'
    )


def test_score_at_the_threshold_is_not_flagged_and_no_score_is_null() -> None:
    outputs = OutputSpec.of_forecast(Forecast(("a", "b")), ANOMALY)
    assert json.loads(encoded(outputs, [1, 2], [3.0, 0]))["output"]["anomaly"] == {
        "score": 3.0,
        "field": "a",
        "flag": False,
    }
    assert json.loads(encoded(outputs, [1, 2], [NAN, NAN]))["output"]["anomaly"] == {
        "score": None,
        "field": None,
        "flag": False,
    }


def test_the_key_s_own_threshold_decides_and_is_shown() -> None:
    anomaly = Anomaly((1.0,), 3.0, 0.001, Dynamic())
    outputs = OutputSpec.of_forecast(Forecast(("a",)), anomaly)
    for judged, flag in ((0.75, True), (0.5, False)):
        assert json.loads(encoded(outputs, [1], [9.0, 0, 0.5, judged]))["output"]["anomaly"] == {
            "score": 9.0,
            "field": "a",
            "flag": flag,
            "threshold": 0.5,
            "smoothed": judged,
        }
    assert json.loads(encoded(outputs, [1], [NAN] * 4))["output"]["anomaly"]["score"] is None


def test_specs_survive_their_manifest_forms() -> None:
    forecast = Forecast(("a", "b"), (1, 3), (0.5,))
    for anomaly in (None, ANOMALY, Anomaly((1.0, 1.0), 2.0, 0.01, Dynamic(64, 0.2, 32))):
        outputs = OutputSpec.of_forecast(forecast, anomaly)
        assert OutputSpec.from_json(json.loads(json.dumps(outputs.to_json()))) == outputs
    assert OutputSpec("regression", ("x",)).to_json() == {"kind": "regression", "names": ["x"]}


def test_only_what_is_scored_has_to_be_observed() -> None:
    assert OutputSpec.of_forecast(Forecast(("a", "b"))).targets == ()
    assert OutputSpec.of_forecast(Forecast(("a", "b")), ANOMALY).targets == ("a", "b")
    assert OutputSpec("regression", ("x",)).targets == ()


def test_specs_that_contradict_themselves_are_refused_by_name() -> None:
    two = Forecast(("a", "b"))
    with pytest.raises(SpecError, match=r"outputs\.forecast\.fields: expected distinct names"):
        Forecast(("a", "a"))
    with pytest.raises(SpecError, match=r"horizons: expected ascending whole numbers from 1 on"):
        Forecast(("a",), (0, 1))
    with pytest.raises(SpecError, match=r"horizons: .* got \[2, 1\]"):
        Forecast(("a",), (2, 1))
    with pytest.raises(SpecError, match=r"quantiles: expected ascending numbers between 0 and 1"):
        Forecast(("a",), (1,), (0.5, 1.0))
    with pytest.raises(SpecError, match=r"scales: expected numbers above 0, got \[0.0\]"):
        Anomaly((0.0,), 3.0, 0.001)
    with pytest.raises(SpecError, match=r"a threshold of at least 0 and a rate from 0 to 1"):
        Anomaly((1.0,), NAN, 0.001)
    with pytest.raises(SpecError, match=r"scales: expected 2, one per forecast field, got 1"):
        OutputSpec.of_forecast(two, Anomaly((1.0,), 3.0, 0.001))
    with pytest.raises(SpecError, match="expected a forecast with horizon 1"):
        OutputSpec.of_forecast(Forecast(("a",), (2,)), Anomaly((1.0,), 3.0, 0.001))
    with pytest.raises(SpecError, match=r"outputs\.forecast: expected for kind 'forecast'"):
        OutputSpec("regression", ("a+1", "b+1"), two)
    with pytest.raises(SpecError, match=r"outputs\.names: expected \['a\+1', 'b\+1'\]"):
        OutputSpec("forecast", ("a", "b"), two)
    with pytest.raises(SpecError, match=r"2 <= warm_up <= window <= 2048"):
        Dynamic(window=10, warm_up=11)
    with pytest.raises(SpecError, match=r"smoothing: expected above 0 and at most 1"):
        Dynamic(smoothing=0.0)
