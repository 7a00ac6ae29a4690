"""Outputs in, predictions out: the bytes that consumers parse, and how a key is shown in them.

Owns the JSON of a prediction. It knows the output spec, never Kafka, models or state. Called by the
worker and by keyfold-verify, many predictions at once; imported through events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.outputs import MAX_KEY_BYTES as MAX_KEY_BYTES
from keyfold.export.outputs import Anomaly, Forecast, Likelihood, OutputSpec

SHOWN_KEYS = 1 << 14  # remembered as JSON: the same keys come again and again
SHORT_KEY_BYTES = 256  # of a key that is remembered: the memory they take has a bound


def why_no_key(key: bytes | None, most: int = MAX_KEY_BYTES) -> str | None:
    """Say why a record's key cannot be one of at most so many bytes; None: it can."""
    if key is None:
        return "the record's key is null"
    if len(key) > most:
        return f"the record's key is longer than {most} bytes"
    return None


def key_fragment(key: bytes) -> bytes:
    """Return the JSON member that shows a key: "key" if it is UTF-8, else "key_b64"."""
    try:
        return b'"key":' + orjson.dumps(key.decode())
    except UnicodeDecodeError:
        return b'"key_b64":' + msgspec.json.encode(key)  # msgspec writes bytes as base64


_remembered = lru_cache(SHOWN_KEYS)(key_fragment)


def _shown(key: bytes) -> bytes:
    return _remembered(key) if len(key) <= SHORT_KEY_BYTES else key_fragment(key)


@dataclass(frozen=True, slots=True)
class Caused:
    """What caused N predictions and which events they describe, column by column."""

    offsets: Sequence[int] | NDArray[np.int64]  # of the records that caused them
    keys: Sequence[bytes]  # of the records
    times_ms: Sequence[int] | NDArray[np.int64]  # event times of the events they describe
    steps: Sequence[int] | NDArray[np.int64]  # of the key at that event: 1 at its first one
    gaps: Sequence[bool] | None = None  # the key's history may miss lost events; None: nowhere
    abouts: Sequence[int] | NDArray[np.int64] | None = None  # offsets of those; None: `offsets`
    indexes: Sequence[int] | NDArray[np.int64] | None = None  # among its cause's; None: all 0
    lasts: Sequence[bool] | None = (
        None  # whether it is its cause's last; None: each is the only one
    )

    def only(self, rows: Sequence[int]) -> Caused:
        """Return some rows of it."""

        def of(column: Any) -> Any:
            return None if column is None else [column[row] for row in rows]

        return Caused(*(of(getattr(self, name)) for name in self.__slots__))


class PredictionEncoder:
    """Writes predictions of one bundle: a pure function of (log, bundle), no wall clock."""

    def __init__(self, outputs: OutputSpec, bundle_id: str, topic: str) -> None:
        self._outputs = outputs
        self._tail = b',"bundle":' + orjson.dumps(bundle_id) + b"}"
        self._topic = topic.encode()
        self._labels = [orjson.dumps(name) for name in outputs.names]
        self._form = _forecast_form(outputs.forecast) if outputs.forecast is not None else b""
        self._anomaly = outputs.anomaly
        fields = outputs.forecast.fields if outputs.forecast is not None else ()
        self._fields = [orjson.dumps(name) for name in fields]

    def encode(
        self,
        partition: int,
        caused: Caused,
        y: NDArray[np.float32],
        scores: NDArray[np.float32] | None = None,
    ) -> list[bytes]:
        """Write one prediction per row of y (N,O); `scores` (N,S) are Back's where there is one."""
        return self.around(partition, caused, self.outputs(y, scores))

    def around(self, partition: int, caused: Caused, outputs: Sequence[bytes]) -> list[bytes]:
        """Write one prediction around each "output" object, JSON already."""
        place = b"%b:%d" % (self._topic, partition)
        form = (
            b'{"id":"%b:%%d:%%d","about":"%b:%%d",%%b,"time":%%d,"output":%%b,"steps":%%d,"cold":%%b'
            % (place, place)
            + self._tail
        )
        true, false = b"true", b"false"
        offsets, times_ms, steps = (
            np.asarray(column, np.int64).tolist()
            for column in (caused.offsets, caused.times_ms, caused.steps)
        )
        abouts = offsets if caused.abouts is None else np.asarray(caused.abouts, np.int64).tolist()
        indexes = [0] * len(offsets) if caused.indexes is None else caused.indexes
        shown = map(_shown, caused.keys)
        columns = (offsets, indexes, abouts, shown, times_ms, outputs, steps)
        payloads = [
            form % (offset, index, about, key, time, output, steps, true if steps == 1 else false)
            for offset, index, about, key, time, output, steps in zip(*columns, strict=True)
        ]
        for name, column in ((b"last", caused.lasts), (b"gap", caused.gaps)):
            for row, holds in enumerate(column or ()):
                if holds:
                    payloads[row] = payloads[row][:-1] + b',"%b":true}' % name
        return payloads

    def outputs(
        self, y: NDArray[np.float32], scores: NDArray[np.float32] | None = None
    ) -> list[bytes]:
        """Write each row of y (N,O) as the prediction's "output" object."""
        if self._outputs.kind == "classification":
            classes = self._top(y) if self._outputs.top else self._all(y)
            if scores is None or self._outputs.likelihood is None:
                return [one + b"}" for one in classes]
            surprises = _surprises(self._outputs.likelihood, scores)
            return [
                one + b',"anomaly":' + surprise + b"}"
                for one, surprise in zip(classes, surprises, strict=True)
            ]
        if self._outputs.kind == "transcription":
            return self._recognised(y, scores)
        rows = _texts(y)
        if self._outputs.kind == "forecast":
            written = [self._form % tuple(row.split(b",")) for row in rows]
            if scores is None or self._anomaly is None:
                return [forecast + b"}" for forecast in written]
            anomalies = self._anomalies(self._anomaly, scores)
            return [
                forecast + b',"anomaly":' + anomaly + b"}"
                for forecast, anomaly in zip(written, anomalies, strict=True)
            ]
        if len(self._labels) == 1:
            head = b"{" + self._labels[0] + b":"
            return [head + row + b"}" for row in rows]
        members = [label.replace(b"%", b"%%") + b":%b" for label in self._labels]
        form = b"{" + b",".join(members) + b"}"
        return [form % tuple(row.split(b",")) for row in rows]

    def _all(self, y: NDArray[np.float32]) -> list[bytes]:
        """Write each row's label and all probabilities, without the last brace."""
        labels = self._labels
        return [
            b'{"label":%b,"probabilities":[%b]' % (labels[best], row)
            for best, row in zip(y.argmax(axis=1).tolist(), _texts(y), strict=True)
        ]

    def _top(self, y: NDArray[np.float32]) -> list[bytes]:
        """Write each row's label and its largest probabilities, without the last brace."""
        labels, places = self._labels, largest(y, self._outputs.top)
        member = b'{"label":%b,"probability":%b}'
        written = []
        rows = _texts(np.take_along_axis(y, places, axis=1))
        for row, numbers in zip(rows, places.tolist(), strict=True):
            pairs = zip(numbers, row.split(b","), strict=True)
            top = b",".join([member % (labels[number], text) for number, text in pairs])
            written.append(b'{"label":%b,"top":[%b]' % (labels[numbers[0]], top))
        return written

    def _recognised(
        self, y: NDArray[np.float32], scores: NDArray[np.float32] | None
    ) -> list[bytes]:
        """Write each row's new symbol, null for none, and how probable its best column is."""
        if scores is None:
            raise RuntimeError("expected the symbols that were recognised, got none")
        shown = [b"null", *self._labels[1:]]
        symbols = scores[:, 0].astype(np.int64).tolist()
        return [
            b'{"symbol":%b,"probability":%b}' % (shown[symbol], text)
            for symbol, text in zip(symbols, _texts(y.max(axis=1, keepdims=True)), strict=True)
        ]

    def _anomalies(self, anomaly: Anomaly, scores: NDArray[np.float32]) -> list[bytes]:
        """Write each row of scores (N,S) as the member "anomaly"."""
        written = []
        for text, numbers in zip(_texts(scores), scores.tolist(), strict=True):
            score, field, *own = numbers
            if math.isnan(score):
                written.append(b'{"score":null,"field":null,"flag":false}')
                continue
            threshold, judged = own or (anomaly.threshold, score)
            parts = text.split(b",")
            # Nobody else knows the key's own threshold and what is compared with it.
            extra = b',"threshold":%b,"smoothed":%b' % (parts[2], parts[3]) if own else b""
            written.append(
                b'{"score":%b,"field":%b,"flag":%b%b}'
                % (
                    parts[0],
                    self._fields[int(field)],
                    b"true" if judged > threshold else b"false",
                    extra,
                )
            )
        return written


def largest(y: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the columns of each row's `count` largest numbers, falling: (N,O) -> (N,count).

    Of equal numbers the first column comes first, as argmax has it.
    """
    columns = y.shape[1]
    least = np.partition(y, columns - count, axis=1)[:, columns - count, None]
    chosen = y >= least
    # More than were asked for where several are equal to the least of them: the first ones stay.
    for row in np.flatnonzero(chosen.sum(axis=1) > count).tolist():
        equal = np.flatnonzero(y[row] == least[row])
        spare = int(chosen[row].sum()) - count
        chosen[row, equal[len(equal) - spare :]] = False
    places = np.nonzero(chosen)[1].reshape(len(y), count)
    order = np.argsort(-np.take_along_axis(y, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _surprises(likelihood: Likelihood, scores: NDArray[np.float32]) -> list[bytes]:
    """Write each row of scores (N,2) as the member "anomaly"."""
    written = []
    for text, score in zip(_texts(scores), scores[:, 0].tolist(), strict=True):
        flag = b"true" if score > likelihood.threshold else b"false"  # of NaN false
        mean, worst = text.split(b",")
        written.append(b'{"score":%b,"worst":%b,"flag":%b}' % (mean, worst, flag))
    return written


def _texts(rows: NDArray[np.float32]) -> list[bytes]:
    """Write each row's numbers, comma between them, NaN as null."""
    # One call writes the whole array, each number as the shortest text that reads back as the
    # same float32; the rows are cut out of it.
    text = orjson.dumps(np.ascontiguousarray(rows, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].split(b"],[") if len(rows) else []


def _forecast_form(forecast: Forecast) -> bytes:
    """Return the output object of a forecast without its last brace, %b for each number."""
    ends = [orjson.dumps(f"{quantile:g}") + b":%b" for quantile in forecast.quantiles]
    value = b"{" + b",".join(ends) + b"}" if ends else b"%b"
    ahead = b",".join(b'"%d":%b' % (horizon, value) for horizon in forecast.horizons)
    fields = b",".join(
        orjson.dumps(name).replace(b"%", b"%%") + b":{" + ahead + b"}" for name in forecast.fields
    )
    return b'{"forecast":{' + fields + b"}"
