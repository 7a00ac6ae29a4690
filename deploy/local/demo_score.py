"""What the streamed predictions are worth: read from the output topic, joined with the labels.

Owns the join (a prediction's id names its event, the event on the input topic has the label), the
accuracy and the confusion matrix. It asks the topics alone: no model is run here. Called by demo.py
once everything is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Message
from numpy.typing import NDArray

from keyfold.worker.kafka.log import KafkaLog
from local.demo_scene import Scene

NOTHING = -1  # class number of a prediction that never came


@dataclass(frozen=True, slots=True)
class Trace:
    """One key's events in order, N of them."""

    key: str  # as text
    times_ms: NDArray[np.int64]  # (N,) event times
    truth: NDArray[np.int64]  # (N,) class numbers
    predicted: NDArray[np.int64]  # (N,) class numbers, or NOTHING
    emitted_ms: NDArray[np.int64]  # (N,) when the first prediction was written, UTC epoch ms


@dataclass(frozen=True, slots=True)
class Score:
    """How good the stream of predictions is."""

    names: tuple[str, ...]  # of the classes
    traces: tuple[Trace, ...]  # by key
    confusion: NDArray[np.int64]  # (O,O) events by truth and prediction
    accuracy: float  # of all events; one without a prediction is wrong
    accuracy_majority: float  # of always the class that is most frequent among these very events


@dataclass(slots=True)
class _Row:
    """One event and the first prediction about it."""

    key: str
    time_ms: int
    truth: int
    predicted: int = NOTHING
    emitted_ms: int = 0


def score(scene: Scene, label: str, names: tuple[str, ...]) -> Score:
    """Read both topics and judge; `label` is the events' field with the truth."""
    rows: list[_Row] = []
    with KafkaLog(scene.brokers) as log:
        for partition in range(scene.partitions):
            rows += _partition(log, scene, partition, label, names)
    traces = tuple(_trace(key, rows) for key in sorted({row.key for row in rows}))
    truth = np.concatenate([trace.truth for trace in traces])
    predicted = np.concatenate([trace.predicted for trace in traces])
    there = predicted != NOTHING
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (truth[there], predicted[there]), 1)
    return Score(
        names,
        traces,
        confusion,
        float((truth == predicted).mean()),
        float(np.bincount(truth).max() / len(truth)),
    )


def _partition(
    log: KafkaLog, scene: Scene, partition: int, label: str, names: tuple[str, ...]
) -> list[_Row]:
    numbers = {name: number for number, name in enumerate(names)}
    rows: dict[int, _Row] = {}
    extent = log.extent(scene.events, partition)
    for message in log.read(scene.events, partition, extent.start, extent.end):
        event = orjson.loads(message.value() or b"")
        key = (message.key() or b"").decode()
        rows[message.offset() or 0] = _Row(key, event["time"], numbers[event[label]])
    extent = log.extent(scene.predictions, partition)
    for message in log.read(scene.predictions, partition, extent.start, extent.end):
        _note(message, rows, numbers)
    return list(rows.values())


def _note(message: Message, rows: dict[int, _Row], numbers: dict[str, int]) -> None:
    """Note the first prediction about an event; keyfold-verify judges whatever else is there."""
    try:
        prediction: Any = orjson.loads(message.value() or b"")
        row = rows[int(prediction["id"].split(":")[2])]  # topic:partition:offset:index
        predicted = numbers[prediction["output"]["label"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return  # no prediction
    if row.predicted == NOTHING:
        row.predicted = predicted
        row.emitted_ms = message.timestamp()[1]


def _trace(key: str, rows: list[_Row]) -> Trace:
    mine = [row for row in rows if row.key == key]  # in offset order: a key has one partition
    return Trace(
        key,
        np.array([row.time_ms for row in mine], np.int64),
        np.array([row.truth for row in mine], np.int64),
        np.array([row.predicted for row in mine], np.int64),
        np.array([row.emitted_ms for row in mine], np.int64),
    )
