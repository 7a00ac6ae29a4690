"""Formats beside JSON: the same events read to the same bits, and hostile bytes cost one record.

Needs no service; Avro needs fastavro.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyfold.export.errors import Reject, SpecError
from keyfold.export.events import Decoded, Decoder, EventSpec
from keyfold.export.features import FeatureSpec, Field, LongForm, Missing
from keyfold.export.formats import format_of

HAS_AVRO = find_spec("fastavro") is not None
NUMBERS = FeatureSpec.numbers("a", "b")
RICH = FeatureSpec(
    (
        Field("a"),
        Field("b", missing="mask", fill=2.5),
        Field("in.c", missing="last"),
        Field("in.on", "boolean", missing="mask"),
        Field("kind", "category", ("x", "3", "true"), "last"),
    ),
    since_last=True,
)
LONG = FeatureSpec(
    (Field("a", missing="last"), Field("b", missing="mask")), long=LongForm("s", "v")
)
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "t", "type": "long"},
        {"name": "a", "type": ["null", "double"], "default": None},
        {"name": "b", "type": ["null", "double", "boolean", "string"], "default": None},
        {
            "name": "in",
            "default": None,
            "type": [
                "null",
                {
                    "type": "record",
                    "name": "Inner",
                    "fields": [
                        {"name": "c", "type": ["null", "double"], "default": None},
                        {"name": "on", "type": ["null", "boolean"], "default": None},
                    ],
                },
            ],
        },
        {"name": "kind", "type": ["null", "string"], "default": None},
        {"name": "s", "type": ["null", "string"], "default": None},
        {"name": "v", "type": ["null", "double"], "default": None},
        {"name": "other", "type": {"type": "array", "items": "string"}, "default": []},
    ],
}
BASE = EventSpec("key", "t")
MSGPACK = replace(BASE, format="msgpack")
PACKED = replace(BASE, format="packed")
AVRO = replace(BASE, format="avro", avro_schema=json.dumps(SCHEMA))


def same(one: Decoded, other: Decoded) -> bool:
    """Say whether two are equal to the bit, where they are no rejects."""
    assert one.rejects.keys() == other.rejects.keys()
    good = [row for row in range(len(one.times_ms)) if row not in one.rejects]
    pairs: list[tuple[Any, Any]] = [
        (one.x, other.x), (one.times_ms, other.times_ms), (one.observed, other.observed)
    ]  # fmt: skip
    return all(a is b is None or a[good].tobytes() == b[good].tobytes() for a, b in pairs)


def decoded(
    events: EventSpec, features: FeatureSpec, made: Sequence[Any], targets: Sequence[str] = ()
) -> tuple[Decoded, Decoded]:
    """Return events (objects) as read from JSON and from a format."""
    names = [field.name for field in features.fields]
    form = format_of(events, names)
    texts = [json.dumps(event).encode() for event in made]
    stamps = list(range(len(made)))
    return (
        Decoder(events.of_files, features, targets).decode(texts, stamps),
        Decoder(events, features, targets).decode([form.of_json(text) for text in texts], stamps),
    )


# -- the same events -------------------------------------------------------------------------------

FINITE = st.floats(-3e38, 3e38) | st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(-(10**15), 10**15)
MAYBE = st.none() | FINITE
ANYTHING = MAYBE | st.booleans() | st.text(max_size=5)


def members(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with some of these members."""
    return st.fixed_dictionaries({}, optional=values)


@given(st.lists(members(t=TIMES, a=ANYTHING, b=ANYTHING, other=ANYTHING), max_size=6))
def test_plain_numbers_of_messagepack_are_those_of_json(made: list[Any]) -> None:
    assert same(*decoded(MSGPACK, NUMBERS, made))


KINDS: dict[str, dict[str, Any]] = {
    "number": {},
    "boolean": {"kind": "boolean"},
    "category": {"kind": "category", "values": ("x", "3", "true")},
}


@st.composite
def specs(draw: st.DrawFn) -> FeatureSpec:
    """Return any features of a few names, nested ones among them."""
    names = draw(st.lists(st.sampled_from(["a", "in.c", "in.on", "in", "b"]), min_size=1,
                          unique=True))  # fmt: skip
    fields = []
    for name in names:
        kind = draw(st.sampled_from(list(KINDS)))
        missing: Missing = draw(st.sampled_from(get_args(Missing)))
        standardise = kind == "number" and draw(st.booleans())
        fields.append(Field(name, missing=missing, standardise=standardise, **KINDS[kind]))
    if draw(st.booleans()):
        fields = [replace(field, missing="last") for field in fields]
        return FeatureSpec(tuple(fields), long=LongForm("s", "in.v"))
    return FeatureSpec(tuple(fields), since_last=draw(st.booleans()))


INNER = ANYTHING | members(c=ANYTHING, on=ANYTHING, v=ANYTHING) | st.lists(ANYTHING, max_size=2)
EVENTS = members(**{
    "t": ANYTHING | TIMES, "a": ANYTHING, "b": ANYTHING, "in": INNER, "in.c": ANYTHING,
    "s": ANYTHING | st.sampled_from(["a", "in.c", "b"]),
})  # fmt: skip


@given(specs(), st.lists(EVENTS, max_size=6), st.booleans())
def test_any_features_of_messagepack_are_those_of_json(
    features: FeatureSpec, made: list[Any], observed: bool
) -> None:
    targets = [f.name for f in features.fields if f.kind == "number"] if observed else []
    one, other = decoded(MSGPACK, features, made, targets)
    assert same(one, other)
    # The same words, too: they come from the same code.
    assert one.rejects == other.rejects


SMALL = st.floats(-3e38, 3e38)


@given(
    st.lists(st.fixed_dictionaries({"t": TIMES, "a": SMALL, "b": SMALL}), max_size=6),
    st.sampled_from(["ms", "s", "us", "ns"]),
    st.sampled_from([NUMBERS, FeatureSpec((Field("a", standardise=True), Field("b")), True)]),
)
def test_packed_numbers_are_those_of_json(
    made: list[Any], unit: str, features: FeatureSpec
) -> None:
    assert same(*decoded(replace(PACKED, time_unit=unit), features, made, ["b"]))
    untimed = replace(PACKED, time_field=None)
    assert same(*decoded(untimed, features, made))


@pytest.mark.skipif(not HAS_AVRO, reason="needs fastavro")
@settings(max_examples=50)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"t": TIMES, "a": SMALL},
            optional={
                "b": st.none() | SMALL,
                "kind": st.none() | st.sampled_from(["x", "3", "true", "other"]),
                "in": st.none() | members(c=st.none() | SMALL, on=st.none() | st.booleans()),
                "s": st.none() | st.sampled_from(["a", "b", "c"]),
                "v": st.none() | SMALL,
            },
        ),
        max_size=6,
    ),
    st.sampled_from([NUMBERS, RICH, LONG]),
)
def test_avro_records_are_those_of_json(made: list[Any], features: FeatureSpec) -> None:
    assert same(*decoded(AVRO, features, made, ["a"]))


# -- rejects ---------------------------------------------------------------------------------------

GOOD = msgspec.msgpack.encode({"a": 1, "b": 2.5, "t": 7})
HOSTILE = {
    "null value": (None, "the record's value is null"),
    "empty": (b"", "the record's value is not valid MessagePack: Input data was truncated"),
    "cut off": (GOOD[:-1], "not valid MessagePack"),
    "trailing bytes": (GOOD + b"\0", "not valid MessagePack"),
    "array": (b"\x92\x01\x02", "Expected `object`, got `array`"),
    "JSON": (b'{"a":1,"b":2,"t":3}', "not match the feature spec: Expected `object`, got `int`"),
    "missing": (msgspec.msgpack.encode({"a": 1, "t": 3}), "missing required field `b`"),
    "boolean": (msgspec.msgpack.encode({"a": True, "b": 1, "t": 3}),
                "Expected `float`, got `bool` - at `$.a`"),
    "text": (msgspec.msgpack.encode({"a": "1", "b": 1, "t": 3}),
             "Expected `float`, got `str` - at `$.a`"),
    "bytes": (msgspec.msgpack.encode({"a": b"1", "b": 1, "t": 3}),
              "Expected `float`, got `bytes` - at `$.a`"),
    "NaN": (msgspec.msgpack.encode({"a": math.nan, "b": 1, "t": 3}), "field 'a' is not finite"),
    "infinity": (msgspec.msgpack.encode({"a": 1, "b": -math.inf, "t": 3}),
                 "field 'b' is not finite"),
    "overflow": (msgspec.msgpack.encode({"a": 1, "b": 1e39, "t": 3}),
                 "field 'b' overflows float32"),
    "time": (msgspec.msgpack.encode({"a": 1, "b": 1, "t": math.nan}),
             "the event time is out of range"),
    "deep": (b"\x84" + GOOD[1:] + b"\xa1z" + b"\x91" * 50_000 + b"\xc0",
             "the record's value is nested more than 200 deep"),
    "deep maps": (b"\x84" + GOOD[1:] + b"\xa1z" + b"\x81\xa1k" * 500 + b"\xc0",
                  "the record's value is nested more than 200 deep"),
    "a huge count": (b"\x84" + GOOD[1:] + b"\xa1z\xdd\xff\xff\xff\xff", "not valid MessagePack"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_malformed_messagepack_record_is_a_reject_alone(case: str) -> None:
    value, reason = HOSTILE[case]
    got = Decoder(MSGPACK, NUMBERS).decode([GOOD, value, GOOD], [0, 0, 0])
    assert list(got.rejects) == [1]
    assert reason in got.rejects[1]
    assert got.x[[0, 2]].tolist() == [[1, 2.5]] * 2
    assert np.isfinite(got.x).all()


@pytest.mark.parametrize("count", [199, 200, 201, 250])
@pytest.mark.parametrize("last", [b"\x90", b"\x80", b"\xc0"])
def test_messagepack_is_as_deep_as_json_may_be_on_any_stack(count: int, last: bytes) -> None:
    inner = last != b"\xc0"  # an empty container is one more
    value = b"\x84" + GOOD[1:] + b"\xa1z" + b"\x91" * (count - 1 - inner) + last

    def verdict(frames: int) -> bool:
        return verdict(frames - 1) if frames else not Decoder(MSGPACK, NUMBERS).decode(
            [value], [0]
        ).rejects  # fmt: skip

    assert verdict(0) == verdict(300) == (count <= 200)
    text = b'{"a":1,"b":2,"t":3,"z":' + b"[" * (count - 1) + b"]" * (count - 1) + b"}"
    assert (not Decoder(BASE, NUMBERS).decode([text + b" " * 500], [0]).rejects) == (count <= 200)


def test_bytes_of_numbers_and_texts_are_no_depth() -> None:
    event = {"a": 1, "b": 2, "t": 3, "z": ["\u0091" * 300, b"\x91" * 300, [-1.1e-300] * 90,
             {"k": b"\xdf" * 70_000}, msgspec.msgpack.Ext(5, b"\x91" * 16),
             msgspec.msgpack.Ext(5, b"\x91" * 999), 2**40, -(2**20), "x" * 70_000]}  # fmt: skip
    got = Decoder(MSGPACK, NUMBERS).decode([msgspec.msgpack.encode(event)], [0])
    assert not got.rejects


def test_a_number_that_is_none_is_not_taken_for_a_missing_one() -> None:
    value = msgspec.msgpack.encode({"a": 1, "b": math.nan, "t": 3, "in": {"c": math.inf}})
    got = Decoder(MSGPACK, RICH).decode([value], [0])
    assert got.rejects == {0: "field 'b' is not finite"}


PACKED_GOOD = struct.pack("<qff", 7, 1.0, 2.5)
WRONG = {
    "null value": (None, "the record's value is null"),
    "empty": (b"", "the record's value: expected 16 bytes (a time and 2 float32), got 0"),
    "short": (PACKED_GOOD[:-1], "expected 16 bytes (a time and 2 float32), got 15"),
    "long": (PACKED_GOOD + b"\0", "expected 16 bytes (a time and 2 float32), got 17"),
    "NaN": (struct.pack("<qff", 7, 1.0, math.nan), "field 'b' is not finite"),
    "infinity": (struct.pack("<qff", 7, -math.inf, math.nan), "field 'a' is not finite"),
    "time": (struct.pack("<qff", 2**62, 1.0, 1.0), "the event time is out of range"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_packed_record_is_a_reject_alone(case: str) -> None:
    value, reason = WRONG[case]
    got = Decoder(PACKED, NUMBERS).decode([PACKED_GOOD, value, PACKED_GOOD], [0, 0, 0])
    assert list(got.rejects) == [1]
    assert reason in got.rejects[1]
    assert got.x[[0, 2]].tolist() == [[1, 2.5]] * 2
    assert got.times_ms[[0, 2]].tolist() == [7, 7]
    assert np.isfinite(got.x).all()


def test_lengths_that_only_add_up_are_rejects() -> None:
    got = Decoder(PACKED, NUMBERS).decode([PACKED_GOOD[:8], PACKED_GOOD + bytes(8)], [0, 0])
    assert sorted(got.rejects) == [0, 1]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (Field("door", "boolean"), "got 'door': boolean, missing 'error'"),
        (Field("load", missing="last"), "got 'load': number, missing 'last'"),
        (Field("kind", "category", ("x",)), "got 'kind': category, missing 'error'"),
    ],
)
def test_what_packed_numbers_cannot_hold_is_refused_by_name(field: Field, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Decoder(PACKED, FeatureSpec((Field("a"), field)))


def test_further_contradictions_of_formats_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match="expected a feature in packed records, got 'load'"):
        Decoder(PACKED, NUMBERS, ["load"])
    with pytest.raises(SpecError, match=r"events\.time_field: expected no feature .*got 'a'"):
        Decoder(replace(PACKED, time_field="a"), NUMBERS)
    with pytest.raises(SpecError, match=r"events\.time_unit: .*with packed records, got 'iso'"):
        replace(PACKED, time_unit="iso")
    with pytest.raises(SpecError, match=r"events\.format: expected one of json, .*got 'xml'"):
        EventSpec(format="xml")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"events\.format: expected 'json' with a decoder"):
        replace(MSGPACK, decoder="a:b")
    with pytest.raises(SpecError, match=r"events\.avro_schema: expected the schema .*got none"):
        EventSpec(format="avro")
    with pytest.raises(SpecError, match=r"events\.avro_id: expected none with format 'json'"):
        EventSpec(avro_id=3)
    with pytest.raises(SpecError, match=r"events\.avro_id: expected 0 to 4294967295.*got -1"):
        replace(AVRO, avro_id=-1)


# -- the manifest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [MSGPACK, PACKED, replace(AVRO, avro_id=7)])
def test_a_format_survives_the_manifest_and_needs_its_newer_version(events: EventSpec) -> None:
    assert EventSpec.from_json(json.loads(json.dumps(events.to_json()))) == events
    assert events.to_json()["codec"] == events.format
    assert not events.is_first_version
    assert events.of_files == BASE


def test_json_is_written_as_ever() -> None:
    assert BASE.to_json() == {
        "codec": "json", "key_field": "key", "time_field": "t", "time_unit": "ms",
        "tombstone": "reject",
    }  # fmt: skip
    assert BASE.is_first_version


# -- to and from JSON ------------------------------------------------------------------------------


def test_what_json_cannot_hold_is_a_reject_where_it_is_read() -> None:
    form = format_of(MSGPACK)
    event = {"a": 1, "b": 2, "t": 3, "x": math.nan, "y": b"1", "z": [None, -math.inf], "w": {1: 2}}
    text = form.to_json(msgspec.msgpack.encode(event))
    assert text == b'{"a":1,"b":2,"t":3,"x":1e999,"y":[],"z":[null,1e999],"w":{"1":2}}'
    assert not Decoder(BASE, NUMBERS).decode([text], [0]).rejects
    for name in ("x", "y"):
        mask = FeatureSpec((Field(name, missing="mask"),))
        assert Decoder(BASE, mask).decode([text], [0]).rejects
        assert Decoder(MSGPACK, mask).decode([msgspec.msgpack.encode(event)], [0]).rejects


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x93", b"\x81\x01\x02", b"\x81\xa1a\xa1\xff",
                                   b"\x81\xa1a" + b"\x91" * 1000])  # fmt: skip
def test_what_is_no_event_has_no_json(value: bytes) -> None:
    for events in (MSGPACK, PACKED):
        with pytest.raises(Reject):
            format_of(events, ["a", "b"]).to_json(value)


def test_packed_records_are_made_of_whole_events_only() -> None:
    form = format_of(PACKED, ["a", "b"])
    assert form.of_json(b'{"b":2.5,"t":7.0,"a":1,"more":"x"}') == PACKED_GOOD
    assert json.loads(form.to_json(PACKED_GOOD)) == {"a": 1.0, "b": 2.5, "t": 7}
    for event, why in (
        (b'{"a":1,"t":3}', "missing required field `b`"),
        (b'{"a":1,"b":1e39,"t":3}', "field 'b' overflows float32"),
        (b'{"a":1,"b":2,"t":3.5}', "field 't': expected a whole number in packed records"),
        (b"[]", "Expected `object`, got `array`"),
    ):
        with pytest.raises(Reject, match=why):
            form.of_json(event)


# -- hostile bytes ---------------------------------------------------------------------------------


def broken(rng: random.Random, good: bytes) -> bytes:
    """Return random bytes, or a good value with some bytes changed, cut or added."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(600))
    value = bytearray(good)
    for _ in range(rng.randrange(1, 6)):
        value[rng.randrange(len(value))] = rng.randrange(256)
    if rng.random() < 0.5:
        tail = bytes([rng.choice((0x91, 0x81, 0xFF, 0x00))]) * rng.randrange(1500)
        value = value[: rng.randrange(len(value))] + tail
    return bytes(value)


FUZZED = {
    "msgpack": (MSGPACK, (NUMBERS, RICH, LONG)),
    "packed": (PACKED, (NUMBERS,)),
    "avro": (AVRO, (NUMBERS, RICH, LONG)),
}


@pytest.mark.parametrize("name", FUZZED)
def test_hostile_bytes_cost_their_own_record_and_nothing_else(name: str) -> None:
    if name == "avro" and not HAS_AVRO:
        pytest.skip("needs fastavro")
    events, specs = FUZZED[name]
    form = format_of(events, ["a", "b"])
    good = form.of_json(
        b'{"a":1,"b":2.5,"t":7,"in":{"c":1,"on":true},"kind":"x","s":"a","v":1,"other":["x","y"]}'
    )
    decoders = [Decoder(events, spec) for spec in specs]
    wanted = [decoder.decode([good], [0]).x.tobytes() for decoder in decoders]
    rng, rejected = random.Random(5), 0
    for _ in range(10_000 // len(decoders)):
        value = broken(rng, good)
        for decoder, x in zip(decoders, wanted, strict=True):
            got = decoder.decode([good, value, good], [0, 0, 0])
            assert set(got.rejects) <= {1}
            assert got.x[0].tobytes() == got.x[2].tobytes() == x
            rejected += 1 in got.rejects
        try:
            form.to_json(value)
        except Reject as reject:
            assert str(reject)  # noqa: PT017
    assert rejected > 1000


class Native(list[bytes]):
    """Values as the worker's native module holds them; it reads JSON alone."""

    def read_numbers(self, names: tuple[bytes, ...], table: Any) -> list[int]:
        raise AssertionError("asked to read another format than JSON")

    def pick(self, rows: Sequence[int]) -> list[bytes | None]:
        return [self[row] for row in rows]


def test_the_native_module_is_not_asked_for_other_formats_than_json() -> None:
    for events, value in ((MSGPACK, GOOD), (PACKED, PACKED_GOOD)):
        got = Decoder(events, NUMBERS).decode(Native([value, value]), [0, 0])
        assert got.x.tolist() == [[1, 2.5]] * 2
    with pytest.raises(AssertionError):
        Decoder(BASE, NUMBERS).decode(Native([b"{}"]), [0])
