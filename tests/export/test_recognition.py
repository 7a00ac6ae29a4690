"""Symbols told from a stream of best columns: each once, again behind a blank, in any grouping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.anomaly import Back
from keyfold.export.describe import describe
from keyfold.export.errors import BundleError, SpecError
from keyfold.export.events import Caused, OutputSpec, PredictionEncoder
from keyfold.export.features import FeatureSpec
from keyfold.export.recognition import BEST, Recognition
from keyfold.export.states import cold
from keyfold.export.text import Text

WORDS = OutputSpec("transcription", ("", "yes", "no"))


def outputs(best: list[int], columns: int = 3) -> NDArray[np.float32]:
    """Return outputs (1,T,O) whose largest are these columns."""
    return (np.eye(columns, dtype=np.float32)[best] * 0.5 + 0.1)[None]


def told(best: list[int]) -> list[int]:
    back = Recognition()
    found, _ = back.run(outputs(best), None, np.array([len(best)]), cold(back.states, 1))
    return [int(column) for column in found[0, :, 0]]


def test_a_symbol_that_is_held_is_told_once() -> None:
    assert told([0, 1, 1, 1, 0]) == [0, 1, 0, 0, 0]


def test_a_symbol_is_told_again_behind_a_blank() -> None:
    assert told([1, 0, 1, 1]) == [1, 0, 1, 0]


def test_another_symbol_needs_no_blank_between() -> None:
    assert told([1, 2, 2, 1]) == [1, 2, 0, 1]


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.lists(st.integers(1, 7), min_size=1, max_size=30),
)
def test_any_grouping_gives_the_same_bits(best: list[int], cuts: list[int]) -> None:
    back = Recognition()
    y, lengths = outputs(best), np.array([len(best)])
    whole, after = back.run(y, None, lengths, cold(back.states, 1))
    states: Any = cold(back.states, 1)
    parts, at = [], 0
    for cut in [*cuts, len(best)]:
        some = y[:, at : at + cut]
        if not some.shape[1]:
            break
        # Padding is not looked at: another best column stands there.
        padded = np.concatenate([some, outputs([2, 1])], axis=1)
        found, states = back.run(padded, None, np.array([some.shape[1]]), states)
        assert np.isnan(found[:, some.shape[1] :]).all()
        parts.append(found[:, : some.shape[1]])
        at += cut
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert states[BEST] == after[BEST]


def test_only_a_transcription_has_this_back() -> None:
    assert isinstance(Back.of(WORDS), Recognition)
    assert Back.of(OutputSpec("classification", ("yes", "no"))) is None


def test_a_prediction_tells_the_symbol_or_null_and_how_probable_the_best_column_is() -> None:
    y = np.array([[0.1, 0.7, 0.2], [0.625, 0.25, 0.125]], np.float32)
    encoder = PredictionEncoder(WORDS, "b", "t")
    written = encoder.encode(0, Caused([5, 6], [b'"key":"k"'] * 2, [1, 2], [1, 2]), y,
                             np.array([[1.0], [0.0]], np.float32))  # fmt: skip
    assert [json.loads(one)["output"] for one in written] == [
        {"symbol": "yes", "probability": 0.7},
        {"symbol": None, "probability": 0.625},
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"names": ("yes", "no")}, "outputs.names: expected an empty name for the blank"),
        ({"names": ("", "yes", "yes")}, "outputs.names: expected at least 2 distinct names"),
        ({"names": ("",)}, "outputs.names: expected at least 2 distinct names"),
        ({"delay": 2}, "outputs.kind: expected answers = 'event', read = 'last' and no delay"),
        ({"top": 2}, "outputs.top: expected 0 to 0 for transcription, got 2"),
    ],
)
def test_what_a_transcription_cannot_be_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        replace(WORDS, **changes)


def test_the_previous_best_column_is_a_part_of_the_keys_state(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=WORDS)
    assert bundle.manifest.version == "1.3"
    assert [state.input for state in bundle.manifest.kept] == ["h", "c", BEST]
    assert contract.load(bundle.path).manifest.outputs == WORDS
    said = " ".join(describe(bundle).split())
    assert "prediction the symbol that is newly recognised, or null: yes, no" in said


def test_texts_read_symbol_by_symbol_have_no_transcription(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=WORDS)
    manifest = replace(bundle.manifest, features=FeatureSpec((), text=Text("line")))
    with pytest.raises(BundleError, match=r"expected no transcription with features\.text"):
        contract.save(tmp_path, manifest, bundle.step_path.read_bytes(), bundle.golden)
