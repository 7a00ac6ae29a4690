"""The oracle's own front and back: what a key remembers, and what an event is then judged by.

The numbers here are worked out by hand; that the worker's arrays say the same is tested in
tests/worker/test_fold_around.py and test_agrees.py.
"""

from __future__ import annotations

import subprocess
import sys
from math import log, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keyed_bundle import keyed_outputs, make_keyed_bundle
from multiplier import make_multiplier
from numpy.typing import NDArray

from keyfold.export.events import Anomaly, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.worker.verify.offline_front import NEVER_MS, OfflineFront
from keyfold.worker.verify.offline_key import Event, OfflineBack, OfflineKey
from keyfold.worker.verify.offline_step import OfflineStep


def run(
    features: FeatureSpec, *events: tuple[list[float], int]
) -> tuple[list[list[float]], dict[str, NDArray[Any]]]:
    """Return the finished columns of one key's events (columns, time) and its last memory."""
    front, found = OfflineFront(features), []
    memory = front.cold()
    for columns, time_ms in events:
        x, memory = front.one(np.array(columns, np.float32), time_ms, memory)
        found.append(x.tolist())
    return found, memory


def test_a_missing_value_is_the_key_s_last_one_and_before_any_the_fill() -> None:
    features = FeatureSpec((Field("a", missing="last", fill=9.0),))
    x, memory = run(features, ([nan, 1], 0), ([2, 0], 1), ([nan, 1], 2), ([3, 0], 3))
    assert x == [[9, 1], [2, 0], [2, 1], [3, 0]]
    assert memory["front.last"].tolist() == [3]


def test_a_missing_category_is_the_key_s_last_one_and_before_any_none() -> None:
    features = FeatureSpec((Field("m", "category", ("x", "y"), "last"),))
    x, _ = run(features, ([nan, nan, 1], 0), ([0, 1, 0], 1), ([nan, nan, 1], 2))
    assert x == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_time_since_the_last_event_is_0_at_first_and_never_below() -> None:
    features = FeatureSpec((Field("a"),), since_last=True)
    x, memory = run(features, ([0, 0], 5000), ([0, 0], 7000), ([0, 0], 1000), ([0, 0], 1000))
    assert [row[1] for row in x] == pytest.approx([0, log(3), 0, 0])
    assert memory["front.time_ms"] == 1000
    assert OfflineFront(features).cold()["front.time_ms"] == NEVER_MS == np.iinfo(np.int64).min


def test_values_are_standardised_by_the_moments_up_to_and_with_the_event() -> None:
    features = FeatureSpec((Field("a", standardise=True), Field("b")))
    x, memory = run(features, ([1, 7], 0), ([3, 7], 0), ([8, 7], 0))
    assert [row[0] for row in x] == pytest.approx([0, 1, 4 / sqrt(26 / 3)])
    assert [row[1] for row in x] == [7, 7, 7]
    np.testing.assert_allclose(memory["front.moments"], [[3], [4], [26]])


@pytest.mark.parametrize(("missing", "shown"), [("mask", 0.0), ("last", 1.0)])
def test_a_missing_value_moves_no_moments(missing: Any, shown: float) -> None:
    features = FeatureSpec((Field("a", missing=missing, standardise=True),))
    value = nan if missing == "last" else 0.0
    x, memory = run(features, ([1, 0], 0), ([3, 0], 0), ([value, 1], 0))
    assert [row[0] for row in x] == [0, 1, shown]
    assert memory["front.moments"].tolist() == [[2], [2], [2]]


def test_an_event_is_scored_by_the_forecast_made_at_the_event_before_it() -> None:
    back = OfflineBack(Forecast(("a", "b"), (1, 2)), Anomaly((0.5, 2.0), 3.0, 0.1), 1e-5)
    first = np.array([1, 99, 10, 99], np.float32)  # a+1, a+2, b+1, b+2
    scores, judged, memory = back.one(first, np.array([4, 4], np.float32), back.cold())
    assert np.isnan(scores).all()
    assert judged.threshold == 3.0
    assert memory[0].tolist() == [[1, 10]]
    scores, _, memory = back.one(first, np.array([2, nan], np.float32), memory)
    assert scores[0] == 2.0
    assert np.isnan(scores[1])


def test_of_quantiles_the_one_nearest_to_the_median_is_the_point_forecast() -> None:
    quantiles = (0.1, 0.6, 0.9)
    back = OfflineBack(Forecast(("a", "b"), (1, 2), quantiles), Anomaly((1.0, 1.0), 1.0, 0.1), 1e-5)
    _, _, memory = back.one(np.arange(12, dtype=np.float32), np.zeros(2, np.float32), back.cold())
    assert memory[0].tolist() == [[1, 7]]


def test_a_score_ends_at_the_largest_float32() -> None:
    back = OfflineBack(Forecast(("a",)), Anomaly((1e-9,), 1.0, 0.1), 1e-5)
    _, _, memory = back.one(np.array([3e38], np.float32), np.zeros(1, np.float32), back.cold())
    scores, _, _ = back.one(np.zeros(1, np.float32), np.array([-3e38], np.float32), memory)
    assert scores == [np.finfo(np.float32).max]


def test_a_key_s_tensors_are_those_of_the_manifest_in_their_order(tmp_path: Path) -> None:
    bundle = make_keyed_bundle(tmp_path, keyed_outputs())
    key = OfflineKey(OfflineStep(bundle))
    cold = key.cold()
    for spec, tensor in zip(bundle.manifest.kept, cold, strict=True):
        assert tensor.shape[1:] == spec.dims
        assert tensor.dtype == spec.dtype
        np.testing.assert_array_equal(tensor, np.full_like(tensor, spec.initial))


def test_a_step_that_is_not_finite_leads_to_nothing(tmp_path: Path) -> None:
    features = FeatureSpec((Field("a", missing="last", fill=1.0),), since_last=True)
    outputs = OutputSpec.of_forecast(Forecast(("a",)), Anomaly((1.0,), 1.0, 0.1))
    key = OfflineKey(OfflineStep(make_multiplier(tmp_path, None, features, outputs)))
    seen = np.zeros(1, np.float32)
    first = key.one(Event(np.array([2, 0, 0], np.float32), 5, seen), key.cold())
    assert first is not None
    before = [tensor.copy() for tensor in first.tensors]
    assert key.one(Event(np.zeros(3, np.float32), 6, seen), first.tensors) is None
    np.testing.assert_equal(first.tensors, before)


def test_the_oracle_loads_nothing_of_the_worker_s_path() -> None:
    code = "import sys, keyfold.worker.verify.verification; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    path = ("fold", "model", "passthrough", "pipeline", "placement", "schedule", "slots", "store")
    forbidden = {f"keyfold.worker.{name}" for name in (*path, "emit", "owner", "state_codec")}
    assert not forbidden & set(done.stdout.split())
