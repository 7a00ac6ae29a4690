"""Texts become symbols: each tokenizer, and what of a text cannot be an event."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_bundle import make_text_bundle

from keyfold.export.bundle import Manifest
from keyfold.export.decode import Decoder
from keyfold.export.errors import BundleError, Reject, SpecError
from keyfold.export.events import EventSpec, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.formats import format_of
from keyfold.export.text import CHUNKS, FIRST, Reader, Text, spelt

# "ab" is learned first, then "abc", then " a"; a pair of byte b is symbol FIRST + b.
A, B, C, BLANK = (FIRST + ord(letter) for letter in "abc ")
MERGES = ((A, B), (258, C), (BLANK, A))
BPE = Text("t", "bpe", merges=MERGES)
EMOJI = "\U0001f469\u200d\U0001f469"  # two women, joined


def read(text: Text, value: str) -> list[int]:
    return [int(symbol) for symbol in Reader(text).read(value)]


def test_a_text_ends_with_the_end_symbol_and_empty_text_is_it_alone() -> None:
    for text in (Text("t"), Text("t", "char"), Text("t", "word"), BPE):
        assert read(text, "") == [0]
        assert read(text, "ab")[-1] == 0


def test_bytes_are_those_of_utf_8() -> None:
    assert read(Text("t"), "a\0\U0001f600") == [A, 2, 242, 161, 154, 130, 0]


def test_an_unknown_character_is_the_unknown_symbol() -> None:
    text = Text("t", "char", ("a", "\U0001f469", "\0"))
    assert read(text, "a" + EMOJI + "\0") == [2, 3, 1, 3, 4, 0]


def test_words_are_cut_at_blanks_and_marks_and_marks_are_words() -> None:
    text = Text("t", "word", ("don", "'", "t", "Straße", "1"))
    assert read(text, "\tdon't  Straße\n1,no") == [2, 3, 4, 5, 6, 1, 1, 0]


def test_lower_case_is_read_where_the_tokenizer_was_fitted_on_it() -> None:
    assert read(Text("t", "word", ("äb",), lower=True), "ÄB äb") == [2, 2, 0]
    assert read(Text("t", "word", ("äb",)), "ÄB äb") == [1, 2, 0]


def test_byte_pairs_are_merged_in_the_order_in_which_they_were_learned() -> None:
    assert read(BPE, "abc ab") == [259, BLANK, 258, 0]  # " a" was learned after "ab"
    assert read(BPE, "ab a") == [258, 260, 0]


def test_a_chunk_of_any_length_is_merged() -> None:
    assert read(BPE, "ab" * 1000)[:-1] == [258] * 1000


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_pairs_spell_the_text_they_were_made_of(text: str) -> None:
    names = spelt(MERGES)
    symbols = read(BPE, text)[:-1]
    assert b"".join(names[symbol - FIRST] for symbol in symbols) == text.encode()
    assert "".join(CHUNKS.findall(text)) == text


def test_names_of_symbols_are_distinct_and_say_what_they_are() -> None:
    names = BPE.names
    assert names[:2] == ("<end>", "<unknown>")
    assert (names[A], names[FIRST + 0xFF], names[259]) == ("a", "0xff", "abc")
    assert len(set(names)) == BPE.size
    assert Text("t", "word", ("<end>", "a")).names == ("<end>", "<unknown>", "<end><symbol>", "a")


@pytest.mark.parametrize("text", [Text("t", max_symbols=5), Text("t", "char", max_symbols=5),
                                  Text("t", "word", max_symbols=5)])  # fmt: skip
def test_a_text_beyond_the_limit_is_a_reject(text: Text) -> None:
    assert len(read(text, "a b,c" if text.tokenizer != "word" else "a b,c d")) == 6
    with pytest.raises(Reject) as caught:
        Reader(text).read("a b c, d e f")
    assert "expected at most 5 symbols (features.text.max_symbols), got" in str(caught.value)


def test_half_a_surrogate_pair_is_a_reject() -> None:
    with pytest.raises(Reject, match="expected a text, got half a surrogate pair in it"):
        Reader(Text("t")).read("a\ud800")


def test_a_megabyte_of_byte_pairs_is_refused_before_it_is_merged() -> None:
    with pytest.raises(Reject, match=r"expected at most 16,384 symbols .* got more"):
        Reader(BPE).read("x" * 1_000_000)


def test_a_megabyte_is_read_where_the_bundle_allows_it() -> None:
    text = "ab 😀\0" * 125_000
    assert len(read(Text("t", max_symbols=2_000_000), text)) == len(text.encode()) + 1


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        ("field: expected the name of a member, got none", {"field": ""}),
        ("tokenizer: expected one of byte, char, word, bpe, got 'syllable'",
         {"tokenizer": "syllable"}),
        ("symbols: expected none with 'byte'", {"symbols": ("a",)}),
        ("merges: expected none with 'word'", {"tokenizer": "word", "merges": ((2, 3),)}),
        ("symbols: expected distinct", {"tokenizer": "word", "symbols": ("a", "a")}),
        ("symbols: expected single characters", {"tokenizer": "char", "symbols": ("ab",)}),
        ("symbols: expected texts that are not empty", {"tokenizer": "word", "symbols": ("",)}),
        ("merges: number 1: expected two earlier symbols (2 to 258), got [259, 3]",
         {"tokenizer": "bpe", "merges": ((2, 3), (259, 3))}),
        ("max_symbols: expected at least 1, got 0", {"max_symbols": 0}),
    ],
)  # fmt: skip
def test_a_wrong_tokenizer_is_refused_by_name(fault: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        Text(**{"field": "t", **settings})
    assert f"features.text.{fault}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        Text("t"),
        BPE,
        Text("a.b", "char", ("ä", "\0"), max_symbols=9),
        Text("t", "word", lower=True),
    ],
)
def test_a_manifest_gives_the_same_text_back(text: Text) -> None:
    features = FeatureSpec((), text=text)
    assert FeatureSpec.from_json(features.to_json()) == features


def test_a_member_of_a_later_version_is_refused() -> None:
    with pytest.raises(SpecError, match=r"features\.text: unknown"):
        Text.from_json({"field": "t", "normalise": "nfc"})


def test_a_text_stands_alone() -> None:
    with pytest.raises(SpecError, match="expected nothing beside a text"):
        FeatureSpec((Field("a"),), text=Text("t"))


def decoded(value: bytes | None, text: Text | None = None, **events: Any) -> Any:
    features = FeatureSpec((), text=text or Text("t", max_symbols=6))
    return Decoder(EventSpec(**events), features).decode([value], [7])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"t": 3}', "field 't': expected a text, got a number"),
        (b'{"t": true}', "field 't': expected a text, got a boolean"),
        (b'{"t": null}', "field 't': expected a text, got none"),
        (b"{}", "field 't': expected a text, got none"),
        (b'{"t": ["a"]}', "the event does not match the feature spec"),
        (b'{"t": "\xff"}', "the record's value is not valid JSON"),
        (b'{"t": "\\ud800"}', "the record's value is not valid JSON"),
        (b'"t"', "the event does not match the feature spec"),
        (None, "the record's value is null"),
        (b'{"t": "1234567"}', "field 't': expected at most 6 symbols (features.text.max_symbols)"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_a_reject(value: bytes | None, reason: str) -> None:
    found = decoded(value)
    assert reason in found.rejects[0]
    assert found.lengths.tolist() == [0]
    assert len(found.x) == 0


def test_symbols_of_all_events_stand_one_behind_the_other() -> None:
    features = FeatureSpec((), text=Text("a.t", "char", ("x",)))
    values = [b'{"a": {"t": "xy"}, "time": 1}', b"{", b'{"a": {"t": ""}, "time": 3}']
    found = Decoder(EventSpec(time_field="time"), features).decode(values, [0, 0, 0])
    assert found.x.tolist() == [[2.0], [1.0], [0.0], [0.0]]
    assert found.x.dtype == np.float32
    assert found.lengths is not None
    assert found.lengths.tolist() == [3, 0, 1]
    assert found.times_ms[[0, 2]].tolist() == [1, 3]
    assert set(found.rejects) == {1}


def test_nul_and_emoji_pass_through_json() -> None:
    found = decoded(b'{"t": "\\u0000\\ud83d\\ude00"}')
    assert found.x[:, 0].tolist() == [2.0, 242.0, 161.0, 154.0, 130.0, 0.0]


def test_texts_are_read_from_message_pack_too() -> None:
    found = decoded(msgspec.msgpack.encode({"t": "ab"}), format="msgpack")
    assert found.x[:, 0].tolist() == [A, B, 0.0]
    assert "got a number" in decoded(msgspec.msgpack.encode({"t": 1}), format="msgpack").rejects[0]


def test_packed_records_hold_no_text() -> None:
    with pytest.raises(SpecError, match="expected 'json', 'msgpack' or 'avro' for a text"):
        decoded(b"", format="packed")
    assert format_of(EventSpec()).name == "JSON"


def test_a_bundle_of_texts_asks_for_a_reader_that_knows_them(tmp_path: Any) -> None:
    manifest = make_text_bundle(tmp_path).manifest
    assert manifest.version == "1.2"
    assert manifest.to_json()["features"]["fields"] == []  # which readers of 1.1 refuse
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_forecasts_and_packed_records_are_refused_beside_a_text(tmp_path: Any) -> None:
    data = make_text_bundle(tmp_path).manifest.to_json()
    forecast = OutputSpec.of_forecast(Forecast(("line",))).to_json()
    with pytest.raises(BundleError, match=r"expected no forecast with features\.text"):
        Manifest.from_json({**data, "outputs": forecast})
    with pytest.raises(BundleError, match=r"expected no 'packed' with features\.text"):
        Manifest.from_json({**data, "events": {**data["events"], "codec": "packed"}})
