"""A text read within its event: a row of symbols beside other columns, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed_bundle import FEATURES, make_keyed_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Manifest
from keyfold.export.decode import Decoder
from keyfold.export.describe import describe
from keyfold.export.errors import BundleError, Reject, SpecError
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec, Field, LongForm
from keyfold.export.text import END, FIRST, UNKNOWN, Reader, Text

A = FIRST + ord("a")
BESIDE = FeatureSpec(
    (Field("n", missing="mask", fill=2.5), Field("on", "boolean"), Field("c", "category", ("p",))),
    since_last=True,
    text=Text("say.it", "word", ("good", "day", "!"), lower=True, width=4),
)


def row(text: str, **settings: Any) -> list[float]:
    found: list[float] = Reader(Text("t", width=3, **settings)).row(text).tolist()
    return found


def test_a_text_is_filled_up_with_the_end_symbol_and_empty_text_is_it_alone() -> None:
    assert row("a") == [A, END, END]
    assert row("") == [END, END, END]
    assert row("abc") == [A, A + 1, A + 2]


def test_a_longer_text_keeps_its_first_or_its_last_symbols() -> None:
    assert row("abcd") == [A, A + 1, A + 2]
    assert row("abcd", keep="last") == [A + 1, A + 2, A + 3]
    assert row("ab", keep="last") == [A, A + 1, END]
    words: dict[str, Any] = {"tokenizer": "word", "symbols": ("x", "y", ",")}
    assert row("x, y x", **words) == [2, 4, 3]
    assert row("x, y z", keep="last", **words) == [4, 3, UNKNOWN]


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize(
    "text",
    [
        Text("t"),
        Text("t", "char", ("a", "é"), lower=True),
        Text("t", "word", ("a", "é", ".")),
        Text("t", "bpe", merges=((A, A), (A, A + 1), (260 - 2, A))),
    ],
)
@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aAbé .\U0001f600İ", max_size=90), st.integers(2, 12))
def test_the_row_is_an_end_of_all_symbols(text: Text, keep: Any, said: str, width: int) -> None:
    every = Reader(text).read(said)[:-1]
    made = Text("t", text.tokenizer, text.symbols, text.merges, text.lower, width=width, keep=keep)
    got = Reader(made).row(said)
    wanted = every[-width:] if keep == "last" else every[:width]
    assert got.dtype == np.float32
    assert got.tolist() == [*wanted.tolist(), *[END] * (width - len(wanted))]


def test_a_megabyte_is_cut_and_no_reject() -> None:
    merges = ((A, A),)
    for last in ("first", "last"):
        text: Any = Text("t", "bpe", merges=merges, width=3, keep=last)
        assert Reader(text).row("aa" * 500_000).tolist() == [FIRST + 256] * 3


def test_half_a_surrogate_pair_is_a_reject_wherever_it_stands() -> None:
    for text in ("\ud800abc", "abcdef\ud800"):
        with pytest.raises(Reject, match="half a surrogate pair"):
            row(text)


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        (r"text\.width: expected 0, or 2 to 1024, got 1$", {"width": 1}),
        (r"text\.width: .* got 1025", {"width": 1025}),
        (r"text\.width: .* got True", {"width": True}),
        (r"text\.keep: expected 'first', or with a width", {"keep": "last"}),
        (r"text\.keep: .* got 'middle'", {"keep": "middle", "width": 4}),
        (r"text\.max_symbols: expected 16384, .* got 9", {"max_symbols": 9, "width": 4}),
    ],
)
def test_a_wrong_width_is_refused_by_name(fault: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=fault):
        Text("t", **settings)


def test_symbols_stand_behind_all_other_columns() -> None:
    assert BESIDE.columns == (
        "n", "n?", "on", "c=p", "seconds since last",
        "say.it[0]", "say.it[1]", "say.it[2]", "say.it[3]",
    )  # fmt: skip
    assert FeatureSpec.from_json(BESIDE.to_json()) == BESIDE
    assert BESIDE.inner is BESIDE.text
    assert BESIDE.unrolled is None


def test_what_a_text_cannot_stand_beside_is_refused() -> None:
    with pytest.raises(SpecError, match="expected nothing beside a text"):
        FeatureSpec((Field("a"),), text=Text("t"))
    with pytest.raises(SpecError, match="expected a member that is no field too, got 't'"):
        FeatureSpec((Field("t"),), text=Text("t", width=4))
    with pytest.raises(SpecError, match="expected no long form beside a text"):
        FeatureSpec((Field("a", missing="last"),), long=LongForm("k", "v"), text=Text("t", width=4))


def members(**changed: Any) -> dict[str, Any]:
    return {"n": 1.5, "on": True, "c": "p", "say": {"it": "Good day"}, **changed}


def decoded(event: Any, form: str = "json", features: FeatureSpec = BESIDE) -> Any:
    value = msgspec.msgpack.encode(event) if form == "msgpack" else json.dumps(event).encode()
    return Decoder(EventSpec(format=form), features).decode([value], [7])  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_texts_numbers_and_categories_are_one_row(form: str) -> None:
    found = decoded(members(), form)
    assert found.rejects == {}
    assert found.lengths is None  # one step for each event
    assert found.x.tolist() == [[1.5, 0, 1, 1, 0, 2, 3, END, END]]
    found = decoded(members(n=None, c=None, say={"it": "a good day, my good day!"}), form)
    assert found.rejects == {0: "field 'c' is missing"}
    found = decoded(members(n=None, say={"it": "GOOD ever day !"}), form)
    assert found.x.tolist() == [[2.5, 1, 1, 1, 0, 2, UNKNOWN, 3, 4]]


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        ({"it": 3}, "field 'say.it': expected a text, got a number"),
        ({"it": False}, "field 'say.it': expected a text, got a boolean"),
        ({"it": None}, "field 'say.it': expected a text, got none"),
        ({}, "field 'say.it': expected a text, got none"),
        ("x", "field 'say.it': expected a text, got none"),
    ],
)
def test_what_is_no_text_is_a_reject(say: Any, reason: str) -> None:
    assert decoded(members(say=say)).rejects == {0: reason}


def test_the_first_fault_of_an_event_is_its_reason_and_good_rows_stay() -> None:
    rows = [members(), members(on="x", say={"it": 1}), members(say={"it": ""})]
    values = [json.dumps(event).encode() for event in rows]
    found = Decoder(EventSpec(), BESIDE).decode(values, [0, 0, 0])
    assert set(found.rejects) == {1}
    assert "field 'on': expected true" in found.rejects[1]
    assert found.x[[0, 2], 5:].tolist() == [[2, 3, END, END], [END] * 4]


def test_a_text_may_be_all_that_an_event_is() -> None:
    features = FeatureSpec((), text=Text("t", width=2))
    found = decoded({"t": "a"}, features=features)
    assert found.x.tolist() == [[A, END]]
    assert decoded({"t": "a"}, features=FeatureSpec((), True, None, features.text)).x.shape == (
        1,
        3,
    )


def test_texts_are_read_from_avro_beside_numbers() -> None:
    avro = pytest.importorskip("fastavro")
    del avro
    from keyfold.export.formats import format_for

    schema = {
        "type": "record",
        "name": "e",
        "fields": [{"name": "n", "type": "double"}, {"name": "t", "type": "string"}],
    }
    events = EventSpec(format="avro", avro_schema=json.dumps(schema))
    features = FeatureSpec((Field("n"),), text=Text("t", width=2))
    value = format_for(events, features).of_json(b'{"n": 0.5, "t": "ab"}')
    assert Decoder(events, features).decode([value], [0]).x.tolist() == [[0.5, A, A + 1]]


def test_packed_records_hold_no_text() -> None:
    features = FeatureSpec((Field("n"),), text=Text("t", width=2))
    with pytest.raises(SpecError, match="expected 'json', 'msgpack' or 'avro' for a text"):
        Decoder(EventSpec(format="packed"), features)


def test_a_bundle_with_a_text_inside_asks_for_a_reader_that_knows_it(tmp_path: Path) -> None:
    features = FeatureSpec(FEATURES.fields, True, None, Text("line", width=6, keep="last"))
    bundle = make_keyed_bundle(tmp_path, features=features)
    manifest = bundle.manifest
    assert manifest.version == "1.3"
    assert Manifest.from_json(manifest.to_json()) == manifest
    data = manifest.to_json()
    assert data["features"]["text"] == {
        "field": "line", "tokenizer": "byte", "width": 6, "keep": "last",
    }  # fmt: skip
    with pytest.raises(BundleError, match=r"expected no 'packed' with features\.text"):
        Manifest.from_json({**data, "events": {**data["events"], "codec": "packed"}})


def test_a_text_inside_is_said_to_people(tmp_path: Path) -> None:
    features = FeatureSpec((Field("a"),), text=Text("line", width=6, lower=True))
    said = " ".join(describe(make_tiny_bundle(tmp_path, features=features)).split())
    assert "JSON object; 1 fields become 1 columns: a: number, required" in said
    assert "field 'line' is a text, read within its event: its first 6 symbols" in said
    assert "bytes, in lower case, 258 of them with the end and the unknown one" in said
    alone = FeatureSpec((), text=Text("line", width=6))
    said = " ".join(describe(make_tiny_bundle(tmp_path, features=alone)).split())
    assert "event JSON object; field 'line' is a text, read within its event" in said
