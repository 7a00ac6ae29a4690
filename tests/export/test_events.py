"""The wire formats: record bytes -> event, output -> prediction bytes.

Predictions are held by golden bytes: consumers parse them, and a replay must write the same ones.
Malformed records of every sort become rejects with a reason, one by one, and never anything worse.
Needs no service.
"""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyfold.export import predictions
from keyfold.export.errors import SpecError
from keyfold.export.events import (
    MAX_TIME_MS,
    Caused,
    Decoder,
    EventSpec,
    OutputSpec,
    PredictionEncoder,
    key_fragment,
)
from keyfold.export.features import FeatureSpec

FEATURES = FeatureSpec.numbers("a", "b")
TIMED = Decoder(EventSpec(time_field="t"), FEATURES)
GOOD = b'{"a":1,"b":2.5,"t":7}'


# -- records in ------------------------------------------------------------------------------------


def test_event_is_its_fields_in_the_spec_s_order_and_its_own_time() -> None:
    decoded = TIMED.decode([b'{"t":1700000000123,"b":-2.5,"other":{"z":[1]},"a":4}'], [99])
    np.testing.assert_array_equal(decoded.x, np.array([[4, -2.5]], np.float32))
    assert decoded.times_ms.tolist() == [1700000000123]
    assert decoded.rejects == {}


def test_without_a_time_field_the_record_s_timestamp_is_the_event_time() -> None:
    decoded = Decoder(EventSpec(), FEATURES).decode([b'{"a":1,"b":2}'], [99])
    assert decoded.times_ms.tolist() == [99]


def test_seconds_become_milliseconds() -> None:
    decoder = Decoder(EventSpec(time_field="t", time_unit="s"), FEATURES)
    decoded = decoder.decode([b'{"a":1,"b":2,"t":1700000000.1234}'], [0])
    assert decoded.times_ms.tolist() == [1700000000123]


def test_a_field_may_be_feature_and_time_at_once() -> None:
    decoded = Decoder(EventSpec(time_field="a"), FEATURES).decode([b'{"a":5,"b":2}'], [0])
    assert decoded.x.tolist() == [[5, 2]]
    assert decoded.times_ms.tolist() == [5]


def test_field_names_need_not_be_identifiers() -> None:
    decoder = Decoder(EventSpec(), FeatureSpec.numbers("c0", "größe", "a b", ""))
    decoded = decoder.decode(['{"c0":1,"größe":2,"a b":3,"":4}'.encode()], [0])
    assert decoded.x.tolist() == [[1, 2, 3, 4]]


def test_of_a_repeated_member_the_last_one_counts() -> None:
    decoded = TIMED.decode([b'{"a":1,"b":2,"t":3,"a":9}'], [0])
    assert decoded.rejects == {}
    assert decoded.x.tolist() == [[9, 2]]


def test_huge_integer_within_float32_is_a_number() -> None:
    decoded = TIMED.decode([b'{"a":%b,"b":2,"t":3}' % (b"9" * 30)], [0])
    assert decoded.x[0, 0] == np.float32(1e30)


DEEP = b'{"a":1,"b":2,"t":3,"z":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
MALFORMED = {
    "null value": (None, "the record's value is null"),
    "empty": (b"", "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, "not valid JSON"),
    "cut off": (GOOD[:-1], "not valid JSON"),
    "trailing bytes": (GOOD + b" x", "not valid JSON"),
    "NaN literal": (b'{"a":NaN,"b":2,"t":3}', "not valid JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "not valid JSON"),
    "array": (b"[1,2]", "Expected `object`, got `array`"),
    "number": (b"1", "Expected `object`, got `int`"),
    "missing field": (b'{"a":1,"t":3}', "missing required field `b`"),
    "missing time": (b'{"a":1,"b":3}', "missing required field `t`"),
    "boolean": (b'{"a":true,"b":2,"t":3}', "Expected `float`, got `bool` - at `$.a`"),
    "text": (b'{"a":"1","b":2,"t":3}', "Expected `float`, got `str` - at `$.a`"),
    "null field": (b'{"a":null,"b":2,"t":3}', "Expected `float`, got `null` - at `$.a`"),
    "nested": (b'{"a":[1],"b":2,"t":3}', "Expected `float`, got `array` - at `$.a`"),
    "float64 overflow": (b'{"a":1e999,"b":2,"t":3}', "out of range - at `$.a`"),
    "huge integer": (b'{"a":%b,"b":2,"t":3}' % (b"9" * 400), "out of range - at `$.a`"),
    "float32 overflow": (b'{"a":1,"b":1e39,"t":3}', "field 'b' overflows float32"),
    "time too late": (b'{"a":1,"b":2,"t":8.65e15}', "the event time is out of range"),
    "time too early": (b'{"a":1,"b":2,"t":-8.65e15}', "the event time is out of range"),
    "too deep": (DEEP, "nested"),
    "too deep and cut off": (DEEP[:40_000], "nested"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_record_is_a_reject_and_its_neighbours_are_events(case: str) -> None:
    value, reason = MALFORMED[case]
    decoded = TIMED.decode([GOOD, value, GOOD], [0, 0, 0])
    assert list(decoded.rejects) == [1]
    assert reason in decoded.rejects[1]
    assert decoded.x[[0, 2]].tolist() == [[1, 2.5]] * 2
    assert np.isfinite(decoded.x).all()


def test_verdict_on_a_nested_record_does_not_depend_on_the_caller_s_stack() -> None:
    # Python's recursion limit counts the caller's frames: worker and verification would disagree.
    def verdicts(frames: int) -> list[str | None]:
        if frames:
            return verdicts(frames - 1)
        values = [GOOD[:-1] + b',"z":' + b"[" * n + b"]" * n + b"}" for n in range(50, 1000, 50)]
        return [TIMED.decode([value], [0]).rejects.get(0) for value in values]

    assert verdicts(0) == verdicts(300)


def test_reason_of_a_reject_never_quotes_the_payload() -> None:
    secret = b'{"a":"hunter2","b":"hunter2","t":"hunter2"}'
    for value in (secret, secret[:-1], b"hunter2", b'{"hunter2":1}'):
        assert "hunter2" not in TIMED.decode([value], [0]).rejects[0]


def test_time_at_the_very_limit_is_valid() -> None:
    value = b'{"a":1,"b":2,"t":%d}' % int(MAX_TIME_MS)
    decoded = TIMED.decode([value], [0])
    assert decoded.rejects == {}
    assert decoded.times_ms.tolist() == [int(MAX_TIME_MS)]


def test_time_that_overflows_on_conversion_is_a_reject_without_a_warning() -> None:
    decoder = Decoder(EventSpec(time_field="t", time_unit="s"), FEATURES)
    decoded = decoder.decode([b'{"a":1,"b":2,"t":1e308}'], [0])
    assert decoded.rejects == {0: "the event time is out of range"}


@given(st.lists(st.one_of(st.none(), st.binary(max_size=40), st.just(GOOD)), max_size=12))
def test_any_bytes_decode_the_same_alone_and_together(values: list[bytes | None]) -> None:
    together = TIMED.decode(values, [5] * len(values))
    assert together.x.shape == (len(values), 2)
    for row, value in enumerate(values):
        alone = TIMED.decode([value], [5])
        assert alone.rejects.get(0) == together.rejects.get(row)
        np.testing.assert_array_equal(alone.x[0], together.x[row])
        if row not in together.rejects:
            assert alone.times_ms[0] == together.times_ms[row]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_float32_survives_the_wire(number: float) -> None:
    value = json.dumps({"a": number, "b": 0, "t": 0}).encode()
    assert TIMED.decode([value], [0]).x[0, 0] == np.float32(number)


# -- keys ------------------------------------------------------------------------------------------


@given(st.binary(max_size=20))
def test_key_is_shown_as_text_or_as_base64_and_reads_back(key: bytes) -> None:
    member = json.loads(b"{" + key_fragment(key) + b"}")
    try:
        text = key.decode()
    except UnicodeDecodeError:
        assert base64.b64decode(member["key_b64"]) == key
    else:
        assert member == {"key": text}


def test_empty_key_is_shown_as_empty_text() -> None:
    assert key_fragment(b"") == b'"key":""'


# -- predictions out -------------------------------------------------------------------------------


def test_prediction_of_a_regression_is_held_byte_for_byte() -> None:
    encoder = PredictionEncoder(OutputSpec("regression", ("value",)), "0123abcd", "events")
    caused = Caused(
        [41, 1 << 40],
        [b"engine 7", b"\xff"],
        [1_700_000_000_123, -5],
        [1, 2],
    )
    assert encoder.encode(3, caused, np.array([[0.1], [-2.5e-7]], np.float32)) == [
        b'{"id":"events:3:41:0","about":"events:3:41","key":"engine 7","time":1700000000123,'
        b'"output":{"value":0.1},"steps":1,"cold":true,"bundle":"0123abcd"}',
        b'{"id":"events:3:1099511627776:0","about":"events:3:1099511627776","key_b64":"/w==",'
        b'"time":-5,"output":{"value":-2.5e-7},"steps":2,"cold":false,"bundle":"0123abcd"}',
    ]


def test_prediction_of_a_classification_is_held_byte_for_byte() -> None:
    encoder = PredictionEncoder(OutputSpec("classification", ("calm", 'o"dd %')), "b", "t")
    caused = Caused([0], [b""], [0], [1])
    payload = encoder.encode(0, caused, np.array([[0.25, 0.75]], np.float32))
    assert payload == [
        b'{"id":"t:0:0:0","about":"t:0:0","key":"","time":0,'
        rb'"output":{"label":"o\"dd %","probabilities":[0.25,0.75]},'
        b'"steps":1,"cold":true,"bundle":"b"}'
    ]


def test_long_keys_are_not_remembered() -> None:
    """Each of 16,384 could be 64 KiB, and would outlive its slot."""
    predictions._remembered.cache_clear()
    encoder = PredictionEncoder(OutputSpec("regression", ("value",)), "b", "t")
    keys = [b"short", b"x" * 257, "é".encode() * 300]
    encoder.encode(0, Caused([0] * 3, keys, [0] * 3, [1] * 3), np.zeros((3, 1), np.float32))
    assert predictions._remembered.cache_info().currsize == 1


def test_predictions_of_one_cause_about_other_events_are_held_byte_for_byte() -> None:
    encoder = PredictionEncoder(OutputSpec("regression", ("value",)), "b", "t")
    caused = Caused(
        [9, 9], [b"k"] * 2, [5, 6], [1, 2], [True, False],
        abouts=[7, 8], indexes=[0, 1], lasts=[False, True],
    )  # fmt: skip
    assert encoder.encode(0, caused, np.array([[0.5], [1.5]], np.float32)) == [
        b'{"id":"t:0:9:0","about":"t:0:7","key":"k","time":5,"output":{"value":0.5},'
        b'"steps":1,"cold":true,"bundle":"b","gap":true}',
        b'{"id":"t:0:9:1","about":"t:0:8","key":"k","time":6,"output":{"value":1.5},'
        b'"steps":2,"cold":false,"bundle":"b","last":true}',
    ]


def test_outputs_with_percent_signs_in_names_and_keys_stay_as_they_are() -> None:
    encoder = PredictionEncoder(OutputSpec("regression", ("%d", "100 %")), "b", "t")
    caused = Caused([0], [b"%s %%"], [0], [1])
    (payload,) = encoder.encode(0, caused, np.ones((1, 2), np.float32))
    assert json.loads(payload)["output"] == {"%d": 1.0, "100 %": 1.0}
    assert json.loads(payload)["key"] == "%s %%"


@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), max_size=5
    )
)
def test_every_output_reads_back_as_the_same_float32(rows: list[tuple[float, ...]]) -> None:
    y = np.array(rows, np.float32).reshape(-1, 3)
    regression = PredictionEncoder(OutputSpec("regression", ("p", "q", "r")), "b", "t")
    classes = PredictionEncoder(OutputSpec("classification", ("p", "q", "r")), "b", "t")
    for row, text, label in zip(y, regression.outputs(y), classes.outputs(y), strict=True):
        np.testing.assert_array_equal(np.array([*json.loads(text).values()], np.float32), row)
        assert json.loads(label)["label"] == "pqr"[int(row.argmax())]
        back = np.array(json.loads(label)["probabilities"], np.float32)
        np.testing.assert_array_equal(back, row)


def test_non_contiguous_outputs_are_written_in_order() -> None:
    y = np.arange(12, dtype=np.float32).reshape(4, 3).T
    encoder = PredictionEncoder(OutputSpec("regression", ("a", "b", "c", "d")), "b", "t")
    assert json.loads(encoder.outputs(y)[1]) == {"a": 1.0, "b": 4.0, "c": 7.0, "d": 10.0}


# -- specs -----------------------------------------------------------------------------------------


def test_specs_survive_their_manifest_forms() -> None:
    events = EventSpec("k", "t", "s", "reset")
    assert EventSpec.from_json(events.to_json()) == events
    outputs = OutputSpec("classification", ("x", "y"))
    assert OutputSpec.from_json(outputs.to_json()) == outputs


def test_specs_that_contradict_themselves_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"events\.codec: expected one of json, .*got 'xml'"):
        EventSpec.from_json({**EventSpec().to_json(), "codec": "xml"})
    with pytest.raises(SpecError, match=r"events\.time_unit: expected 'ms', .*got 'h'"):
        EventSpec(time_unit="h")
    with pytest.raises(SpecError, match=r"events\.tombstone: expected 'reject' or 'reset'"):
        EventSpec(tombstone="drop")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"outputs\.kind: expected 'regression'"):
        OutputSpec("ranking", ("x",))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"at least 2 distinct names for classification"):
        OutputSpec("classification", ("x",))
    with pytest.raises(SpecError, match=r"at least 1 distinct names for regression"):
        OutputSpec("regression", ("x", "x"))


def test_a_limit_of_silence_is_written_only_where_there_is_one() -> None:
    events = EventSpec(reset_after_ms=1500)
    assert events.to_json()["reset_after_ms"] == 1500
    assert EventSpec.from_json(events.to_json()) == events
    assert "reset_after_ms" not in EventSpec().to_json()
    assert EventSpec.from_json(EventSpec().to_json()).reset_after_ms is None


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "1000"])
def test_a_limit_of_silence_is_a_positive_number_of_whole_ms(wrong: object) -> None:
    with pytest.raises(SpecError, match=r"events\.reset_after_ms: expected"):
        EventSpec.from_json({**EventSpec().to_json(), "reset_after_ms": wrong})
