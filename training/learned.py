"""What of the inputs is learned from the training part: means for missing values, categories.

Owns the step from a log as it was read to the log as the model sees it: the final feature spec,
and every sequence's x finished by the front (export/front.py), which is the code that serves.
Pure numpy; knows no files and no Keras. Called by train.py and evaluate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FeatureSpec, Field
from keyfold.export.front import Front
from keyfold.export.states import cold
from keyfold.training import vocabulary
from keyfold.training.data import UNKNOWN, DataError, EventLog, Sequence
from keyfold.training.documents import with_columns
from keyfold.training.pairs import paired
from keyfold.training.settings_text import Text
from keyfold.training.split import Part
from keyfold.training.texts import unrolled

MOST_VALUES = 50  # of a category; rarer ones are all zeros, as is a value never seen


def learn(
    log: EventLog, train: Part, settings: Text | None = None, said: Text | None = None
) -> EventLog:
    """Return the log with the feature spec that the training part teaches, and x accordingly.

    `settings`: of the tokenizer, where events are texts; `said`: of the texts that answer them.
    """
    if (text := log.features.text) is not None:
        texts = (one for sequence in train.sequences for one in sequence.documents)
        text = vocabulary.fit(text, settings or Text(), texts)
        log = replace(log, features=replace(log.features, text=text))
        if log.target is not None:
            texts = (one for sequence in train.sequences for one in sequence.answers)
            log = replace(log, target=vocabulary.fit(log.target, said or Text(), texts))
        if not log.features.fields:
            return finished(log)
    fields = tuple(_learned(log, field, train) for field in log.features.fields)
    features = replace(log.features, fields=fields)
    if features == log.features:
        return finished(log)
    sequences = tuple(
        replace(sequence, x=_columns(sequence, log, features)) for sequence in log.sequences
    )
    return finished(replace(log, features=features, sequences=sequences))


def finished(log: EventLog) -> EventLog:
    """Return the log with every sequence run through the front, from a cold state.

    Events that are texts become symbols, texts beside fields columns.
    """
    if log.features.unrolled is not None:
        if log.target is not None:
            return paired(log, log.features.unrolled, log.target)
        return unrolled(log, log.features.unrolled)
    if (front := Front.of(log.features)) is not None:
        log = replace(log, sequences=tuple(_run(front, sequence) for sequence in log.sequences))
    if (text := log.features.inner) is not None:
        sequences = tuple(with_columns(sequence, text) for sequence in log.sequences)
        return replace(log, sequences=sequences)
    return log


def _run(front: Front, sequence: Sequence) -> Sequence:
    lengths = np.array([len(sequence)], np.int32)
    times = sequence.times_ms[None]
    x, _ = front.run(sequence.x[None], times, lengths, cold(front.states, 1))
    return replace(sequence, x=x[0])


def _places(features: FeatureSpec) -> dict[str, int]:
    """Return where each field's first column is."""
    places, at = {}, 0
    for field in features.fields:
        places[field.name] = at
        at += len(field.columns)
    return places


def _learned(log: EventLog, field: Field, train: Part) -> Field:
    if field.kind == "category":
        return replace(field, values=_frequent(log, field, train)) if _is_open(field) else field
    if field.missing == "error" or field.standardise:
        return field
    at = _places(log.features)[field.name]
    total, count = 0.0, 0
    for sequence in train.sequences:
        known = sequence.x[:, at + len(field.columns) - 1] == 0
        values = sequence.x[:, at][known].astype(np.float64)
        total, count = total + float(np.nansum(values)), count + int((~np.isnan(values)).sum())
    if not count:
        raise DataError(
            f"data.features: field {field.name!r}: expected values in the training part, got none; "
            "leave it out"
        )
    return replace(field, fill=float(np.float32(total / count)))


def _is_open(field: Field) -> bool:
    return field.values == (UNKNOWN,)


def _frequent(log: EventLog, field: Field, train: Part) -> tuple[str, ...]:
    """Return the most frequent texts in training, sorted."""
    categories = [item.name for item in log.features.fields if item.kind == "category"]
    column = categories.index(field.name)
    words = log.words[column]
    counts = np.zeros(len(words), np.int64)
    for sequence in train.sequences:
        if sequence.texts is not None:
            numbers = sequence.texts[:, column]
            counts += np.bincount(numbers[numbers >= 0], minlength=len(words))
    order = sorted((number for number in range(len(words)) if counts[number]),
                   key=lambda number: (-counts[number], words[number]))  # fmt: skip
    if not order:
        raise DataError(
            f"data.categories: field {field.name!r}: expected values in the training part, got "
            "none; leave it out"
        )
    return tuple(sorted(words[number] for number in order[:MOST_VALUES]))


def _columns(sequence: Sequence, log: EventLog, features: FeatureSpec) -> NDArray[np.float32]:
    """Return x with the learned columns in place of the provisional ones."""
    before, after = _places(log.features), _places(features)
    x = np.zeros((len(sequence), len(features.plain_columns)), np.float32)
    category = 0
    for old, new in zip(log.features.fields, features.fields, strict=True):
        at, to = before[old.name], after[new.name]
        if new.kind == "category":
            if _is_open(old):
                x[:, to : to + len(new.columns)] = _one_hot(
                    sequence, (category, log.words[category]), new, sequence.x[:, at + 1 : at + 2]
                )
            category += 1
            continue
        x[:, to : to + len(new.columns)] = sequence.x[:, at : at + len(old.columns)]
        if new.missing == "mask":
            missing = x[:, to + len(new.columns) - 1] == 1
            x[missing, to] = new.fill
    return x


def _one_hot(
    sequence: Sequence, texts: tuple[int, tuple[str, ...]], field: Field, flag: NDArray[np.float32]
) -> NDArray[np.float32]:
    column, words = texts
    numbers = np.full(len(words) + 1, -1, np.int64)  # the last one: missing
    for place, value in enumerate(field.values):
        numbers[words.index(value)] = place
    if sequence.texts is None:
        raise DataError(f"data.categories: field {field.name!r}: expected its texts, got none")
    places = numbers[sequence.texts[:, column]]
    x = np.zeros((len(sequence), len(field.columns)), np.float32)
    rows = np.flatnonzero(places >= 0)
    x[rows, places[rows]] = 1.0
    if field.missing != "error":
        missing = flag[:, 0] == 1
        x[missing, -1] = 1.0
        if field.missing == "last":
            x[missing, :-1] = np.nan
    return x
