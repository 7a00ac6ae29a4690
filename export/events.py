"""Records in, events; events out, predictions: the wire formats, one codec for everybody.

Owns how a record's bytes become the numbers of an event and how an output becomes the bytes of a
prediction. Training, the worker and keyfold-verify all decode here, so that what was learned is
what is served. It knows the feature spec and the output spec, never Kafka, models or state.
The functions take many records at once because the worker does; one record is a list of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Reject, SpecError
from keyfold.export.features import FeatureSpec, encode

TimeUnit = Literal["ms", "s"]
Tombstone = Literal["reject", "reset"]
# Beyond this an epoch in ms is no date (ECMAScript's limit) and float64 stops being exact.
MAX_TIME_MS = 8.64e15
# A prediction carries its key twice, and must fit a topic's default limit of 1 MiB.
MAX_KEY_BYTES = 64 * 1024
# Beyond this the decoder's own limit is near, which depends on the caller's stack.
MAX_NESTING = 200
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class EventSpec:
    """How a record becomes an event, beside the feature spec."""

    key_field: str | None = None  # where an event log (a file) has the key; Kafka: the record key
    time_field: str | None = None  # event time's field; None: the record's timestamp
    time_unit: TimeUnit = "ms"  # unit of time_field since 1970-01-01 UTC
    tombstone: Tombstone = "reject"  # what a record with a null value does to its key's state
    reset_after_ms: int | None = None  # a key silent for longer starts cold again; None: never

    def __post_init__(self) -> None:
        if self.time_unit not in ("ms", "s"):
            raise SpecError(f"events.time_unit: expected 'ms' or 's', got {self.time_unit!r}")
        if self.tombstone not in ("reject", "reset"):
            raise SpecError(
                f"events.tombstone: expected 'reject' or 'reset', got {self.tombstone!r}"
            )
        after: object = self.reset_after_ms
        if after is not None and (isinstance(after, bool) or not isinstance(after, int)):
            raise SpecError(f"events.reset_after_ms: expected whole ms, got {after!r}")
        if isinstance(after, int) and after < 1:
            raise SpecError(f"events.reset_after_ms: expected at least 1 ms, got {after}")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        expiry = {} if self.reset_after_ms is None else {"reset_after_ms": self.reset_after_ms}
        return {
            "codec": "json",
            "key_field": self.key_field,
            "time_field": self.time_field,
            "time_unit": self.time_unit,
            "tombstone": self.tombstone,
            **expiry,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EventSpec:
        """Read the manifest's form. Raises SpecError on a codec this version does not know."""
        if data["codec"] != "json":
            raise SpecError(f"events.codec: expected 'json', got {data['codec']!r}")
        return cls(
            data["key_field"], data["time_field"], data["time_unit"], data["tombstone"],
            data.get("reset_after_ms"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the model's output row of O numbers means."""

    kind: Literal["regression", "classification"]  # values in label units, or probabilities
    names: tuple[str, ...]  # regression: a name per output; classification: a label per class

    def __post_init__(self) -> None:
        if self.kind not in ("regression", "classification"):
            raise SpecError(
                f"outputs.kind: expected 'regression' or 'classification', got {self.kind!r}"
            )
        least = 1 if self.kind == "regression" else 2
        if len(self.names) < least or len(set(self.names)) != len(self.names):
            raise SpecError(
                f"outputs.names: expected at least {least} distinct names for {self.kind}, "
                f"got {list(self.names)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"kind": self.kind, "names": list(self.names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputSpec:
        """Read the manifest's form."""
        return cls(data["kind"], tuple(data["names"]))


@dataclass(frozen=True, slots=True)
class Decoded:
    """N records after decoding. Rows named in `rejects` hold unusable numbers."""

    x: NDArray[np.float32]  # (N,F) the model's rows
    times_ms: NDArray[np.int64]  # (N,) event times, UTC epoch ms
    rejects: dict[int, str]  # row -> why it cannot be an event


class Decoder:
    """Decodes record values of one event spec and feature spec."""

    def __init__(self, events: EventSpec, features: FeatureSpec) -> None:
        self._features = features
        self._time_scale = {"ms": 1.0, "s": 1000.0}[events.time_unit]
        self._has_time = events.time_field is not None
        names = [*features.fields, *([events.time_field] if events.time_field is not None else [])]
        # One attribute per column, in column order; a time field may also be a feature. The
        # attributes are renamed to the JSON names, which need not be identifiers.
        distinct = list(dict.fromkeys(names))
        self._columns = [distinct.index(name) for name in names]
        self._row = msgspec.defstruct(
            "Row",
            [(f"c{i}", float) for i in range(len(distinct))],
            rename={f"c{i}": name for i, name in enumerate(distinct)},
        )
        self._decode = msgspec.json.Decoder(self._row).decode

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps.

        A null value is a reject here: whoever gives tombstones a meaning takes them out before.
        """
        rows, rejects = self._rows(values)
        table = np.array(rows, np.float64).reshape(len(values), len(self._row.__struct_fields__))
        columns = table[:, self._columns]
        width = len(self._features.fields)
        x, unusable = encode(self._features, columns[:, :width])
        rejects = {**unusable, **rejects}
        if self._has_time:
            times = columns[:, width]
            late = ~(np.abs(times) <= MAX_TIME_MS / self._time_scale)
            times = np.where(late, 0.0, times) * self._time_scale
            for row in np.flatnonzero(late):
                rejects.setdefault(int(row), "the event time is out of range")
            times_ms = np.rint(times).astype(np.int64)
        else:
            times_ms = np.asarray(timestamps_ms, np.int64)
        return Decoded(x, times_ms, rejects)

    def _rows(
        self, values: Sequence[bytes | None]
    ) -> tuple[list[tuple[float, ...]], dict[int, str]]:
        decode, astuple = self._decode, msgspec.structs.astuple
        try:
            # The usual case, without a try per record: every record decodes, and is too short to
            # be nested too deeply.
            if max(map(len, values), default=0) <= 2 * MAX_NESTING:  # type: ignore[arg-type]
                return [astuple(decode(value)) for value in values], {}  # type: ignore[arg-type]
            return [astuple(self._decode_one(value)) for value in values], {}
        except (Reject, msgspec.MsgspecError, TypeError, UnicodeDecodeError):
            pass
        blank = (0.0,) * len(self._row.__struct_fields__)
        rows: list[tuple[float, ...]] = []
        rejects: dict[int, str] = {}
        for i, value in enumerate(values):
            try:
                rows.append(astuple(self._decode_one(value)))
            except Reject as reject:
                rows.append(blank)
                rejects[i] = str(reject)
        return rows, rejects

    def _decode_one(self, value: bytes | None) -> Any:
        if value is None:
            raise Reject("the record's value is null")
        if len(value) > 2 * MAX_NESTING and _is_nested_too_deeply(value):
            raise Reject(f"the record's value is nested more than {MAX_NESTING} deep")
        try:
            return self._decode(value)
        except msgspec.ValidationError as error:
            raise Reject(f"the event does not match the feature spec: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Reject(f"the record's value is not valid JSON: {error}") from error


def _is_nested_too_deeply(value: bytes) -> bool:
    if value.count(b"[") + value.count(b"{") <= MAX_NESTING:
        return False
    depth = deepest = 0
    for byte in _STRING.sub(b"", value):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest > MAX_NESTING


def why_no_key(key: bytes | None) -> str | None:
    """Say why a record's key cannot be one; None: it can."""
    if key is None:
        return "the record's key is null"
    if len(key) > MAX_KEY_BYTES:
        return f"the record's key is longer than {MAX_KEY_BYTES} bytes"
    return None


def key_fragment(key: bytes) -> bytes:
    """Return the JSON member that shows a key: "key" if it is UTF-8, else "key_b64"."""
    try:
        return b'"key":' + orjson.dumps(key.decode())
    except UnicodeDecodeError:
        return b'"key_b64":' + msgspec.json.encode(key)  # msgspec writes bytes as base64


@dataclass(frozen=True, slots=True)
class Caused:
    """What caused N predictions, column by column."""

    offsets: Sequence[int]  # of the records
    keys: Sequence[bytes]  # key_fragment() of the records' keys
    times_ms: Sequence[int]  # event times
    steps: Sequence[int]  # of the key, this event's included: 1 for a key's first event
    gaps: Sequence[bool] | None = None  # the key's history may miss lost events; None: nowhere


class PredictionEncoder:
    """Writes predictions of one bundle: a pure function of (log, bundle), no wall clock."""

    def __init__(self, outputs: OutputSpec, bundle_id: str, topic: str) -> None:
        self._outputs = outputs
        self._tail = b',"bundle":' + orjson.dumps(bundle_id) + b"}"
        self._topic = topic.encode()
        self._labels = [orjson.dumps(name) for name in outputs.names]

    def encode(self, partition: int, caused: Caused, y: NDArray[np.float32]) -> list[bytes]:
        """Write one prediction per row of y (N,O)."""
        place = b"%b:%d" % (self._topic, partition)
        form = (
            b'{"id":"%b:%%d:0","about":"%b:%%d",%%b,"time":%%d,"output":%%b,"steps":%%d,"cold":%%b'
            % (place, place)
            + self._tail
        )
        true, false = b"true", b"false"
        columns = (caused.offsets, caused.keys, caused.times_ms, self.outputs(y), caused.steps)
        payloads = [
            form % (offset, offset, key, time, output, steps, true if steps == 1 else false)
            for offset, key, time, output, steps in zip(*columns, strict=True)
        ]
        for row, gap in enumerate(caused.gaps or ()):
            if gap:
                payloads[row] = payloads[row][:-1] + b',"gap":true}'
        return payloads

    def outputs(self, y: NDArray[np.float32]) -> list[bytes]:
        """Write each row of y (N,O) as the prediction's "output" object."""
        # One call writes the whole array, each number as the shortest text that reads back as the
        # same float32; the rows are cut out of it.
        text = orjson.dumps(np.ascontiguousarray(y, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)
        rows = text[2:-2].split(b"],[") if len(y) else []
        if self._outputs.kind == "classification":
            labels = self._labels
            return [
                b'{"label":%b,"probabilities":[%b]}' % (labels[best], row)
                for best, row in zip(y.argmax(axis=1).tolist(), rows, strict=True)
            ]
        if len(self._labels) == 1:
            head = b"{" + self._labels[0] + b":"
            return [head + row + b"}" for row in rows]
        members = [label.replace(b"%", b"%%") + b":%b" for label in self._labels]
        form = b"{" + b",".join(members) + b"}"
        return [form % tuple(row.split(b",")) for row in rows]
