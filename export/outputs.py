"""The output spec: what the model's output row means, and how an anomaly is judged from it.

Owns the names of the outputs and their order; for a forecast also which column is which field,
horizon and quantile. It computes nothing: anomaly.py scores, predictions.py writes. Called by
training and wrap (which make one), bundle (manifest), anomaly and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from keyfold.export.errors import SpecError

OutputKind = Literal["regression", "classification", "forecast"]
MAX_WINDOW = 2048  # errors kept per key: 8 KiB of its state


@dataclass(frozen=True, slots=True)
class Dynamic:
    """The threshold that follows each key's own errors (Hundman et al. 2018, arXiv 1802.04431)."""

    window: int = 256  # smoothed errors kept per key
    smoothing: float = 0.1  # weight of the newest error in the moving average
    warm_up: int = 64  # errors of a key before its own threshold replaces the fixed one

    def __post_init__(self) -> None:
        if not 2 <= self.warm_up <= self.window <= MAX_WINDOW:
            raise SpecError(
                f"outputs.anomaly.dynamic: expected 2 <= warm_up <= window <= {MAX_WINDOW}, "
                f"got warm_up {self.warm_up} and window {self.window}"
            )
        if not 0 < self.smoothing <= 1:
            raise SpecError(
                f"outputs.anomaly.dynamic.smoothing: expected above 0 and at most 1, "
                f"got {self.smoothing}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"window": self.window, "smoothing": self.smoothing, "warm_up": self.warm_up}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """How far from its forecast an event is, and how far is too far."""

    scales: tuple[float, ...]  # per forecast field: deviation of the errors on validation data
    threshold: float  # a score above it is flagged
    rate: float  # share of the validation events above it: where the threshold comes from
    dynamic: Dynamic | None = None  # a threshold per key instead, once the key is warm

    def __post_init__(self) -> None:
        if not all(0 < scale < math.inf for scale in self.scales):
            raise SpecError(
                f"outputs.anomaly.scales: expected numbers above 0, got {list(self.scales)}"
            )
        if not 0 <= self.threshold < math.inf or not 0 <= self.rate <= 1:
            raise SpecError(
                "outputs.anomaly: expected a threshold of at least 0 and a rate from 0 to 1, "
                f"got {self.threshold} and {self.rate}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        dynamic = {} if self.dynamic is None else {"dynamic": self.dynamic.to_json()}
        return {
            "scales": list(self.scales),
            "threshold": self.threshold,
            "rate": self.rate,
            **dynamic,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Anomaly:
        """Read the manifest's form."""
        dynamic = data.get("dynamic")
        return cls(
            tuple(data["scales"]),
            data["threshold"],
            data["rate"],
            None if dynamic is None else Dynamic(**dynamic),
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """Which values of which later events of the key the outputs are."""

    fields: tuple[str, ...]  # number or boolean members of an event, in their own unit
    horizons: tuple[int, ...] = (1,)  # events of the key ahead, ascending
    quantiles: tuple[float, ...] = ()  # ascending; (): one output, the mean

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise SpecError(
                f"outputs.forecast.fields: expected distinct names, got {list(self.fields)}"
            )
        ahead = self.horizons
        if not ahead or ahead[0] < 1 or list(ahead) != sorted(set(ahead)):
            raise SpecError(
                "outputs.forecast.horizons: expected ascending whole numbers from 1 on, "
                f"got {list(ahead)}"
            )
        levels = self.quantiles
        if not all(0 < q < 1 for q in levels) or list(levels) != sorted(set(levels)):
            raise SpecError(
                "outputs.forecast.quantiles: expected ascending numbers between 0 and 1, "
                f"got {list(levels)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the O output columns: field by field, then horizon, then quantile."""
        ends = [f"@{quantile:g}" for quantile in self.quantiles] or [""]
        return tuple(
            f"{field}+{ahead}{end}"
            for field in self.fields
            for ahead in self.horizons
            for end in ends
        )

    @property
    def point_columns(self) -> tuple[int, ...]:
        """Per field, the column of its point forecast (mean or median) at the first horizon."""
        levels = self.quantiles
        middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5)) if levels else 0
        width = len(self.horizons) * max(1, len(levels))
        return tuple(number * width + middle for number in range(len(self.fields)))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {
            "fields": list(self.fields),
            "horizons": list(self.horizons),
            "quantiles": list(self.quantiles),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Forecast:
        """Read the manifest's form."""
        return cls(tuple(data["fields"]), tuple(data["horizons"]), tuple(data["quantiles"]))


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the model's output row of O numbers means."""

    kind: OutputKind  # values in label units, probabilities, or values of later events
    names: tuple[str, ...]  # regression, forecast: a name per output; classification: a label each
    forecast: Forecast | None = None  # kind "forecast": which output is which
    anomaly: Anomaly | None = None  # kind "forecast": how events are scored; None: they are not

    def __post_init__(self) -> None:
        if self.kind not in get_args(OutputKind):
            raise SpecError(
                "outputs.kind: expected 'regression', 'classification' or 'forecast', "
                f"got {self.kind!r}"
            )
        least = 2 if self.kind == "classification" else 1
        if len(self.names) < least or len(set(self.names)) != len(self.names):
            raise SpecError(
                f"outputs.names: expected at least {least} distinct names for {self.kind}, "
                f"got {list(self.names)}"
            )
        self._check_forecast()

    def _check_forecast(self) -> None:
        forecast, anomaly = self.forecast, self.anomaly
        if (forecast is not None) != (self.kind == "forecast"):
            raise SpecError(
                f"outputs.forecast: expected for kind 'forecast' and no other, got {self.kind!r}"
            )
        if forecast is not None and self.names != forecast.names:
            raise SpecError(
                f"outputs.names: expected {list(forecast.names)} for this forecast, "
                f"got {list(self.names)}"
            )
        if anomaly is None:
            return
        if forecast is None or forecast.horizons[0] != 1:
            raise SpecError("outputs.anomaly: expected a forecast with horizon 1, got none")
        if len(anomaly.scales) != len(forecast.fields):
            raise SpecError(
                f"outputs.anomaly.scales: expected {len(forecast.fields)}, one per forecast field, "
                f"got {len(anomaly.scales)}"
            )

    @classmethod
    def of_forecast(cls, forecast: Forecast, anomaly: Anomaly | None = None) -> OutputSpec:
        """Return the spec of a forecast, its names included."""
        return cls("forecast", forecast.names, forecast, anomaly)

    @property
    def targets(self) -> tuple[str, ...]:
        """Fields whose values scoring needs: what the decoder has to observe."""
        return () if self.forecast is None or self.anomaly is None else self.forecast.fields

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not used does not stand in it."""
        data: dict[str, Any] = {"kind": self.kind, "names": list(self.names)}
        if self.forecast is not None:
            data["forecast"] = self.forecast.to_json()
        if self.anomaly is not None:
            data["anomaly"] = self.anomaly.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputSpec:
        """Read the manifest's form."""
        forecast, anomaly = data.get("forecast"), data.get("anomaly")
        return cls(
            data["kind"],
            tuple(data["names"]),
            None if forecast is None else Forecast.from_json(forecast),
            None if anomaly is None else Anomaly.from_json(anomaly),
        )
