"""Records become events: the decoder that training, the worker and keyfold-verify share.

Owns how a record's bytes become the model's columns, the observed values and the event time, and
the reason when they cannot. It knows the event spec and the feature spec, never Kafka, models or
state. Plain required numbers take a short path here, everything else goes through members.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import Columns, Rejects, as_number
from keyfold.export.errors import Reject
from keyfold.export.event_spec import NUMERIC_UNITS, EventSpec
from keyfold.export.features import FeatureSpec, encode
from keyfold.export.hook import json_of
from keyfold.export.members import NUMBER, SCALAR, Members
from keyfold.export.nesting import MAX_NESTING, is_nested_too_deeply
from keyfold.export.times import from_numbers, text_reader


@dataclass(frozen=True, slots=True)
class Decoded:
    """N records after decoding. Rows named in `rejects` hold unusable numbers."""

    x: NDArray[np.float32]  # (N,F) the model's rows; NaN, 0 or raw where front.py finishes them
    times_ms: NDArray[np.int64]  # (N,) event times, UTC epoch ms
    rejects: dict[int, str]  # row -> why it cannot be an event
    observed: NDArray[np.float32] | None = None  # (N,K) the targets, NaN: missing; None: no targets


@runtime_checkable
class Readable(Protocol):
    """Values that are able to read plain numbers out of themselves (the worker's native module)."""

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> list[int]:
        """Read members of the values into table (N, len(names)); return the rows left out."""


class _Path(Protocol):
    """One way from records to what a Decoder returns."""

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values."""


class Decoder:
    """Decodes record values of one event spec and feature spec.

    `targets` are names of number or boolean fields to observe; they need not be features.
    """

    def __init__(
        self, events: EventSpec, features: FeatureSpec, targets: Sequence[str] = ()
    ) -> None:
        self.decode = _path(events, features, tuple(targets)).decode


def _path(events: EventSpec, features: FeatureSpec, targets: tuple[str, ...]) -> _Path:
    names = {field.name for field in features.fields}
    timed = events.time_field is None or events.time_unit in NUMERIC_UNITS
    members = (*names, *([events.time_field] if events.time_field is not None else []))
    plain = features.is_plain and timed and not events.decoder and names.issuperset(targets)
    if plain and not any("." in name for name in members):
        return _Numbers(events, features, targets)
    return _AnyForm(events, features, targets)


class _Numbers:
    """Required numbers at the top of a JSON object: the usual case, and the fastest."""

    def __init__(self, events: EventSpec, features: FeatureSpec, targets: tuple[str, ...]) -> None:
        self._names = [field.name for field in features.fields]
        self._unit = events.time_unit
        self._has_time = events.time_field is not None
        names = [*self._names, *([events.time_field] if events.time_field is not None else [])]
        # One attribute per column, in column order; a time field may also be a feature. The
        # attributes are renamed to the JSON names, which need not be identifiers.
        distinct = list(dict.fromkeys(names))
        self._members = tuple(name.encode() for name in distinct)
        self._columns = [distinct.index(name) for name in names]
        self._targets = [self._names.index(name) for name in targets]
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
        table, rejects = self._table(values)
        columns = table[:, self._columns]
        width = len(self._names)
        x, unusable = encode(self._names, columns[:, :width])
        rejects = {**unusable, **rejects}
        if self._has_time:
            times_ms, late = from_numbers(columns[:, width], self._unit)
            rejects = {**late, **rejects}
        else:
            times_ms = np.asarray(timestamps_ms, np.int64)
        return Decoded(x, times_ms, rejects, x[:, self._targets] if self._targets else None)

    def _table(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Read N records into a table (N,D) of the distinct members."""
        if not isinstance(values, Readable):
            rows, rejects = self._rows(values)
            return np.array(rows, np.float64).reshape(len(values), len(self._members)), rejects
        table = np.zeros((len(values), len(self._members)))
        left = values.read_numbers(self._members, table)
        rows, rejects = self._rows([values[row] for row in left])
        if rows:
            table[left] = rows
        return table, {left[number]: reason for number, reason in rejects.items()}

    def _rows(
        self, values: Sequence[bytes | None]
    ) -> tuple[list[tuple[float, ...]], dict[int, str]]:
        decode, astuple = self._decode, msgspec.structs.astuple
        try:
            # The usual case, without a try per record: every record decodes, and is too short to
            # be nested too deeply.
            if max(map(len, values), default=0) <= 2 * MAX_NESTING:  # type: ignore[arg-type]
                return [astuple(decode(value)) for value in values], {}  # type: ignore[arg-type]
            return [astuple(decode_one(decode, value)) for value in values], {}
        except (Reject, msgspec.MsgspecError, TypeError, UnicodeDecodeError):
            pass
        blank = (0.0,) * len(self._row.__struct_fields__)
        rows: list[tuple[float, ...]] = []
        rejects: dict[int, str] = {}
        for i, value in enumerate(values):
            try:
                rows.append(astuple(decode_one(decode, value)))
            except Reject as reject:
                rows.append(blank)
                rejects[i] = str(reject)
        return rows, rejects


class _AnyForm:
    """Everything else: see members.py and columns.py."""

    def __init__(self, events: EventSpec, features: FeatureSpec, targets: tuple[str, ...]) -> None:
        self._columns = Columns(features, targets)
        self._long = features.long
        self._events = events
        self._json = json_of(events.decoder) if events.decoder else None
        paths: dict[str, Any] = {}
        if features.long is not None:
            paths = {features.long.name: SCALAR, features.long.value: SCALAR}
        else:
            for field in self._columns.fields:
                paths[field.name] = NUMBER if field.kind == "number" else SCALAR
        numeric = events.time_unit in NUMERIC_UNITS
        self._read_time = None if numeric else text_reader(events.time_unit, events.time_zone)
        if events.time_field is not None and numeric:
            paths.setdefault(events.time_field, NUMBER)
        elif events.time_field is not None:
            paths[events.time_field] = SCALAR
        self._places = {path: number for number, path in enumerate(paths)}
        self._members = Members(paths)
        self._decode = msgspec.json.Decoder(self._members.row).decode

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps."""
        values, rejects = list(values), Rejects()
        members = self._members.columns(self._rows(values, rejects))
        if self._long is not None:
            sensors, readings = (
                members[self._places[m]] for m in (self._long.name, self._long.value)
            )
            columns = self._columns.spread(self._long, sensors, readings, rejects)
        else:
            columns = [members[self._places[field.name]] for field in self._columns.fields]
        x, observed = self._columns.build(columns, rejects)
        if self._events.time_field is None:
            times_ms = np.asarray(timestamps_ms, np.int64)
        else:
            times_ms = self._times(members[self._places[self._events.time_field]], rejects)
        return Decoded(x, times_ms, dict(rejects), observed)

    def _rows(self, values: Sequence[bytes | None], rejects: Rejects) -> list[Any]:
        decode, blank = self._decode, self._members.row()
        try:
            # As in _Numbers: the usual case, without a try per record.
            if self._json is None and max(map(len, values), default=0) <= 2 * MAX_NESTING:  # type: ignore[arg-type]
                return [decode(value) for value in values]  # type: ignore[arg-type]
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError):
            pass
        rows = []
        for number, value in enumerate(values):
            try:
                if value is not None and self._json is not None:
                    value = self._json(value)
                rows.append(decode_one(decode, value))
            except Reject as reject:
                rows.append(blank)
                rejects.note(number, str(reject))
        return rows

    def _times(self, column: Sequence[Any], rejects: Rejects) -> NDArray[np.int64]:
        name, read = self._events.time_field, self._read_time or as_number
        times: NDArray[Any]
        if self._read_time is None and set(map(type, column)) <= {float}:
            times = np.array(column, np.float64)
        else:
            times = np.zeros(len(column), np.float64 if self._read_time is None else np.int64)
            for row, value in enumerate(column):
                try:
                    if value is None:
                        raise Reject("expected an event time, got none")
                    times[row] = read(value)
                except Reject as reject:
                    rejects.note(row, f"field {name!r}: {reject}")
        if self._read_time is not None:
            return times
        times_ms, late = from_numbers(times, self._events.time_unit)
        for row, reason in late.items():
            rejects.note(row, reason)
        return times_ms


def decode_one(decode: Any, value: bytes | None) -> Any:
    """Decode one record with `decode`. Raises Reject, which never quotes the record."""
    if value is None:
        raise Reject("the record's value is null")
    if is_nested_too_deeply(value):
        raise Reject(f"the record's value is nested more than {MAX_NESTING} deep")
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        raise Reject(f"the event does not match the feature spec: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Reject(f"the record's value is not valid JSON: {error}") from error
