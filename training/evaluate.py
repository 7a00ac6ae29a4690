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
from keyfold.export.text import UNKNOWN
from keyfold.training.forecast import coverage, flags, judge, score, summary
from keyfold.training.likelihood import part_scores
from keyfold.training.model import Network
from keyfold.training.pairs import pair_windows
from keyfold.training.split import Part
from keyfold.training.transcription import measure_symbols
from keyfold.training.windows import Piece, windows

ROWS, STEPS = 64, 512  # of one call: bounds the memory of long logs
JUDGED = 2  # columns of judged probabilities; symbols are at least three: end, unknown, another

Metrics = dict[str, float | int]


def predict(network: Network, part: Part) -> list[NDArray[np.float32]]:
    """Return each sequence's outputs (T,O), folded cold from its first event on.

    Of next symbols (T,2) instead, see judged: for each symbol of a log all probabilities would be
    gigabytes.
    """
    found: list[list[NDArray[np.float32]]] = [[] for _ in part.sequences]
    pieces = [Piece(index, 0, 0) for index in range(len(part.sequences))]
    states: list[Any] = []
    are_pairs = bool(part.sequences) and part.sequences[0].is_pair
    cut = pair_windows(part.sequences, pieces, ROWS) if are_pairs else None
    for window in cut or windows(part.sequences, pieces, ROWS, STEPS):
        rows = len(window.x)
        states = states or [np.zeros((rows, units), np.float32) for units in network.state_units]
        carried = [np.where(window.fresh[:, None], np.float32(0), state) for state in states]
        y, *states = network.stepping.predict_on_batch([window.x, *carried])
        for lane in range(rows):
            if (index := int(window.owner[lane])) >= 0:
                sequence, at = part.sequences[index], int(window.at[lane])
                left = len(sequence) - at
                some = y[lane, :left]
                if sequence.is_next_symbols:
                    some = judged(some, sequence.labels[at : at + len(some)])
                found[index].append(some)
    return [np.concatenate(pieces_of_y) for pieces_of_y in found]


def judged(y: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return of probabilities (T,O) the rank of the label's, 0 the largest, and which it is: (T,2).

    Of equal ones the first comes first. Zeros where there is no label.
    """
    known = np.flatnonzero(~np.isnan(labels))
    found = np.zeros((len(y), JUDGED), np.float32)
    places = labels[known].astype(np.int64)
    rows = y if len(known) == len(y) else y[known]
    mine = rows[np.arange(len(known)), places]
    before = (rows == mine[:, None]) & (np.arange(y.shape[1]) < places[:, None])
    found[known, 0] = ((rows > mine[:, None]) | before).sum(axis=1)
    found[known, 1] = mine
    return found


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
    if outputs.kind == "transcription":
        return measure_symbols(y, part)
    if outputs.kind == "classification":
        return _measure_classes(y, part, outputs)
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


def _measure_classes(y: list[NDArray[np.float32]], part: Part, outputs: OutputSpec) -> Metrics:
    chosen = []
    for got, sequence, start in zip(y, part.sequences, part.counts_from, strict=True):
        known = np.flatnonzero(~np.isnan(sequence.labels[start:])) + start
        is_judged = sequence.is_next_symbols and got.shape[1] == JUDGED
        found = (got if is_judged else judged(got, sequence.labels))[known]
        if sequence.is_next_symbols:
            # Whatever the unknown symbol stands for, nobody has foretold it.
            found[sequence.labels[known] == UNKNOWN, 0] = np.inf
        chosen.append(found)
    events = sum(map(len, chosen))
    if not events:
        return {"events": 0}
    ranks, likelihood = np.concatenate(chosen).T
    metrics: Metrics = {
        "events": events,
        "accuracy": float((ranks == 0).mean(dtype=np.float64)),
        "cross_entropy": float(-np.log(likelihood + 1e-7).mean()),
    }
    if outputs.top > 1:
        metrics[f"accuracy_top_{outputs.top}"] = float((ranks < outputs.top).mean())
    kept = all(got.shape[1] == JUDGED for got in y)
    if outputs.likelihood is not None and kept and len(scores := part_scores(y, part)):
        metrics["flagged"] = float((scores[:, 0] > outputs.likelihood.threshold).mean())
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


def naive_metrics(train: Part, part: Part, outputs: OutputSpec) -> Metrics:
    """Judge what needs no model where a label is named: the training mean, or its usual class.

    Of a transcription: that nothing is said.
    """
    if outputs.kind == "transcription":  # of nothing but blanks
        blank = np.eye(1, len(outputs.names), dtype=np.float32)[0]
        return measure([np.tile(blank, (len(s), 1)) for s in part.sequences], part, outputs)
    known = np.concatenate([sequence.labels for sequence in train.sequences])
    known = known[~np.isnan(known)]
    if outputs.kind == "regression":
        answer = np.array([np.mean(known, dtype=np.float64)], np.float32)
    else:
        counts = np.bincount(known.astype(np.int64), minlength=len(outputs.names))
        answer = (counts / counts.sum()).astype(np.float32)
    y = [np.broadcast_to(answer, (len(s), len(answer))) for s in part.sequences]
    return measure(y, part, outputs)


def _rmse(got: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(got - labels, dtype=np.float64))))
