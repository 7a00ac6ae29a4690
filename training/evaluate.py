"""Predictions and metrics of a trained model over whole sequences.

Owns what "how good is it" means: every event is predicted from its key's events so far, as it will
be when served, and only events that count are judged. A sequence begins where its key starts cold:
at its first event, behind a tombstone, after a silence (training/data.py cuts there). Knows
networks and parts, not files. Called by the commands after training, and on other logs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import OutputSpec
from keyfold.export.outputs import Forecast
from keyfold.training.forecast import coverage, flags, judge, score, summary
from keyfold.training.model import Network
from keyfold.training.split import Part
from keyfold.training.windows import Piece, windows

ROWS, STEPS = 64, 512  # of one call: bounds the memory of long logs

Metrics = dict[str, float | int]


def predict(network: Network, part: Part) -> list[NDArray[np.float32]]:
    """Return each sequence's outputs (T,O), folded cold from its first event on."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in part.sequences]
    pieces = [Piece(index, 0, 0) for index in range(len(part.sequences))]
    states: list[Any] = []
    for window in windows(part.sequences, pieces, ROWS, STEPS):
        rows = len(window.x)
        states = states or [np.zeros((rows, units), np.float32) for units in network.state_units]
        carried = [np.where(window.fresh[:, None], np.float32(0), state) for state in states]
        y, *states = network.stepping.predict_on_batch([window.x, *carried])
        for lane in range(rows):
            if (index := int(window.owner[lane])) >= 0:
                left = len(part.sequences[index]) - int(window.at[lane])
                found[index].append(y[lane, :left])
    return [np.concatenate(pieces_of_y) for pieces_of_y in found]


def measure(
    y: list[NDArray[np.float32]], part: Part, outputs: OutputSpec, label_cap: float | None = None
) -> Metrics:
    """Judge outputs (T,O) of a part's sequences, where an event counts and has a label.

    Regression also reports the last labelled event of every sequence, and with a cap both against
    capped labels too; a forecast what the naive forecasts reach, and the share of events that are
    flagged. Without any event to judge only the count is returned.
    """
    if outputs.forecast is not None:
        return _measure_forecast(y, part, outputs, outputs.forecast)
    chosen = [
        (got[start:][known], sequence.labels[start:][known])
        for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True)
        if (known := ~np.isnan(sequence.labels[start:])).any()
    ]
    events = sum(len(labels) for _, labels in chosen)
    if not events:
        return {"events": 0}
    got = np.concatenate([a for a, _ in chosen])
    labels = np.concatenate([b for _, b in chosen])
    if outputs.kind == "classification":
        right = got.argmax(axis=1) == labels
        likelihood = got[np.arange(events), labels.astype(np.int64)]
        return {
            "events": events,
            "accuracy": float(right.mean()),
            "cross_entropy": float(-np.log(likelihood + 1e-7).mean()),
        }
    last, last_labels = (np.array([pair[i][-1] for pair in chosen]).reshape(-1) for i in (0, 1))
    metrics: Metrics = {
        "events": events,
        "rmse": _rmse(got[:, 0], labels),
        "rmse_last": _rmse(last, last_labels),
    }
    if label_cap is not None:
        metrics["rmse_capped"] = _rmse(got[:, 0], np.minimum(labels, label_cap))
        metrics["rmse_last_capped"] = _rmse(last, np.minimum(last_labels, label_cap))
    return metrics


def _measure_forecast(
    y: list[NDArray[np.float32]], part: Part, outputs: OutputSpec, forecast: Forecast
) -> Metrics:
    metrics = summary(judge(y, part, forecast))
    if (inside := coverage(y, part, forecast)) is not None:
        metrics["coverage"] = inside
    if outputs.anomaly is not None and metrics["events"]:
        scores = np.concatenate(score(y, part, outputs))
        judged = scores[~np.isnan(scores[:, 0])]
        if len(judged):
            metrics["flagged"] = float(flags(judged, outputs.anomaly).mean())
    return metrics


def naive_metrics(train: Part, judged: Part, outputs: OutputSpec) -> Metrics:
    """Judge what needs no model where a label is named: the training mean, or its usual class."""
    known = np.concatenate([sequence.labels for sequence in train.sequences])
    known = known[~np.isnan(known)]
    if outputs.kind == "regression":
        answer = np.array([np.mean(known, dtype=np.float64)], np.float32)
    else:
        counts = np.bincount(known.astype(np.int64), minlength=len(outputs.names))
        answer = (counts / counts.sum()).astype(np.float32)
    return measure([np.tile(answer, (len(s), 1)) for s in judged.sequences], judged, outputs)


def _rmse(got: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(got - labels, dtype=np.float64))))
