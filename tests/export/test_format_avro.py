"""Avro: what is refused of a schema, logical types, a registry's prefix, and a missing library."""

from __future__ import annotations

import io
import json
import struct
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from keyfold.export import format_avro
from keyfold.export.errors import Reject, SpecError
from keyfold.export.events import Decoded, Decoder, EventSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.formats import format_of

fastavro = pytest.importorskip("fastavro")

NUMBERS = FeatureSpec.numbers("a")
PLAIN = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "double"}]}


def spec(schema: object, time: str | None = None, **further: Any) -> EventSpec:
    return EventSpec(None, time, format="avro", avro_schema=json.dumps(schema), **further)


def record(*fields: tuple[str, object]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "R",
        "fields": [{"name": name, "type": kind} for name, kind in fields],
    }


def written(schema: dict[str, Any], event: dict[str, Any]) -> bytes:
    """Return a record as any other program would write it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
    return out.getvalue()


def read(events: EventSpec, features: FeatureSpec, *values: bytes | None) -> Decoded:
    return Decoder(events, features).decode(list(values), [0] * len(values))


MOMENT = datetime(2026, 11, 21, 8, 30, 0, 123000, tzinfo=UTC)
MOMENT_MS = 1795249800123


@pytest.mark.parametrize("unit", ["millis", "micros"])
@pytest.mark.parametrize("kind", ["timestamp", "local-timestamp"])
def test_a_logical_timestamp_is_utc_in_ms(unit: str, kind: str) -> None:
    schema = record(("a", "double"), ("t", {"type": "long", "logicalType": f"{kind}-{unit}"}))
    moment = MOMENT if kind == "timestamp" else MOMENT.replace(tzinfo=None)
    value = written(schema, {"a": 1.0, "t": moment})
    got = read(spec(schema, "t"), NUMBERS, value)
    assert (got.times_ms.tolist(), got.rejects) == ([MOMENT_MS], {})
    text = b'{"a":1.0,"t":%d}' % MOMENT_MS
    assert format_of(spec(schema, "t"), ["a"]).of_json(text) == value
    assert json.loads(format_of(spec(schema, "t"), ["a"]).to_json(value)) == json.loads(text)


def test_nanoseconds_and_times_that_may_be_missing_are_read_too() -> None:
    nanos = {"type": "long", "logicalType": "timestamp-nanos"}
    schema = record(("a", "double"), ("t", ["null", nanos]))
    form = format_of(spec(schema, "t"), ["a"])
    value = form.of_json(b'{"a":1,"t":%d}' % MOMENT_MS)
    assert value.endswith(written(record(("t", "long")), {"t": MOMENT_MS * 1_000_000}))
    assert read(spec(schema, "t"), NUMBERS, value).times_ms.tolist() == [MOMENT_MS]
    got = read(spec(schema, "t"), NUMBERS, form.of_json(b'{"a":1,"t":null}'))
    assert "Expected `float`, got `null` - at `$.t`" in got.rejects[0]


def test_no_timestamp_can_be_too_large_to_be_looked_at() -> None:
    schema = record(("a", "double"), ("t", {"type": "long", "logicalType": "timestamp-millis"}))
    value = written(record(("a", "double"), ("t", "long")), {"a": 1.0, "t": 2**62})
    assert read(spec(schema, "t"), NUMBERS, value).rejects == {0: "the event time is out of range"}


def test_a_number_of_another_sort_is_in_the_settings_unit() -> None:
    schema = record(("a", "double"), ("t", "long"))
    value = written(schema, {"a": 1.0, "t": 5})
    assert read(spec(schema, "t", time_unit="s"), NUMBERS, value).times_ms.tolist() == [5000]


def test_enums_booleans_unions_and_decimals_are_what_they_look_like() -> None:
    enum = {"type": "enum", "name": "Mode", "symbols": ["idle", "busy"]}
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    schema = record(("a", decimal), ("mode", enum), ("on", "boolean"), ("b", ["null", "int"]))
    features = FeatureSpec((
        Field("a"), Field("mode", "category", ("busy", "idle")), Field("on", "boolean"),
        Field("b", missing="mask", fill=9.0),
    ))  # fmt: skip
    rows = [
        {"a": Decimal("12.50"), "mode": "busy", "on": True, "b": 3},
        {"a": Decimal("-1.25"), "mode": "idle", "on": False, "b": None},
    ]
    got = read(spec(schema), features, *(written(schema, row) for row in rows))
    assert got.rejects == {}
    assert got.x.tolist() == [[12.5, 1, 0, 1, 3, 0], [-1.25, 0, 1, 0, 9, 1]]
    form = format_of(spec(schema), ["a"])
    text = form.to_json(written(schema, rows[0]))
    assert json.loads(text) == {"a": 12.5, "mode": "busy", "on": True, "b": 3}
    assert form.of_json(text) == written(schema, rows[0])


DECIMALS: dict[str, dict[str, Any]] = {
    "bytes": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 1},
    "fixed": {"type": "fixed", "name": "D", "size": 16, "logicalType": "decimal", "precision": 4,
              "scale": 1},
}  # fmt: skip


def decimal_of(kind: str, data: bytes) -> tuple[EventSpec, bytes]:
    """Return the spec of records with one decimal, and a record whose decimal has these bytes."""
    plain = {name: part for name, part in DECIMALS[kind].items() if name != "logicalType"}
    return spec(record(("a", DECIMALS[kind]))), written(record(("a", plain)), {"a": data})


@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_decimal_of_too_many_bytes_is_a_reject_and_no_number_is_made_of_it(size: int) -> None:
    events, value = decimal_of("bytes", b"\x01" + bytes(size - 1))
    begun = time.process_time()
    rejects = read(events, NUMBERS, value).rejects
    assert time.process_time() - begun < 2  # it took half a minute, or fifty of them
    assert rejects == {
        0: "the record's value is not valid Avro: expected a decimal of at most 4 digits, got "
        f"{size} bytes"
    }


@pytest.mark.parametrize("kind", DECIMALS)
@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, -128, -129, 9999, -9999])
def test_a_decimal_s_sign_may_be_repeated_before_it(kind: str, number: int) -> None:
    events, value = decimal_of(kind, number.to_bytes(16, signed=True))
    got = read(events, NUMBERS, value)
    assert got.rejects == {}
    assert got.x.tolist() == [[pytest.approx(number / 10)]]


@pytest.mark.parametrize("kind", DECIMALS)
@pytest.mark.parametrize("number", [1 << 15, -(1 << 15) - 1, 1 << 100, -(1 << 126)])
def test_a_decimal_that_needs_more_bytes_than_its_digits_is_a_reject(
    kind: str, number: int
) -> None:
    events, value = decimal_of(kind, number.to_bytes(16, signed=True))
    assert read(events, NUMBERS, value).rejects == {
        0: "the record's value is not valid Avro: expected a decimal of at most 4 digits, got 16 "
        "bytes"
    }


@pytest.mark.parametrize("digits", [1, 2, 4, 9, 18, 19, 38, 100])
def test_every_number_of_a_decimal_s_digits_is_read(digits: int) -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": digits}
    schema = record(("a", decimal))
    form = format_of(spec(schema), ["a"])
    most = Decimal(10**digits - 1)
    for number in (most, -most):
        read_back = json.loads(form.to_json(written(schema, {"a": number})))
        assert read_back == {"a": float(number)}


# -- a registry's prefix ---------------------------------------------------------------------------

VALUE = written(PLAIN, {"a": 2.5})
ODD = written(PLAIN, {"a": 0.1})  # begins with no zero byte
HEADS = {
    "none": (ODD, "a zero byte and schema 7 (events.avro_id) before the Avro, got neither"),
    "another schema": (struct.pack(">bI", 0, 8) + VALUE, "got schema 8"),
    "another magic": (struct.pack(">bI", 1, 7) + VALUE, "got neither"),
    "cut off": (b"\0\0", "got neither"),
    "empty": (b"", "got neither"),
    "nothing behind it": (struct.pack(">bI", 0, 7), "not valid Avro (EOFError)"),
}


def test_records_behind_the_named_number_are_read() -> None:
    events = spec(PLAIN, avro_id=7)
    good = struct.pack(">bI", 0, 7) + VALUE
    assert read(events, NUMBERS, good).x.tolist() == [[2.5]]
    assert format_of(events, ["a"]).of_json(b'{"a":2.5}') == good
    assert json.loads(format_of(events, ["a"]).to_json(good)) == {"a": 2.5}


@pytest.mark.parametrize("case", HEADS)
def test_a_record_of_another_schema_is_a_reject(case: str) -> None:
    value, reason = HEADS[case]
    assert reason in read(spec(PLAIN, avro_id=7), NUMBERS, value).rejects[0]


def test_without_a_number_a_prefix_is_no_part_of_a_record() -> None:
    got = read(spec(PLAIN), NUMBERS, VALUE + b"\0", struct.pack(">bI", 0, 7) + VALUE, None)
    assert got.rejects == {
        0: "the record's value is not valid Avro: 1 bytes are left",
        1: "the record's value is not valid Avro: 5 bytes are left",
        2: "the record's value is null",
    }


# -- schemas that are refused ----------------------------------------------------------------------

LIST = record(("a", "double"), ("next", ["null", "R"]))
EMPTY = {"type": "record", "name": "E", "fields": []}
REFUSED = {
    "no schema": ({"type": "recrod"}, r"events\.avro_schema: expected an Avro schema"),
    "a type within itself": (LIST, r"expected no type within itself, got 'R'"),
    "an array of nothing": (
        record(("a", "double"), ("z", {"type": "array", "items": "null"})),
        "expected items of at least a byte in an array, got none",
    ),
    "an array of empty records": (
        record(("a", "double"), ("z", ["null", {"type": "array", "items": EMPTY}])),
        "expected items of at least a byte in an array, got none",
    ),
    "a missing feature": (record(("b", "double")), r"expected a field 'a', got none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_schema_that_cannot_serve_is_refused_by_name(case: str) -> None:
    schema, said = REFUSED[case]
    with pytest.raises(SpecError, match=said):
        Decoder(spec(schema), NUMBERS)


def test_a_path_is_looked_for_in_records_unions_and_maps() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "b", "type": "float"}]}
    schema = record(
        ("a", "double"), ("i", ["null", inner]), ("m", {"type": "map", "values": "int"})
    )
    for path in ("i.b", "m.any"):
        Decoder(spec(schema), FeatureSpec((Field(path, missing="mask"),)))
    for path in ("i.c", "a.b"):
        with pytest.raises(SpecError, match=f"expected a field {path!r}, got none"):
            Decoder(spec(schema), FeatureSpec((Field(path, missing="mask"),)))
    value = written(schema, {"a": 1.0, "i": {"b": 2.5}, "m": {"any": 3}})
    features = FeatureSpec((Field("i.b"), Field("m.any"), Field("m.more", missing="mask")))
    assert read(spec(schema), features, value).x.tolist() == [[2.5, 3, 0, 1]]


def test_another_unit_than_a_timestamp_s_is_refused() -> None:
    schema = record(("a", "double"), ("t", {"type": "long", "logicalType": "timestamp-micros"}))
    with pytest.raises(SpecError, match=r"events\.time_unit: expected 'ms' for 't', got 'us'"):
        Decoder(spec(schema, "t", time_unit="us"), NUMBERS)
    with pytest.raises(SpecError, match=r"events\.avro_schema: expected a field 'when', got none"):
        Decoder(spec(schema, "when"), NUMBERS)


def test_a_row_that_does_not_fit_the_schema_is_not_written() -> None:
    form = format_of(spec(PLAIN), ["a"])
    for text in (b'{"a":"secret"}', b"{}", b"[1]", b"{"):
        with pytest.raises(Reject, match=r"^the event does not fit the Avro schema \(\w+\)$"):
            form.of_json(text)


def test_a_missing_library_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_avro, "fastavro", None)
    with pytest.raises(SpecError) as error:
        Decoder(spec(PLAIN), NUMBERS)
    assert str(error.value) == ("events.format: 'avro' needs fastavro: pip install 'keyfold[avro]'")


def test_the_schema_s_text_stands_in_the_manifest() -> None:
    events = spec(PLAIN)
    assert events.to_json()["avro_schema"] == json.dumps(PLAIN)
    assert EventSpec.from_json(events.to_json()) == events
    assert replace(events, avro_id=3) == EventSpec.from_json(replace(events, avro_id=3).to_json())
