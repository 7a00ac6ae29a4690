"""Labels that come later, in a log of their own, joined to events by key and time.

Owns the join and the reading of the second log: the label of an event is the first one of the same
key at or after the event's time, not later than `within_s`, and before the key starts anew. Called
by train.py before the split, which drops labels that came after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import Decoder
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.label_join import LabelJoin
from keyfold.training.config import Config
from keyfold.training.config import Labels as Settings
from keyfold.training.data import SHOWN_REJECTS, UNKNOWN, DataError, EventLog, Sequence
from keyfold.training.labels import Labels
from keyfold.training.rows import prepared
from keyfold.training.settings_data import Data
from keyfold.training.sources import read_files

History = tuple[NDArray[np.int64], NDArray[np.float32]]  # times (N,) ascending, labels (N,)
NO_HISTORY: History = (np.zeros(0, np.int64), np.zeros(0, np.float32))
NEVER_MS = np.iinfo(np.int64).max


def with_labels(log: EventLog, config: Config) -> EventLog:
    """Return the log with the labels of config.labels; as it is when that names no files.

    Raises DataError: too many rejects, or a log of labels that matches no event.
    """
    if not config.labels.files:
        return log
    data = _as_read(config.data, config.labels)
    labels = Labels(data, keyed=False, field=config.labels.field or config.data.label)
    histories = _read(data, labels)
    within_ms = round(config.labels.within_s * 1000)
    used: dict[str, set[int]] = {}
    sequences = _all_joined(log, histories, within_ms, used)
    times = ((key, history[0].tolist()) for key, history in histories.items())
    said = tuple(LabelJoin.of(times, used).lines(config.labels.within_s))
    if all(np.isnan(sequence.labels).all() for sequence in sequences):
        raise DataError(
            f"labels.files: expected labels of the events' keys within {config.labels.within_s} s "
            f"(labels.within_s) after an event, got none that fits: {'; '.join(said[1:])}"
        )
    return replace(log, sequences=sequences, meaning=labels.outputs(), joined=said)


def _as_read(data: Data, settings: Settings) -> Data:
    """Return the settings by which the second log is read."""
    return replace(
        data,
        files=settings.files,
        csv_separator=settings.csv_separator or data.csv_separator,
        csv_decimal=settings.csv_decimal or data.csv_decimal,
        csv_encoding=settings.csv_encoding or data.csv_encoding,
        key_field=settings.key_field or data.key_field,
        time_field=settings.time_field or data.time_field,
        static="",
        decoder="",
        format="json",
        avro_schema="",
        avro_id=None,
        categories=(),
    )


def _read(data: Data, labels: Labels) -> dict[str, History]:
    field = Field("keyfold label", "category", (UNKNOWN,), missing="mask")  # none is read here
    decoder = Decoder(data.events(), FeatureSpec((field,)))
    found: dict[str, list[tuple[int, float]]] = {}
    rejects: list[str] = []
    records = 0
    for chunk in prepared(read_files(data.files, data), data):
        decoded, aside = decoder.decode(chunk.values, chunk.timestamps_ms), labels.read(chunk)
        refused = {**aside.rejects, **decoded.rejects}
        records += len(chunk.values)
        rejects += [f"{chunk.source}, {chunk.places[row]}: {refused[row]}" for row in refused]
        for row, (key, label) in enumerate(zip(aside.keys, aside.labels, strict=True)):
            if row not in refused and key is not None and not np.isnan(label):
                name = key.decode(errors="backslashreplace")
                found.setdefault(name, []).append((int(decoded.times_ms[row]), float(label)))
    if len(rejects) > data.max_reject_share * records:
        shown = "".join(f"\n  {reject}" for reject in rejects[:SHOWN_REJECTS])
        raise DataError(
            f"labels.files: expected at most {data.max_reject_share:.1%} rejects "
            f"(data.max_reject_share), got {len(rejects)} of {records} records:{shown}"
        )
    return {name: _history(pairs, labels) for name, pairs in found.items()}


def _history(pairs: list[tuple[int, float]], labels: Labels) -> History:
    pairs = sorted(pairs, key=lambda pair: pair[0])
    times = np.array([time for time, _ in pairs], np.int64)
    return times, labels.final(np.array([label for _, label in pairs], np.float32))


def _all_joined(
    log: EventLog, histories: Mapping[str, History], within_ms: int, used: dict[str, set[int]]
) -> tuple[Sequence, ...]:
    joined = []
    begins: dict[str, int] = {}  # key -> when its next sequence does
    for sequence in reversed(log.sequences):
        times, labels = histories.get(sequence.key, NO_HISTORY)
        # What is found of a key's next life says nothing of this one.
        end = int(np.searchsorted(times, begins.get(sequence.key, NEVER_MS), side="left"))
        joined.append(one := _joined(sequence, (times[:end], labels[:end]), within_ms))
        if one.label_times_ms is not None:
            came_ms = one.label_times_ms[~np.isnan(one.labels)]
            used.setdefault(sequence.key, set()).update(np.unique(came_ms).tolist())
        begins[sequence.key] = int(sequence.times_ms[0])
    return tuple(reversed(joined))


def _joined(sequence: Sequence, history: History, within_ms: int) -> Sequence:
    found, came_ms = np.full(len(sequence), np.nan, np.float32), sequence.times_ms.copy()
    times, labels = history
    next_label = np.searchsorted(times, sequence.times_ms, side="left")
    good = next_label < len(times)
    good[good] = times[next_label[good]] - sequence.times_ms[good] <= within_ms
    found[good], came_ms[good] = labels[next_label[good]], times[next_label[good]]
    return replace(sequence, labels=found, label_times_ms=came_ms)
