"""Messy events: nested, nullable, boolean, categories, one sensor per event, times as text.

Every record is an event or a reject with a reason that names the field and quotes nothing; nothing
that a record can hold raises. Needs no service.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyfold.export.columns import category_text
from keyfold.export.errors import Reject, SpecError
from keyfold.export.events import MAX_TIME_MS, Decoded, Decoder, EventSpec
from keyfold.export.features import FeatureSpec, Field, LongForm

NAN = float("nan")
MESSY = FeatureSpec(
    (
        Field("readings.temp", missing="last", fill=5.0),
        Field("on", "boolean", missing="mask", fill=0.25),
        Field("mode", "category", ("idle", "3", "true"), missing="mask"),
        Field("p"),
    ),
    since_last=True,
)


def decode(features: FeatureSpec, *events: object, spec: EventSpec | None = None) -> Decoded:
    decoder = Decoder(spec or EventSpec(), features)
    values = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return decoder.decode(values, [0] * len(values))


def column(field: Field, *values: object) -> tuple[list[float], dict[int, str]]:
    """Decode events that hold one field, each with one of the values."""
    decoded = decode(FeatureSpec((field, Field("z"))), *({field.name: v, "z": 1} for v in values))
    return decoded.x[:, 0].tolist(), decoded.rejects


# -- the record's own timestamp --------------------------------------------------------------------

UNTIMED: dict[str, tuple[EventSpec, FeatureSpec, bytes]] = {
    "numbers": (EventSpec(), FeatureSpec.numbers("a"), b'{"a":1}'),
    "messy": (EventSpec(), FeatureSpec((Field("a", missing="mask"),)), b'{"a":1}'),
    "packed": (
        EventSpec(format="packed"), FeatureSpec.numbers("a"), np.float32(1).tobytes()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTIMED)
def test_a_record_timestamp_is_an_event_time_and_so_is_its_range(name: str) -> None:
    events, features, value = UNTIMED[name]
    limit = int(MAX_TIME_MS)
    stamps = [0, -1, limit, limit + 1, -limit, -limit - 1, 2**63 - 1, -(2**63), 5]
    decoded = Decoder(events, features).decode([value] * len(stamps), stamps)
    reason = "the record's timestamp, its event time, is out of range"
    assert decoded.rejects == dict.fromkeys([3, 5, 6, 7], reason)
    assert decoded.times_ms.tolist() == [0, -1, limit, 0, -limit, 0, 0, 0, 5]


@pytest.mark.parametrize("name", UNTIMED)
def test_a_record_that_is_no_event_says_so_before_its_timestamp_does(name: str) -> None:
    events, features, _ = UNTIMED[name]
    rejects = Decoder(events, features).decode([b"{", None], [2**63 - 1, 2**63 - 1]).rejects
    assert [row for row, reason in rejects.items() if "timestamp" in reason] == []


def test_a_record_timestamp_may_be_anything_where_events_have_a_time() -> None:
    for features in (FeatureSpec.numbers("a"), FeatureSpec((Field("a", missing="mask"),))):
        decoded = Decoder(EventSpec(None, "t"), features).decode([b'{"a":1,"t":7}'], [2**63 - 1])
        assert (decoded.rejects, decoded.times_ms.tolist()) == ({}, [7])


# -- missing values --------------------------------------------------------------------------------


def test_columns_stand_in_the_order_of_the_spec() -> None:
    event = {"readings": {"temp": 1.5}, "on": True, "mode": "3", "p": 7}
    decoded = decode(MESSY, event)
    assert dict(zip(MESSY.columns, decoded.x[0].tolist(), strict=True)) == {
        "readings.temp": 1.5,
        "readings.temp?": 0,
        "on": 1,
        "on?": 0,
        "mode=idle": 0,
        "mode=3": 1,
        "mode=true": 0,
        "mode?": 0,
        "p": 7,
        "seconds since last": 0,
    }


@pytest.mark.parametrize("event", [{"p": 7}, {"p": 7, "readings": None, "on": None, "mode": None}])
def test_absent_and_null_are_missing_alike(event: Mapping[str, Any]) -> None:
    decoded = decode(MESSY, event)
    assert decoded.rejects == {}
    np.testing.assert_array_equal(decoded.x[0], [NAN, 1, 0.25, 1, 0, 0, 0, 1, 7, 0])


@pytest.mark.parametrize("parent", [7, "text", True, [1, {"temp": 2}], {}, {"other": 1}])
def test_a_parent_that_holds_no_such_member_is_a_missing_value(parent: object) -> None:
    decoded = decode(MESSY, {"p": 7, "readings": parent})
    assert decoded.rejects == {}
    np.testing.assert_array_equal(decoded.x[0, :2], [NAN, 1])


def test_missing_category_that_repeats_the_last_one_is_left_to_the_front() -> None:
    features = FeatureSpec((Field("mode", "category", ("a", "b"), missing="last"),))
    np.testing.assert_array_equal(decode(features, {"mode": "b"}, {}).x, [[0, 1, 0], [NAN, NAN, 1]])


def test_required_field_that_is_missing_is_a_reject_by_name() -> None:
    for field in (Field("a.b"), Field("a.b", "boolean"), Field("a.b", "category", ("x",))):
        decoded = decode(FeatureSpec((field,)), {"a": {"b": None}}, {"a": {}}, {})
        assert decoded.rejects == dict.fromkeys(range(3), "field 'a.b' is missing")


# -- kinds -----------------------------------------------------------------------------------------


def test_booleans_are_words_and_0_and_1_and_nothing_else() -> None:
    values, rejects = column(Field("a", "boolean"), True, False, 1, 0, 1.0, "True", "FALSE")
    assert (values, rejects) == ([1, 0, 1, 0, 1, 1, 0], {})
    _, rejects = column(Field("a", "boolean"), 2, 0.5, "1", "yes", "", "x" * 100_000)
    expected = "field 'a': expected true, false, 1 or 0, got another"
    assert rejects == {row: f"{expected} {'number' if row < 2 else 'text'}" for row in range(6)}


def test_numbers_as_text_are_rejects_because_text_is_not_guessed() -> None:
    for field in (Field("a", missing="mask"), Field("a.b", missing="last")):
        decoded = decode(FeatureSpec((field,)), {"a": "12.5"}, {"a": {"b": "12.5"}}, {"a": True})
        rejected = set(decoded.rejects)
        assert rejected == ({0, 1, 2} if field.name == "a" else {1})
        assert all("12.5" not in reason and "`$.a" in reason for reason in decoded.rejects.values())


def test_a_category_is_compared_by_its_text() -> None:
    field = Field("a", "category", ("3", "true", "2.5", ""))
    features = FeatureSpec((field,))
    events = [{"a": v} for v in (3, 3.0, "3", True, 2.5, "", "other", 10**30, "x" * 100_000, -0.0)]
    decoded = decode(features, *events)
    assert decoded.rejects == {}
    hits = [int(row.argmax()) if row.any() else -1 for row in decoded.x]
    assert hits == [0, 0, 0, 1, 2, 3, -1, -1, -1, -1]


def test_text_of_large_integers_tells_them_apart() -> None:
    assert category_text(2**64 - 1) == "18446744073709551615"
    assert category_text(10**400) == "1" + "0" * 400
    assert category_text(10**4000) == "a huge number"
    assert category_text(2.0**60) == "1.152921504606847e+18"


@pytest.mark.parametrize("field", [Field("a"), Field("a", missing="mask"), Field("a", "boolean")])
def test_object_where_a_value_is_expected_is_a_reject(field: Field) -> None:
    _, rejects = column(field, {"b": 1}, [1])
    assert list(rejects) == [0, 1]
    assert "`$.a`" in rejects[0]


def test_a_member_named_with_the_dot_counts_before_a_nested_one() -> None:
    features = FeatureSpec((Field("a.b", missing="mask"), Field("a", missing="mask")))
    decoded = decode(
        features,
        {"a.b": 1, "a": {"b": 2}},
        {"a.b": 1, "a": 3},
        {"a.b": None, "a": 3},
        {"a": 3},
        {"a.b": 1},
    )
    assert decoded.rejects == {0: "field 'a': expected a number, got an object or array"}
    assert decoded.x[1:].tolist() == [[1, 0, 3, 0], [0, 1, 3, 0], [0, 1, 3, 0], [1, 0, 0, 1]]


def test_deeper_paths_are_found() -> None:
    features = FeatureSpec((Field("a.b.c"), Field("a.b.d"), Field("a.e")))
    decoded = decode(features, {"a": {"b": {"c": 1, "d": 2, "z": [9]}, "e": 3}})
    assert decoded.x.tolist() == [[1, 2, 3]]


def test_number_beyond_float32_is_a_reject_by_name() -> None:
    decoded = decode(FeatureSpec((Field("a", missing="mask"),)), {"a": 1e39}, {"a": -1e39})
    assert decoded.rejects == dict.fromkeys((0, 1), "field 'a' overflows float32")


# -- one sensor per event --------------------------------------------------------------------------

LONG = FeatureSpec(
    (
        Field("temp", missing="last"),
        Field("5", missing="mask", fill=2.0),
        Field("door", "boolean", missing="last"),
    ),
    long=LongForm("meta.sensor", "value"),
)


def test_an_event_of_the_long_form_fills_the_field_of_its_sensor() -> None:
    decoded = decode(
        LONG,
        {"meta": {"sensor": "temp"}, "value": 20},
        {"meta.sensor": 5, "value": 3.5},
        {"meta": {"sensor": "door"}, "value": "true"},
        {"meta": {"sensor": "temp"}, "value": None},
    )
    assert decoded.rejects == {}
    np.testing.assert_array_equal(
        decoded.x,
        [
            [20, 0, 2, 1, NAN, 1],
            [NAN, 1, 3.5, 0, NAN, 1],
            [NAN, 1, 2, 1, 1, 0],
            [NAN, 1, 2, 1, NAN, 1],
        ],
    )


def test_what_is_wrong_in_the_long_form_is_named() -> None:
    decoded = decode(
        LONG,
        {"meta": {"sensor": "hum"}, "value": 1},
        {"value": 1},
        {"meta": {"sensor": "temp"}, "value": "1"},
        {"meta": {"sensor": "temp"}, "value": True},
        {"meta": {"sensor": "temp"}, "value": 10**320},
        {"meta": {"sensor": "door"}, "value": 7},
    )
    assert decoded.rejects == {
        0: "field 'meta.sensor': expected one of temp, 5, door, got another",
        1: "field 'meta.sensor' is missing",
        2: "field 'value': expected a number, got a text",
        3: "field 'value': expected a number, got a boolean",
        4: "field 'value' overflows float32",
        5: "field 'value': expected true, false, 1 or 0, got another number",
    }


def test_the_long_form_has_no_required_fields() -> None:
    with pytest.raises(SpecError, match=r"expected missing 'last' or 'mask' .* 'error' for temp"):
        FeatureSpec((Field("temp"),), long=LongForm("sensor", "value"))


# -- observed targets ------------------------------------------------------------------------------


def test_targets_are_observed_as_they_are_whether_or_not_they_are_features() -> None:
    features = FeatureSpec((Field("a", missing="last"), Field("b", missing="mask", fill=9)))
    decoder = Decoder(EventSpec(), features, ("z", "b", "a"))
    observed = decoder.decode([b'{"a":1,"b":2,"z":3}', b"{}", b"x"], [0] * 3).observed
    np.testing.assert_array_equal(observed, [[3, 2, 1], [NAN] * 3, [NAN] * 3])
    assert decode(features, {"a": 1}).observed is None


def test_targets_of_plain_numbers_are_columns_of_x() -> None:
    decoder = Decoder(EventSpec(), FeatureSpec.numbers("a", "b"), ("b",))
    assert decoder.decode([b'{"a":1,"b":2}'], [0]).observed.tolist() == [[2]]  # type: ignore[union-attr]


def test_a_category_cannot_be_forecast() -> None:
    with pytest.raises(SpecError, match="expected numbers or booleans, got category 'a'"):
        Decoder(EventSpec(), FeatureSpec((Field("a", "category", ("x",)),)), ("a",))


# -- times -----------------------------------------------------------------------------------------


def time_of(unit: str, value: object, zone: str = "UTC") -> int | str:
    spec = EventSpec(time_field="t", time_unit=unit, time_zone=zone)
    decoded = decode(FeatureSpec.numbers("a"), {"a": 1, "t": value}, spec=spec)
    return decoded.rejects.get(0, int(decoded.times_ms[0]))


@pytest.mark.parametrize(
    ("unit", "value", "zone", "expected"),
    [
        ("us", 1_700_000_000_123_456, "UTC", 1_700_000_000_123),
        ("ns", 1_700_000_000_123_456_789, "UTC", 1_700_000_000_123),
        ("s", 1_700_000_000.1234, "UTC", 1_700_000_000_123),
        ("iso", "2024-01-01T00:00:00Z", "Europe/Berlin", 1_704_067_200_000),
        ("iso", "2024-01-01T00:00:00+02:00", "UTC", 1_704_060_000_000),
        ("iso", "2024-01-01 01:00:00", "Europe/Berlin", 1_704_067_200_000),
        ("iso", "2024-07-01", "Europe/Berlin", 1_719_784_800_000),
        ("iso", "2024-01-01T00:00:00.123456789", "UTC", 1_704_067_200_123),
        ("iso", "1969-12-31T23:59:59.999", "UTC", -1),
        # The hour that the clocks repeat: the first one.
        ("iso", "2024-10-27T02:30:00", "Europe/Berlin", 1_729_989_000_000),
        ("%d.%m.%Y %H:%M", "01.01.2024 01:00", "Europe/Berlin", 1_704_067_200_000),
        ("%Y%m%dT%H%M%S%z", "20240101T000000+0000", "Europe/Berlin", 1_704_067_200_000),
    ],
)
def test_time_of_every_form_becomes_utc_ms(
    unit: str, value: object, zone: str, expected: int
) -> None:
    assert time_of(unit, value, zone) == expected


@pytest.mark.parametrize(
    ("unit", "value", "reason"),
    [
        ("iso", "yesterday", "field 't': expected a time in ISO 8601, got another text"),
        ("iso", 5, "field 't': expected a time in ISO 8601, got no text"),
        ("iso", None, "field 't': expected an event time, got none"),
        ("%Y", "x", "field 't': expected a time such as the pattern '%Y' says, got another text"),
        ("ns", 1e25, "the event time is out of range"),
        ("ms", None, "the event does not match the feature spec: Expected `float`, got `null`"),
    ],
)
def test_time_that_is_none_is_a_reject_by_field(unit: str, value: object, reason: str) -> None:
    assert str(time_of(unit, value)).startswith(reason)


@pytest.mark.parametrize("wrong", [{"time_unit": "%Q"}, {"time_unit": "%"}, {"time_unit": "days"}])
def test_pattern_that_can_read_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(
        SpecError, match=r"events\.time_unit: expected 'ms', 's', 'us', 'ns', 'iso'"
    ):
        EventSpec(time_field="t", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "/etc/passwd"])
def test_unknown_zone_is_refused_with_the_way_out(zone: str) -> None:
    with pytest.raises(SpecError, match=r"events\.time_zone: expected a zone such as .*tzdata"):
        EventSpec(time_zone=zone)


# -- the decoder hook ------------------------------------------------------------------------------


def hook(value: bytes) -> dict[str, Any]:
    """Read "a;b" as two numbers, and be hostile where asked."""
    if value == b"list":
        return [1]  # type: ignore[return-value]
    if value == b"object":
        return {"a": object()}
    if value == b"reject":
        raise Reject("the checksum is wrong")
    if value == b"key":
        raise KeyError("secret")
    first, second = value.split(b";")
    return {"a": np.float32(first), "b": float(second), "n": {"deep": [1]}}


HOOKED = EventSpec(decoder="hook_for_tests:hook")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("hook_for_tests")
    module.hook = hook  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hook_for_tests", module)


@pytest.mark.usefixtures("hooked")
def test_hook_makes_events_of_bytes_that_are_no_json() -> None:
    values = [b"1;2", b"0.5;nan", b"x;secret", b"list", b"object", b"reject", b"key", None]
    decoded = Decoder(HOOKED, FeatureSpec.numbers("a", "b")).decode(values, [0] * len(values))
    assert decoded.x[0].tolist() == [1, 2]
    assert decoded.rejects == {
        1: "field 'b' is missing",
        2: "the decoder hook refused it (ValueError)",
        3: "the decoder hook returned list, expected a mapping",
        4: "the decoder hook returned what JSON cannot hold",
        5: "the checksum is wrong",
        6: "the decoder hook refused it (KeyError)",
        7: "the record's value is null",
    }


def test_hook_whose_module_does_not_even_import_is_refused_by_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_hook.py").write_text("def decode(value:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=r"events\.decoder: expected an importable .*never closed"):
        Decoder(EventSpec(decoder="broken_hook:decode"), FeatureSpec.numbers("a"))


@pytest.mark.parametrize("name", ["nowhere:fn", "json:nothing", "json:__doc__"])
def test_hook_that_cannot_be_loaded_is_refused_by_setting(name: str) -> None:
    with pytest.raises(SpecError, match=r"events\.decoder: expected an importable 'package"):
        Decoder(EventSpec(decoder=name), FeatureSpec.numbers("a"))
    with pytest.raises(SpecError, match=r"events\.decoder: expected 'package\.module:function'"):
        EventSpec(decoder="json")


# -- hostile input ---------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**320)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.sampled_from(
        ["true", "temp", "12.5", "2024-01-01", "9999-12-31T23:59", "0001-01-01", "3"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["temp", "readings", "b", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
EVENTS = st.dictionaries(
    st.sampled_from(["readings", "readings.temp", "on", "mode", "p", "t", "sensor", "value", "a"]),
    JSON,
)
RECORDS = st.one_of(
    st.none(),
    st.binary(max_size=30),
    EVENTS.map(lambda event: json.dumps(event, allow_nan=True).encode()),
    st.builds(
        lambda event, more: json.dumps({**event, "p": 1, "on": True, "t": 7, **more}).encode(),
        EVENTS,
        st.sampled_from([{}, {"t": "2024-01-01"}, {"readings": {"temp": 1}}]),
    ),
)
SPECS = {
    "messy": (EventSpec(time_field="t"), MESSY, ("p", "x")),
    "iso": (EventSpec(time_field="t", time_unit="iso", time_zone="America/New_York"), MESSY, ()),
    "nested time": (EventSpec(time_field="readings.temp", time_unit="ns"), MESSY, ()),
    "time is a category": (
        EventSpec(time_field="a"),
        FeatureSpec((Field("a", "category", ("1",), missing="mask"), Field("a.b", missing="mask"))),
        (),
    ),
    "long": (
        EventSpec(),
        FeatureSpec(
            (Field("temp", missing="last"), Field("3", "boolean", missing="mask")),
            long=LongForm("sensor", "value"),
        ),
        ("temp",),
    ),
    "long, crossed": (
        EventSpec(time_field="a.x", time_unit="%Y-%m-%d"),
        FeatureSpec((Field("temp", missing="last"),), long=LongForm("a", "a.b")),
        (),
    ),
}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=60, deadline=None)
@given(records=st.lists(RECORDS, max_size=6))
def test_every_record_is_an_event_or_a_reject_alone_and_together(
    name: str, records: list[bytes | None]
) -> None:
    events, features, targets = SPECS[name]
    decoder = Decoder(events, features, targets)
    together = decoder.decode(records, [5] * len(records))
    assert together.x.shape == (len(records), len(features.columns))
    for row, record in enumerate(records):
        alone = decoder.decode([record], [5])
        assert alone.rejects.get(0) == together.rejects.get(row)
        if row in together.rejects:
            continue
        np.testing.assert_array_equal(alone.x[0], together.x[row])
        assert alone.times_ms[0] == together.times_ms[row]
        assert not np.isinf(together.x[row]).any()
        waits = {c for f in features.fields if f.missing == "last" for c in f.value_columns}
        for value, column_name in zip(together.x[row], features.columns, strict=True):
            assert column_name in waits or not np.isnan(value)
