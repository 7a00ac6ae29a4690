"""Forecasts of a key's later events: their truth, their scale, their worth, the anomaly threshold.

Owns what is learned when no label is named: which value is the truth for which output, the naive
forecasts that a model must beat, and the calibration of the anomaly score on the validation part.
Pure numpy; knows no Keras. Called by train.py, model.py (scales) and evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.anomaly import Back
from keyfold.export.features import FeatureSpec
from keyfold.export.outputs import Anomaly, Dynamic, Forecast, OutputSpec
from keyfold.export.states import cold
from keyfold.training.config import Forecast as ForecastSettings
from keyfold.training.data import EventLog, Sequence
from keyfold.training.split import Part

LEAST_CHANGE = 1e-3  # of a field's deviation: smaller changes are not worth being learned
LEAST_SCORES = 100  # validation events; of fewer a threshold says nothing
ABOVE = 5  # validation events that are to lie above the threshold, at least about
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the head of a forecasting network knows; per output column."""

    sources: tuple[int, ...]  # column of x with the newest value; -1: the model does not see it
    offsets: tuple[float, ...]  # the training mean, where there is no such column
    scales: tuple[float, ...]  # how much the field changes until then, or deviates without column


def with_truth(log: EventLog, forecast: Forecast) -> EventLog:
    """Return the log with the truth of every forecast as labels (T,K*H), field by field."""
    columns = [log.targets.index(name) for name in forecast.fields]
    narrow = columns != list(range(len(log.targets)))
    sequences = tuple(
        _with_truth(
            replace(sequence, observed=_observed(sequence)[:, columns]) if narrow else sequence,
            forecast,
        )
        for sequence in log.sequences
    )
    return replace(
        log,
        meaning=OutputSpec.of_forecast(forecast),
        sequences=sequences,
        targets=forecast.fields,
    )


def changing(log: EventLog, train: Part) -> tuple[str, ...]:
    """Return the targets worth forecasting: those that change within a key; all, if none does."""
    changes = np.zeros(len(log.targets), np.bool_)
    for sequence in train.sequences:
        observed = _observed(sequence)
        known = ~np.isnan(observed)
        low = np.min(observed, axis=0, initial=np.inf, where=known)
        changes |= np.max(observed, axis=0, initial=-np.inf, where=known) > low
    found = tuple(name for name, yes in zip(log.targets, changes, strict=True) if yes)
    return found or log.targets


def _with_truth(sequence: Sequence, forecast: Forecast) -> Sequence:
    observed = _observed(sequence)
    reach = forecast.horizons * len(forecast.fields)
    labels = np.full((len(sequence), len(reach)), np.nan, np.float32)
    for column, ahead in enumerate(reach):
        field = column // len(forecast.horizons)
        labels[: max(0, len(sequence) - ahead), column] = observed[ahead:, field]
    return replace(sequence, labels=labels, reach=reach)


def _observed(sequence: Sequence) -> Floats:
    if sequence.observed is None:
        raise ValueError("sequence: expected observed values of the forecast fields")
    return sequence.observed


def learn_ahead(features: FeatureSpec, forecast: Forecast, train: Part) -> Ahead:
    """Learn the scales of changes from the training part."""
    columns = list(features.columns)
    plain = {item.name for item in features.fields if not item.standardise}
    sources, offsets, scales = [], [], []
    for number, name in enumerate(forecast.fields):
        source = columns.index(name) if name in columns and name in plain else -1
        values = np.concatenate([_observed(s)[:, number] for s in train.sequences])
        values = values[~np.isnan(values)].astype(np.float64)
        mean = float(values.mean()) if len(values) else 0.0
        deviation = float(values.std()) if len(values) else 0.0
        # What never changes in training has no scale; a tiny one would drown all other losses.
        least = LEAST_CHANGE * deviation if deviation > 0 else max(1.0, abs(mean))
        for place in range(len(forecast.horizons)):
            column = number * len(forecast.horizons) + place
            changes = [
                s.labels[:, column].astype(np.float64) - (s.x[:, source] if source >= 0 else mean)
                for s in train.sequences
            ]
            change = float(np.sqrt(np.nanmean(np.square(np.concatenate([*changes, np.zeros(1)])))))
            for _ in range(max(1, len(forecast.quantiles))):
                sources.append(source)
                offsets.append(0.0 if source >= 0 else mean)
                scales.append(max(change, least))
    return Ahead(tuple(sources), tuple(offsets), tuple(scales))


def points(y: Floats, forecast: Forecast) -> Floats:
    """Return of y (T,O) the point forecasts (T,K*H): the mean, or the quantile nearest a half."""
    levels = forecast.quantiles
    if not levels:
        return y
    middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
    return y[:, middle :: len(levels)]


def naive(sequence: Sequence, forecast: Forecast) -> tuple[Floats, Floats]:
    """Return two forecasts (T,K*H) without a model: the key's last value, the key's mean so far."""
    observed = _observed(sequence).astype(np.float64)
    known = ~np.isnan(observed)
    places = np.where(known, np.arange(len(observed))[:, None], 0)
    newest = np.take_along_axis(observed, np.maximum.accumulate(places, axis=0), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.cumsum(np.where(known, observed, 0.0), axis=0) / np.cumsum(known, axis=0)
    times = len(forecast.horizons)
    return (
        np.repeat(newest, times, axis=1).astype(np.float32),
        np.repeat(mean, times, axis=1).astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class Worth:
    """How good forecasts are; errors are root mean squares in the field's own unit."""

    name: str  # of the value, such as "temp+1"
    events: int  # judged
    model: float  # error of the model
    last_value: float  # of the key's last value
    key_mean: float  # of the key's mean so far
    deviation: float  # of the truth itself

    @property
    def skill(self) -> float:
        """Share of the better naive forecast's squared error that the model takes away."""
        better = min(self.last_value, self.key_mean)
        return 1.0 - (self.model / better) ** 2 if better > 0 else 0.0


def judge(y: Seq[Floats], part: Part, forecast: Forecast) -> list[Worth]:
    """Judge forecasts against the naive ones, where an event counts and all three say something."""
    truth, *guesses = ([] for _ in range(4))  # type: ignore[var-annotated]
    for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True):
        truth.append(sequence.labels[start:])
        for kept, guess in zip(
            guesses, (points(got, forecast), *naive(sequence, forecast)), strict=True
        ):
            kept.append(guess[start:])
    right = np.concatenate(truth).astype(np.float64)
    made = [np.concatenate(guess).astype(np.float64) for guess in guesses]
    names = Forecast(forecast.fields, forecast.horizons).names
    return [_worth(name, right[:, i], [guess[:, i] for guess in made])
            for i, name in enumerate(names)]  # fmt: skip


def _worth(name: str, truth: NDArray[np.float64], made: Seq[NDArray[np.float64]]) -> Worth:
    good = ~np.isnan(truth) & ~np.isnan(np.stack(made)).any(axis=0)
    if not good.any():
        return Worth(name, 0, 0.0, 0.0, 0.0, 0.0)
    model, last_value, key_mean = (
        float(np.sqrt(np.mean(np.square(guess[good] - truth[good])))) for guess in made
    )
    deviation = float(truth[good].std())
    return Worth(name, int(good.sum()), model, last_value, key_mean, deviation)


def summary(worths: Seq[Worth]) -> dict[str, float | int]:
    """Average over all values, each in units of its own deviation."""
    judged = [worth for worth in worths if worth.events and worth.deviation > 0]
    found: dict[str, float | int] = {"events": max((w.events for w in worths), default=0)}
    if not judged:
        return found
    for name in ("model", "last_value", "key_mean"):
        squares = [(getattr(worth, name) / worth.deviation) ** 2 for worth in judged]
        found["error" if name == "model" else f"error_{name}"] = float(np.sqrt(np.mean(squares)))
    better = min(found["error_last_value"], found["error_key_mean"])
    found["skill"] = 1.0 - (found["error"] / better) ** 2 if better > 0 else 0.0
    return found


def coverage(y: Seq[Floats], part: Part, forecast: Forecast) -> float | None:
    """Return the share of the truth between lowest and highest quantile; None: no quantiles."""
    count = len(forecast.quantiles)
    if count < 2:
        return None
    inside, known = 0, 0
    for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True):
        truth = sequence.labels[start:]
        low, high = got[start:, ::count], got[start:, count - 1 :: count]
        known += int((~np.isnan(truth)).sum())
        inside += int(((low <= truth) & (truth <= high)).sum())
    return inside / known if known else None


def calibrate(
    y: Seq[Floats],
    part: Part,
    forecast: Forecast,
    settings: ForecastSettings,
    kept: tuple[float, ...] | None = None,
) -> Anomaly:
    """Learn scales and threshold of the anomaly score from a part's events that count.

    `kept`: scales that stay what they are.
    """
    squares = np.zeros(len(forecast.fields))
    counts = np.zeros(len(forecast.fields))
    for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True):
        errors = points(got, forecast) - sequence.labels
        first = errors[start:, :: len(forecast.horizons)].astype(np.float64)
        squares += np.nansum(np.square(first), axis=0)
        counts += (~np.isnan(first)).sum(axis=0)
    scales = np.sqrt(squares / np.maximum(counts, 1))
    # A field that is always forecast exactly would flag its first rounding error.
    size = np.array([_size(part, number) for number in range(len(forecast.fields))])
    scales = np.maximum(scales, 1e-6 * size)
    judged = Anomaly(kept or tuple(scales.tolist()), 0.0, settings.anomaly_rate)
    scores = np.concatenate(score(y, part, OutputSpec.of_forecast(forecast, judged)))[:, 0]
    scores = scores[~np.isnan(scores)]
    threshold = 0.0
    if len(scores):
        threshold = float(np.quantile(scores, 1.0 - settings.anomaly_rate, method="higher"))
    dynamic = Dynamic() if settings.threshold == "dynamic" else None
    return replace(judged, threshold=threshold, dynamic=dynamic)


def _size(part: Part, number: int) -> float:
    largest = [np.nanmax(np.abs(_observed(s)[:, number]), initial=0.0) for s in part.sequences]
    return max(1.0, float(max(largest)))


def score(y: Seq[Floats], part: Part, outputs: OutputSpec) -> list[Floats]:
    """Return what export/anomaly.py says (T,S) of each sequence's events that count."""
    back = Back.of(outputs)
    if back is None:
        return []
    scores = []
    for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True):
        lengths = np.array([len(sequence)], np.int32)
        found, _ = back.run(got[None], _observed(sequence)[None], lengths, cold(back.states, 1))
        scores.append(found[0, start:])
    return scores


def flags(scores: Floats, anomaly: Anomaly) -> NDArray[np.bool_]:
    """Return which events (T,) of scores (T,S) are flagged, as the prediction says it."""
    if anomaly.dynamic is None:
        return scores[:, 0] > anomaly.threshold
    return scores[:, 3] > scores[:, 2]
