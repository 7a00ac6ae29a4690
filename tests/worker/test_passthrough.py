"""Members of the event in its prediction: repeated as they are, and checked by the oracle."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_worker import Serving
from memory_log import MemoryLog, Rec, running
from tiny_bundle import make_tiny_bundle
from verify_case import Case, a_log, make_case, only

from keyfold.export.formats import JSON, format_for
from keyfold.worker.config import SettingsError, read_config
from keyfold.worker.model import Model
from keyfold.worker.passthrough import Passthrough
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.repeated import Repeated, event_digest, event_text
from local.services import Valkey

PATHS = ("site", "meta.line", "a.b.c")


def members(value: bytes, paths: tuple[str, ...] = PATHS) -> Any:
    """Return what a prediction would repeat."""
    (payload,) = Passthrough(paths, JSON).added([b'{"id":1}'], [value])
    return orjson.loads(payload)["event"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"site": "é", "meta": {"line": [1, {"x": None}]}}, ["é", [1, {"x": None}], None]),
        ({"meta.line": 7, "meta": {"line": 8}, "a": {"b": {"c": True}}}, [None, 7, True]),
        ({"site": None, "meta": 3, "a": {"b": [1]}}, [None, None, None]),
        ({"site": 1e300, "a": {"b.c": 5}}, [1e300, None, None]),
        ({}, [None, None, None]),
    ],
)
def test_members_are_copied_as_they_are_and_null_where_there_are_none(
    event: dict[str, Any], expected: list[Any]
) -> None:
    assert members(json.dumps(event).encode()) == dict(zip(PATHS, expected, strict=True))


def test_a_record_with_bytes_that_are_no_text_repeats_nothing_and_stays_json() -> None:
    assert members(b'{"site":"x","other":"\xff"}') is None


def sized(bytes_: int) -> bytes:
    """Return an event whose member "event" would take so many bytes."""
    return b'{"site":"%s","more":"%s"}' % (b"x" * (bytes_ - len('{"site":""}')), b"y" * 99)


NOT_REPEATED = {
    "one byte more": sized(64 * 1024 + 1),
    "beyond every number": b'{"site":[1,-1e999]}',
    "no UTF-8": b'{"site":"\xff"}',
    "no UTF-8 in a member's name": b'{"site":1,"\xff":2}',
    "no number": b'{"site":NaN}',
    "no object": b"[1]",
}


@pytest.mark.parametrize("value", NOT_REPEATED.values(), ids=NOT_REPEATED)
def test_what_is_too_large_or_cannot_be_read_is_null_for_the_oracle_too(value: bytes) -> None:
    assert members(value, ("site",)) is None
    assert Repeated(("site",), JSON).digest(value) == event_digest(b"null")


def text(value: bytes, paths: tuple[str, ...] = PATHS) -> str:
    """Return the text of the members that a prediction repeats."""
    (payload,) = Passthrough(paths, JSON).added([b'{"id":1}'], [value])
    return payload.decode().removeprefix('{"id":1,"event":').removesuffix("}")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("1e9", "1e9"),
        ("1.10", "1.10"),
        ("-0.0", "-0.0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('"\\u00e9 \\/ \\" "', '"\\u00e9 \\/ \\" "'),
        ('[ 1.0,\n  {"b" : 2E+3, "a":[ ] } ]', '[1.0,{"b":2E+3,"a":[]}]'),
    ],
)
def test_a_member_is_the_very_text_of_the_event_without_spaces(event: str, expected: str) -> None:
    value = f'{{"site" : {event} , "meta":{{"line": {event}}},"a":{{"b":{{"c":{event}}}}}}}'
    names = f'{{"site":{expected},"meta.line":{expected},"a.b.c":{expected}}}'
    assert text(value.encode()) == names


def test_a_name_may_be_written_with_escapes_or_hold_a_percent_sign() -> None:
    assert text(b'{"s\\u0069te":1.0,"5%d":2.0}', ("site", "5%d")) == '{"site":1.0,"5%d":2.0}'


def test_of_a_name_twice_the_last_one_counts() -> None:
    assert members(b'{"meta":{"line":1},"meta":{"line":2,"line":3}}', ("meta.line",)) == {
        "meta.line": 3
    }
    assert members(b'{"meta":{"line":1},"meta":{}}', ("meta.line",)) == {"meta.line": None}


def test_members_of_64_kib_are_repeated() -> None:
    event = text(sized(64 * 1024), ("site",)).encode()
    assert len(event) == 64 * 1024
    assert Repeated(("site",), JSON).digest(sized(64 * 1024)) == event_digest(event)


def test_where_each_symbol_repeats_them_members_of_1_kib_are_repeated() -> None:
    for size, repeated in ((1024, True), (1025, False)):
        value = sized(size)
        (payload,) = Passthrough(("site",), JSON, often=True).added([b'{"id":1}'], [value])
        assert (orjson.loads(payload)["event"] is not None) is repeated
        often = Repeated(("site",), JSON, often=True)
        assert often.digest(value) == event_digest(event_text(payload))


def test_a_prediction_nested_too_deep_repeats_no_event() -> None:
    assert event_text(b'{"event":' + b"[" * 1000 + b"]" * 1000 + b"}") == b""


def test_the_mark_of_a_gap_stays_the_last_member() -> None:
    payload = b'{"id":"in:0:1:0","bundle":"b","gap":true}'
    (added,) = Passthrough(("site",), JSON).added([payload], [b'{"site":1}'])
    assert added == b'{"id":"in:0:1:0","bundle":"b","event":{"site":1},"gap":true}'


NAMES = st.sampled_from(["site", "meta", "line", "meta.line", "a", "b", "c", "b.c", "a.b"])
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
EVENTS = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda some: st.lists(some) | st.dictionaries(NAMES, some), max_leaves=8),
)


@given(EVENTS, st.sampled_from([None, 1]), st.booleans())
def test_the_oracle_reads_the_same_members(
    event: dict[str, Any], indent: int | None, escaped: bool
) -> None:
    value = json.dumps(event, indent=indent, ensure_ascii=escaped).encode(errors="surrogatepass")
    repeated = Repeated(PATHS, JSON)
    assert event_digest(text(value).encode()) == repeated.digest(value)


def repeating(case: Case) -> Case:
    """Let a case's predictions repeat members, and its verification know it."""
    values = {record.offset: record.value for record in case.log}
    manifest = case.bundle.manifest
    form = format_for(manifest.events, manifest.features)
    passthrough = Passthrough(("site", "time"), form)
    for number, (key, payload) in enumerate(case.served.outputs):
        offset = int(json.loads(payload or b"")["id"].split(":")[2])
        (added,) = passthrough.added([payload or b""], [values[offset]])
        case.served.outputs[number] = (key, added)
    case.passthrough = ("site", "time")
    return case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    bundle = make_tiny_bundle(tmp_path)
    log = [
        dataclasses.replace(record, value=(record.value or b"").replace(b"{", b'{"site": "s", ', 1))
        for record in a_log(bundle)
    ]
    return repeating(make_case(bundle, log))


def test_repeated_members_are_clean(case: Case) -> None:
    assert not case.verify().counts


@pytest.mark.parametrize(
    "event",
    [
        {"site": "t", "time": 10_000},
        {"site": "s", "time": 10_001},
        {"site": "s", "time": 10_000.0},
        {"site": "s"},
        {"site": "s", "time": 10_000, "more": 1},
        {"site": "s", "time": "10000"},
        None,
        "none",
        {},
    ],
)
def test_other_members_than_the_event_s_are_found(case: Case, event: Any) -> None:
    case.change(20, event={"site": "s", "time": 10_000})
    assert not case.verify().counts
    case.change(20, event=event)
    where, expected, _ = only(case.verify(), Fault.WRONG_OUTPUT)
    assert where == "in:2:20"
    assert expected.startswith("event: the record's own members")


def test_a_number_that_was_written_anew_is_found(case: Case) -> None:
    number = case.number(20)
    key, payload = case.served.outputs[number]
    anew = (payload or b"").replace(b'"time":10000}', b'"time":1e4}')
    assert anew != payload
    case.served.outputs[number] = (key, anew)
    only(case.verify(), Fault.WRONG_OUTPUT)


def test_a_prediction_that_repeats_nothing_is_found(case: Case) -> None:
    number = case.number(20)
    key, payload = case.served.outputs[number]
    rest = {name: value for name, value in orjson.loads(payload or b"").items() if name != "event"}
    case.served.outputs[number] = (key, orjson.dumps(rest))
    only(case.verify(), Fault.WRONG_OUTPUT)


def test_members_that_were_not_asked_for_are_found(case: Case) -> None:
    case.passthrough = ()
    assert only(case.verify(), Fault.WRONG_OUTPUT, 39)[2].startswith("event at")


@pytest.mark.parametrize("names", ['["a", "a"]', '["a", ""]'])
def test_names_that_say_nothing_are_refused(tmp_path: Path, names: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbrokers = "h:1"\ninput = "i"\noutput = "o"\n'
        f'[worker]\nbundle = "b"\npassthrough = {names}\n',
        encoding="utf-8",
    )
    with pytest.raises(SettingsError, match="passthrough: expected distinct names of members"):
        read_config(file)


def test_a_large_member_ends_no_worker(serving: Serving) -> None:
    base = b'{"time":1700000000000,"a":1.0,"b":2.0,"note":%s}'
    serving.send([(b"k%d" % (i % 8), base % b'"x"') for i in range(50)])
    serving.send([(b"big", base % (b"[" + b"1e9," * 120_000 + b"1]"))])
    serving.send([(b"k%d" % (i % 8), base % b'"x"') for i in range(50)])
    with serving.running(worker__passthrough='["note"]') as worker:
        serving.wait_saved([worker])
    found = [orjson.loads(m.value())["event"] for m in serving.records(serving.output)]
    assert found.count(None) == 1
    assert found.count({"note": "x"}) == 100
    serving.verify_clean(101, passthrough=("note",))


def test_a_worker_s_predictions_repeat_the_members(
    tmp_path: Path, valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    async def main() -> None:
        topic = unique_name("in")
        log = MemoryLog(topic, {topic: 1, "out": 1, "dead": 1})
        values = [{"a": 1, "b": i, "time": i, "site": f"s{i}"} for i in range(40)]
        for offset, value in enumerate(values):
            text = b"{" if offset == 7 else json.dumps(value).encode()
            log.append(Rec(offset, b"k%d" % (offset % 3), text))
        model = Model(make_tiny_bundle(tmp_path))
        options: dict[str, Any] = {"passthrough": ("site", "none"), "max_events": 11}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(40)
            for _, _, prediction in worker.emitter.sent:
                offset = int(prediction["id"].split(":")[2])
                assert prediction["event"] == {"site": f"s{offset}", "none": None}
            assert len(worker.emitter.sent) == 39

    asyncio.run(main())
