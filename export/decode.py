"""Records become events: the decoder that training, the worker and keyfold-verify share.

Owns how a record's bytes become the model's columns, the observed values and the event time, and
the reason when they cannot. It knows the event spec and the feature spec, never Kafka, models or
state. Plain required numbers take a short path here, everything else goes through members.py; how
bytes are read is the format's (formats.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import Columns, Rejects
from keyfold.export.end_marker import EndMarker
from keyfold.export.errors import Reject, SpecError
from keyfold.export.event_spec import NUMERIC_UNITS, EventSpec
from keyfold.export.event_times import EventTimes, of_records
from keyfold.export.features import FeatureSpec, encode
from keyfold.export.format_packed import Packed, check_packed
from keyfold.export.formats import JSON, Format, Json, Rows, format_for
from keyfold.export.inner_text import InnerText, checked
from keyfold.export.members import NUMBER, SCALAR, Members
from keyfold.export.text import Reader, Text
from keyfold.export.times import from_numbers


@dataclass(frozen=True, slots=True)
class Decoded:
    """N records after decoding. Rows named in `rejects` hold unusable numbers."""

    x: NDArray[np.float32]  # (N,F) the model's rows; NaN, 0 or raw where front.py finishes them;
    # of texts (M,1): the symbols of all events, one event behind the other
    times_ms: NDArray[np.int64]  # (N,) event times, UTC epoch ms
    rejects: dict[int, str]  # row -> why it cannot be an event
    observed: NDArray[np.float32] | None = None  # (N,K) the targets, NaN: missing; None: no targets
    lengths: NDArray[np.int64] | None = None  # (N,) steps of each event, 0: a reject; None: one
    ends: NDArray[np.bool_] | None = None  # (N,) where a key's history ends; None: no such marker


@runtime_checkable
class Readable(Protocol):
    """Values that are able to read plain numbers out of themselves (the worker's native module)."""

    def read_numbers(self, names: tuple[bytes, ...], table: NDArray[np.float64]) -> list[int]:
        """Read members of the values into table (N, len(names)); return the rows left out."""

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        """Return the values of some rows, which rise: all at once, one by one would show."""


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
        path = _path(events, features, tuple(targets))
        self.decode = (_Ending(path, events, features) if events.end_field else path).decode


def _path(events: EventSpec, features: FeatureSpec, targets: tuple[str, ...]) -> _Path:
    names = {field.name for field in features.fields}
    timed = events.time_field is None or events.time_unit in NUMERIC_UNITS
    members = (*names, *([events.time_field] if events.time_field is not None else []))
    plain = features.is_plain and timed and not events.decoder and names.issuperset(targets)
    form = format_for(events, features)
    if features.text is not None and isinstance(form, Packed):
        raise SpecError("events.format: expected 'json', 'msgpack' or 'avro' for a text")
    if features.unrolled is not None:
        return _Texts(events, features.unrolled, form)
    if isinstance(form, Packed):
        check_packed(features, targets)
        return _PackedNumbers(events, features, targets, form)
    if plain and not any("." in name for name in members):
        return _Numbers(events, features, targets, form)
    return _AnyForm(events, features, targets, form)


class _Ending:
    """Any of the paths below, and where an event ends its key's history."""

    def __init__(self, path: _Path, events: EventSpec, features: FeatureSpec) -> None:
        self._path = path
        self._marker = EndMarker(events.end_field, format_for(events, features))

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps."""
        decoded = self._path.decode(values, timestamps_ms)
        rejects = dict(decoded.rejects)
        ends = self._marker.read(list(values), rejects)
        return replace(decoded, rejects=rejects, ends=ends)


class _Numbers:
    """Required numbers at the top of an object: in JSON the usual case, and the fastest."""

    def __init__(
        self, events: EventSpec, features: FeatureSpec, targets: tuple[str, ...], form: Format
    ) -> None:
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
        row = msgspec.defstruct(
            "Row",
            [(f"c{i}", float) for i in range(len(distinct))],
            rename={f"c{i}": name for i, name in enumerate(distinct)},
            gc=False,  # it holds numbers
        )
        self._read = Rows(form, row, row(*(0.0,) * len(distinct))).read
        self._is_json = form is JSON

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
        else:
            times_ms, late = of_records(timestamps_ms)
        rejects = {**late, **rejects}
        return Decoded(x, times_ms, rejects, x[:, self._targets] if self._targets else None)

    def _table(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Read N records into a table (N,D) of the distinct members."""
        if not (self._is_json and isinstance(values, Readable)):
            rows, rejects = self._rows(list(values))
            return np.array(rows, np.float64).reshape(len(values), len(self._members)), rejects
        table = np.zeros((len(values), len(self._members)))
        left = values.read_numbers(self._members, table)
        rows, rejects = self._rows(values.pick(left))
        if rows:
            table[left] = rows
        return table, {left[number]: reason for number, reason in rejects.items()}

    def _rows(
        self, values: Sequence[bytes | None]
    ) -> tuple[list[tuple[float, ...]], dict[int, str]]:
        rejects = Rejects()
        return list(map(msgspec.structs.astuple, self._read(values, rejects))), rejects


class _PackedNumbers:
    """Packed numbers: all values are read at once."""

    def __init__(
        self, events: EventSpec, features: FeatureSpec, targets: tuple[str, ...], form: Packed
    ) -> None:
        names = [field.name for field in features.fields]
        self._form, self._unit = form, events.time_unit
        self._targets = [names.index(name) for name in targets]
        self._further = len(features.columns) - len(names)  # columns that front.py fills

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps."""
        rejects = Rejects()
        x, times = self._form.table(list(values), rejects)
        observed = x[:, self._targets] if self._targets else None
        if self._further:
            x = np.pad(x, ((0, 0), (0, self._further)))
        if times is None:
            times_ms, late = of_records(timestamps_ms)
        else:
            times_ms, late = from_numbers(times, self._unit)
        return Decoded(x, times_ms, {**late, **rejects}, observed)


class _AnyForm:
    """Everything else: see members.py and columns.py."""

    def __init__(
        self, events: EventSpec, features: FeatureSpec, targets: tuple[str, ...], form: Format
    ) -> None:
        self._columns = Columns(features, targets)
        self._text = None if features.inner is None else InnerText(features.inner)
        self._long = features.long
        self._times = EventTimes(events)
        paths: dict[str, Any] = {}
        if features.long is not None:
            paths = {features.long.name: SCALAR, features.long.value: SCALAR}
        else:
            for field in self._columns.fields:
                paths[field.name] = NUMBER if field.kind == "number" else SCALAR
        if self._text is not None:
            paths[self._text.field] = SCALAR
        self._times.add_to(paths)
        self._places = {path: number for number, path in enumerate(paths)}
        self._members = Members(paths)
        self._read = Rows(form, self._members.row, self._members.row()).read
        finite = isinstance(form, Json)  # JSON has no NaN, which would stand for a missing value
        self._numbers = {} if finite else {p: n for p, n in self._places.items()
                                           if p != events.time_field}  # fmt: skip

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps."""
        values, rejects = list(values), Rejects()
        members = self._members.columns(self._read(values, rejects))
        for path, place in self._numbers.items():
            _note_not_finite(path, members[place], rejects)
        if self._long is not None:
            sensors, readings = (
                members[self._places[m]] for m in (self._long.name, self._long.value)
            )
            columns = self._columns.spread(self._long, sensors, readings, rejects)
        else:
            columns = [members[self._places[field.name]] for field in self._columns.fields]
        x, observed = self._columns.build(columns, rejects, len(values))
        if self._text is not None:
            self._text.fill(members[self._places[self._text.field]], x, rejects)
        times_ms = self._times.read(members, self._places, timestamps_ms, rejects)
        return Decoded(x, times_ms, dict(rejects), observed)


class _Texts:
    """One member is a text, which becomes several steps: see text.py."""

    def __init__(self, events: EventSpec, text: Text, form: Format) -> None:
        self._field, self._reader, self._times = text.field, Reader(text), EventTimes(events)
        paths: dict[str, Any] = {text.field: SCALAR}
        self._times.add_to(paths)
        self._places = {path: number for number, path in enumerate(paths)}
        self._members = Members(paths)
        self._read = Rows(form, self._members.row, self._members.row()).read

    def decode(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Decoded:
        """Decode N record values; `timestamps_ms` (N,) are the records' own timestamps."""
        rejects = Rejects()
        members = self._members.columns(self._read(list(values), rejects))
        times_ms = self._times.read(members, self._places, timestamps_ms, rejects)
        found, lengths = [np.empty(0, np.float32)], np.zeros(len(values), np.int64)
        for row, text in enumerate(members[self._places[self._field]]):
            if row in rejects:
                continue
            try:
                found.append(self._reader.read(checked(text)))
                lengths[row] = len(found[-1])
            except Reject as reject:
                rejects.note(row, f"field {self._field!r}: {reject}")
        return Decoded(np.concatenate(found)[:, None], times_ms, dict(rejects), None, lengths)


def _note_not_finite(path: str, column: Sequence[Any], rejects: Rejects) -> None:
    try:
        if math.isfinite(sum(column)):  # the usual case
            return
    except (TypeError, OverflowError):  # there are texts or missing values, or huge integers
        pass
    for row, value in enumerate(column):
        if isinstance(value, float) and not math.isfinite(value):
            rejects.note(row, f"field {path!r} is not finite")
