"""Formats of a record's value behind one small interface: JSON, MessagePack, packed, Avro.

Owns the interface, JSON's side of it, and the reading of many values with a reason for each that
is no event. A format turns a value into the struct that members.py or decode.py asks for, so that
what a member means, and when it is a reject, is the same in every format. Knows no features and no
Kafka. Called by decode.py, and by whoever reads one member, writes records or wants JSON
(key_field, keyfold-send, training).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import msgspec
import orjson

from keyfold.export.columns import Rejects
from keyfold.export.errors import Reject
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.hook import json_of
from keyfold.export.nesting import MAX_NESTING, is_nested_too_deeply

QUICK_ERRORS = (Reject, msgspec.MsgspecError, TypeError, UnicodeDecodeError)  # of a decoder
NO_NUMBER = orjson.Fragment(b"1e999")  # in JSON's place of a NaN: no reader takes it for a number


class Format(Protocol):
    """How values of one format are read and written."""

    name: str  # in a reject
    shallow: int  # values of at most so many bytes cannot be nested too deeply

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """Return the function value -> `row`, a struct; it raises one of QUICK_ERRORS."""

    def is_too_deep(self, value: bytes) -> bool:
        """Say whether it is nested more than MAX_NESTING deep."""

    def to_json(self, value: bytes) -> bytes:
        """Return the event as JSON. Raises Reject."""

    def of_json(self, event: bytes) -> bytes:
        """Return the value for an event in JSON. Raises Reject."""


class Json:
    """A JSON object."""

    name = "JSON"
    shallow = 2 * MAX_NESTING

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """See Format."""
        return msgspec.json.Decoder(row).decode

    def is_too_deep(self, value: bytes) -> bool:
        """See Format."""
        return is_nested_too_deeply(value)

    def to_json(self, value: bytes) -> bytes:
        """See Format."""
        return value

    def of_json(self, event: bytes) -> bytes:
        """See Format."""
        return event


JSON = Json()


class Hooked(Json):
    """What a user's function makes JSON of; only it knows how such a value is written."""

    shallow = -1  # each value is read with care, once

    def __init__(self, name: str) -> None:
        self._hook = json_of(name)

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """See Format."""
        decode, hook = super().decoder(row), self._hook
        return lambda value: decode_one(decode, hook(value))

    def to_json(self, value: bytes) -> bytes:
        """See Format."""
        return self._hook(value)

    def is_too_deep(self, value: bytes) -> bool:
        """Say no: the depth of what the function returns is looked at."""
        return False


def format_of(events: EventSpec, names: Sequence[str] = ()) -> Format:
    """Return the format of an event spec whose members `names` are read, in the features' order.

    Raises SpecError: the format cannot hold these members, or its library is missing.
    """
    if events.decoder:
        return Hooked(events.decoder)
    if events.format == "msgpack":
        from keyfold.export.format_msgpack import MessagePack

        return MessagePack()
    if events.format == "packed":
        from keyfold.export.format_packed import Packed

        return Packed(events, names)
    if events.format == "avro":
        from keyfold.export.format_avro import Avro

        return Avro(events, names)
    return JSON


def format_for(events: EventSpec, features: FeatureSpec) -> Format:
    """Return the format of a bundle's records. Raises SpecError."""
    long = features.long
    fields = [field.name for field in features.fields]
    fields += [] if features.text is None else [features.text.field]
    names = fields if long is None else [long.name, long.value]
    return format_of(events, [*names, events.end_field] if events.end_field else names)


class Rows:
    """Reads many values into structs."""

    def __init__(self, form: Format, row: Any, blank: Any) -> None:
        self._form, self._blank = form, blank  # blank: the struct of a value that is no event
        self._decode = form.decoder(row)

    def read(self, values: Sequence[bytes | None], rejects: Rejects) -> list[Any]:
        """Return N structs; of what is no event, why, by row."""
        decode = self._decode
        try:
            # The usual case, without a try per record: every record decodes, and is too short to
            # be nested too deeply.
            if max(map(len, values), default=0) <= self._form.shallow:  # type: ignore[arg-type]
                return [decode(value) for value in values]  # type: ignore[arg-type]
        except QUICK_ERRORS:
            pass
        rows = []
        for number, value in enumerate(values):
            try:
                rows.append(self.one(value))
            except Reject as reject:
                rows.append(self._blank)
                rejects.note(number, str(reject))
        return rows

    def one(self, value: bytes | None) -> Any:
        """Return one value's struct. Raises Reject, which never quotes the record."""
        return decode_one(self._decode, value, self._form)


def decode_one(decode: Any, value: bytes | None, form: Format = JSON) -> Any:
    """Decode one record with `decode`. Raises Reject, which never quotes the record."""
    if value is None:
        raise Reject("the record's value is null")
    if form.is_too_deep(value):
        raise Reject(f"the record's value is nested more than {MAX_NESTING} deep")
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        raise Reject(f"the event does not match the feature spec: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Reject(f"the record's value is not valid {form.name}: {error}") from error


def json_text(event: Mapping[Any, Any]) -> bytes:
    """Return an event as JSON that reads as the event itself does. Raises Reject.

    JSON has no NaN and no bytes: in their places stand a number that is out of range and an empty
    array, each a reject where it is read and none where it is not.
    """
    try:
        text = orjson.dumps(event, default=_foreign, option=orjson.OPT_NON_STR_KEYS)
        # NaN and infinity came out as null.
        return text if b"null" not in text else orjson.dumps(
            _without_nan(event), default=_foreign, option=orjson.OPT_NON_STR_KEYS
        )  # fmt: skip
    except (TypeError, ValueError, RecursionError) as error:
        raise Reject("the record's value holds what JSON cannot hold") from error


def _foreign(value: object) -> Any:
    return float(value) if isinstance(value, Decimal) else []


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else NO_NUMBER
    if isinstance(value, Mapping):
        return {name: _without_nan(member) for name, member in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list) else value
