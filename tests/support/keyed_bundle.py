"""A real bundle whose keys remember more than the graph's tensors: a front and a back.

Owns the feature and output specs of tests about missing values, time gaps, standardisation,
forecasts and anomaly scores, and events for them, as dirty as those of machines. The graph is the
tiny bundle's. Imported as `from keyed_bundle import make_keyed_bundle`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from naive_worker import LogRecord
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.events import Anomaly, Dynamic, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field

FEATURES = FeatureSpec(
    (
        Field("temp", missing="last", fill=0.25, standardise=True),
        Field("a"),
        Field("load.now", missing="mask", fill=-1.0, standardise=True),
        Field("on", "boolean", missing="last", fill=0.5),
        Field("mode", "category", ("idle", "run"), missing="last"),
        Field("rpm", missing="last", fill=2.0),
    ),
    since_last=True,
)
TARGETS = ("temp", "rpm")
SCALES, THRESHOLD = (0.5, 2.0), 2.5


def keyed_outputs(
    *, quantiles: tuple[float, ...] = (0.1, 0.5, 0.9), dynamic: Dynamic | None = None
) -> OutputSpec:
    """Return the outputs of the keyed bundle: forecasts of two fields, one and three ahead."""
    forecast = Forecast(TARGETS, (1, 3), quantiles)
    return OutputSpec.of_forecast(forecast, Anomaly(SCALES, THRESHOLD, 0.1, dynamic))


def make_keyed_bundle(folder: Path, outputs: OutputSpec | None = None, **options: Any) -> Bundle:
    """Write folder/<id> and load it again; options are those of make_tiny_bundle."""
    options = {"features": FEATURES, **options}
    return make_tiny_bundle(folder, outputs=outputs or keyed_outputs(), **options)


def messy_members(draw: np.random.Generator) -> dict[str, Any]:
    """Return an event's members; one in three optional ones is null, absent or unheard of."""
    temp, a, load, rpm = (round(float(value), 3) for value in draw.normal(0, 1.5, 4))
    members: dict[str, Any] = {"a": a, "temp": temp, "rpm": rpm, "load": {"now": load}}
    members["on"] = bool(draw.integers(2))
    members["mode"] = str(draw.choice(["idle", "run", "burnt"]))
    for name in ("temp", "rpm", "load", "on", "mode"):
        how = draw.integers(6)
        if how == 0:
            del members[name]
        elif how == 1:
            members[name] = None
    return members


def messy_event(draw: np.random.Generator, time_ms: int, **members: Any) -> bytes:
    """Return an event of the keyed bundle."""
    return json.dumps({"time": time_ms, **messy_members(draw), **members}).encode()


def keyed_log(base: int, count: int, keys: int, seed: int = 1) -> list[LogRecord]:
    """Return records of k0, k1, ... in turn, from offset `base`, a second apart."""
    draw = np.random.default_rng(seed)
    return [
        LogRecord(base + i, 5_000 + i, b"k%d" % (i % keys), messy_event(draw, 1000 * i))
        for i in range(count)
    ]
