"""Events as Avro: one record of the schema that the event spec holds, without a file's header.

Owns how fastavro is asked, what of a schema is refused beforehand (so that no record can ask for
more memory or depth than it has bytes), the registry's five bytes, and times: a logical timestamp
is read as UTC epoch ms; every other logical type is read as what it stands on, but a decimal, which
is a number (of no more bytes than its precision needs: a number of many bytes costs their square).
Called by formats.py, for that format only: fastavro is an optional extra.

A record does not say which schema it was written with. With a registry it names a number, and only
the one that was named here is read: another schema's bytes would give other numbers without a word.
"""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from math import log2
from typing import Any

import msgspec
import orjson

from keyfold.export.errors import Reject, SpecError
from keyfold.export.event_spec import EventSpec
from keyfold.export.formats import json_text

try:
    import fastavro
except ImportError:
    fastavro = None  # type: ignore[assignment]

_PER_MS = {"millis": 1, "micros": 1000, "nanos": 1_000_000}  # of a logical timestamp
_OWN = "keyfold-"  # logical types of ours, in place of Avro's, which become objects
_HEAD = struct.Struct(">bI")  # a registry's: magic 0, the schema's number


class Avro:
    """A record of one schema; see formats.Format."""

    name = "Avro"
    shallow = sys.maxsize  # a record is as deep as its schema

    def __init__(self, events: EventSpec, names: Sequence[str]) -> None:
        if fastavro is None:
            raise SpecError("events.format: 'avro' needs fastavro: pip install 'keyfold[avro]'")
        text = events.avro_schema
        try:
            schema = orjson.loads(text)
            self._whole = fastavro.schema.expand_schema(schema)
            self._reading = fastavro.parse_schema(_rewritten(schema, _of_reading))
            self._writing = fastavro.parse_schema(_rewritten(schema, _of_writing))
        except Exception as error:
            # The seam to code that is not ours: fastavro raises whatever it stumbles over.
            raise SpecError(f"events.avro_schema: expected an Avro schema: {error}") from error
        _check(self._whole)
        self._expect(names, events.time_field, events.time_unit)
        self._head = b"" if events.avro_id is None else _HEAD.pack(0, events.avro_id)

    def _expect(self, paths: Sequence[str], time: str | None, unit: str) -> None:
        """Raise SpecError, by name, where the schema has no such member or another sort of time."""
        for path in (*paths, *([time] if time is not None and paths else [])):
            if not any(True for _ in _found(self._whole, path.split("."))):
                raise SpecError(f"events.avro_schema: expected a field {path!r}, got none")
        kinds = _found(self._whole, time.split(".")) if time is not None else ()
        logical = {kind["logicalType"] for kind in kinds if _is_timestamp(kind)}
        if logical and unit != "ms":
            raise SpecError(
                f"events.time_unit: expected 'ms' for {time!r}, got {unit!r}: the Avro schema says "
                f"{min(logical)}, which is read as ms"
            )

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """See Format."""
        convert, read = msgspec.convert, self._read
        return lambda value: convert(read(value), row)

    def is_too_deep(self, value: bytes) -> bool:
        """See Format."""
        return False

    def to_json(self, value: bytes) -> bytes:
        """See Format."""
        return json_text(self._read(value))

    def of_json(self, event: bytes) -> bytes:
        """See Format."""
        out = io.BytesIO()
        try:
            fastavro.schemaless_writer(out, self._writing, orjson.loads(event))
        except Exception as error:
            # As above; the message of such an error quotes what could not be written.
            raise Reject(
                f"the event does not fit the Avro schema ({type(error).__name__})"
            ) from error
        return self._head + out.getvalue()

    def _read(self, value: bytes) -> Any:
        head = self._head
        if not value.startswith(head):
            raise Reject(self._why_no_head(value))
        stream = io.BytesIO(value)
        stream.seek(len(head))
        try:
            event = fastavro.schemaless_reader(stream, self._reading, None)
        except Reject:  # ours, of a decimal
            raise
        except Exception as error:
            # As above; its kind is enough, and the message may quote the record.
            raise Reject(
                f"the record's value is not valid Avro ({type(error).__name__})"
            ) from error
        if stream.tell() != len(value):
            raise Reject(
                f"the record's value is not valid Avro: {len(value) - stream.tell()} bytes are left"
            )
        return event

    def _why_no_head(self, value: bytes) -> str:
        (wanted,) = _HEAD.unpack(self._head)[1:]
        expected = f"expected a zero byte and schema {wanted} (events.avro_id) before the Avro"
        if len(value) < _HEAD.size or value[0] != 0:
            return f"the record's value: {expected}, got neither"
        return f"the record's value: {expected}, got schema {_HEAD.unpack_from(value)[1]}"


# -- schemas ---------------------------------------------------------------------------------------


def _rewritten(schema: Any, logical: Callable[[str], str | None]) -> Any:
    """Return a schema with other logical types."""
    if isinstance(schema, list):
        return [_rewritten(branch, logical) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        name: _rewritten(part, logical) if name in ("type", "items", "values", "fields") else part
        for name, part in schema.items()
    }
    if "logicalType" in changed:
        changed["logicalType"] = logical(str(changed["logicalType"]))
        if changed["logicalType"] is None:
            del changed["logicalType"]
    return changed


def _of_reading(logical: str) -> str | None:
    if logical == "decimal":
        return _OWN + logical
    unit = logical.rpartition("-")[2]
    return _OWN + unit if _PER_MS.get(unit, 1) > 1 and "timestamp-" in logical else None


def _of_writing(logical: str) -> str | None:
    if logical == "decimal":
        return _OWN + logical
    return _OWN + logical.rpartition("-")[2] if "timestamp-" in logical else None


def _is_timestamp(schema: Any) -> bool:
    return isinstance(schema, dict) and "timestamp-" in str(schema.get("logicalType"))


def _found(schema: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield what a path may lead to; a map may hold any member."""
    for branch in schema if isinstance(schema, list) else [schema]:
        kind = branch.get("type") if isinstance(branch, dict) else branch
        if isinstance(kind, list | dict):
            yield from _found(kind, path)
        elif not path:
            yield branch
        elif kind == "map":
            yield from _found(branch["values"], path[1:])
        elif kind in ("record", "error"):
            for field in branch["fields"]:
                if field["name"] == path[0]:
                    yield from _found(field["type"], path[1:])


def _check(schema: Any) -> None:
    """Raise SpecError for what lets a few bytes ask for endless depth or memory."""
    kind = schema.get("type") if isinstance(schema, dict) else schema
    if isinstance(schema, list):
        for branch in schema:
            _check(branch)
    elif isinstance(kind, list | dict):
        _check(kind)
    elif kind in ("record", "error"):
        for field in schema["fields"]:
            _check(field["type"])
    elif kind in ("array", "map"):
        item = schema["items" if kind == "array" else "values"]
        _check(item)
        if kind == "array" and _least(item) == 0:
            raise SpecError(
                "events.avro_schema: expected items of at least a byte in an array, got none: one "
                "record could ask for any amount of memory"
            )
    elif isinstance(kind, str) and kind not in _LEAST and kind not in ("enum", "fixed"):
        raise SpecError(
            f"events.avro_schema: expected no type within itself, got {kind!r}: such a record may "
            "be nested without end"
        )


_LEAST = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1,
          "string": 1}  # bytes  # fmt: skip


def _least(schema: Any) -> int:
    """Return the fewest bytes that a value takes."""
    if isinstance(schema, list):
        return 1
    kind = schema.get("type") if isinstance(schema, dict) else schema
    if isinstance(kind, list | dict):
        return _least(kind)
    if kind in ("record", "error"):
        return sum(_least(field["type"]) for field in schema["fields"])
    return int(schema["size"]) if kind == "fixed" else _LEAST.get(str(kind), 1)


# -- our logical types -----------------------------------------------------------------------------


def _teach(unit: str, factor: int) -> None:
    def read(data: Any, *_: Any) -> float:
        return float(data) / factor

    def write(data: Any, *_: Any) -> Any:
        return data if data is None else round(data * factor)

    fastavro.read.LOGICAL_READERS[f"long-{_OWN}{unit}"] = read
    fastavro.write.LOGICAL_WRITERS[f"long-{_OWN}{unit}"] = write


def _write_decimal(data: Any, schema: Any) -> Any:
    exact = data if data is None else Decimal(str(data))
    return fastavro.write.LOGICAL_WRITERS[f"{schema['type']}-decimal"](exact, schema)


def _read_decimal(data: bytes, schema: Any, *further: Any) -> Any:
    digits = int(schema["precision"])
    most = int(digits * log2(10) + 1) // 8 + 1  # bytes of so many digits and a sign
    if len(data) > most:
        # A writer may have repeated the sign before it, as it must where a fixed is wider.
        negative, data, head = data[0] >> 7, data[-most:], data[:-most]
        if head.strip(b"\xff" if negative else b"\0") or data[0] >> 7 != negative:
            raise Reject(
                f"the record's value is not valid Avro: expected a decimal of at most {digits} "
                f"digits, got {most + len(head)} bytes"
            )
    return fastavro.read.LOGICAL_READERS[f"{schema['type']}-decimal"](data, schema, *further)


if fastavro is not None:
    for _base in ("bytes", "fixed"):
        fastavro.read.LOGICAL_READERS[f"{_base}-{_OWN}decimal"] = _read_decimal
        fastavro.write.LOGICAL_WRITERS[f"{_base}-{_OWN}decimal"] = _write_decimal
    for _unit, _factor in _PER_MS.items():
        _teach(_unit, _factor)
