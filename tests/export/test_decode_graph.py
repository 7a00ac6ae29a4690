"""A bundle with a decode graph: written, read again, refused where it is not what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from speaking_bundle import STATES, make_answering_bundle, make_speaking_bundle
from text_bundle import HIDDEN

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.decode_graph import DecodeGraph
from keyfold.export.describe import describe
from keyfold.export.errors import BundleError
from keyfold.export.states import StateSpec
from keyfold.export.text import Text
from keyfold.worker.model import Model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_answering_bundle(tmp_path_factory.mktemp("bundle"))


def saved_again(bundle: Bundle, folder: Path, **changes: object) -> Bundle:
    """Write a bundle with a changed decode section."""
    assert bundle.manifest.decode is not None
    decode = replace(bundle.manifest.decode, **changes)  # type: ignore[arg-type]
    manifest = replace(bundle.manifest, decode=decode)
    graphs = bundle.step_path.read_bytes(), bundle.decode_path.read_bytes()
    return contract.load(contract.save(folder, manifest, graphs[0], bundle.golden, graphs[1]))


def test_a_bundle_that_answers_is_read_as_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    assert manifest.version == "1.3"
    assert contract.Manifest.from_json(manifest.to_json()) == manifest
    assert bundle.golden.answers is not None
    assert Model(bundle).decode is not None
    assert make_answering_bundle(tmp_path).id == bundle.id
    assert make_answering_bundle(tmp_path, seed=1).id != bundle.id
    plain = make_speaking_bundle(tmp_path)
    assert plain.manifest.decode is None
    assert "decode" not in json.loads((plain.path / "manifest.json").read_text())


def test_what_is_read_anew_is_no_part_of_a_keys_state(bundle: Bundle, tmp_path: Path) -> None:
    assert (bundle.manifest.kept, bundle.manifest.state_bytes) == ((), 0)
    dialogue = make_answering_bundle(tmp_path, anew=False)
    assert dialogue.manifest.kept == STATES
    assert dialogue.id != bundle.id


def test_a_changed_decode_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    changed = saved_again(bundle, tmp_path)
    assert changed.id == bundle.id
    changed.decode_path.write_bytes(bundle.decode_path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"decode.onnx: expected SHA-256"):
        contract.load(changed.path)
    changed.decode_path.unlink()
    with pytest.raises(BundleError, match=r"decode.onnx: not readable"):
        contract.load(changed.path)


def test_states_that_begin_otherwise_are_found_by_the_golden_answers(
    bundle: Bundle, tmp_path: Path
) -> None:
    other = saved_again(bundle, tmp_path, begins=("c", "h"))
    assert other.id != bundle.id
    with pytest.raises(BundleError, match=r"golden answers: expected probabilities within 1e-05"):
        Model(other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"begins": ("h", "x")}, r"decode state 'c': expected it to begin as a state .* got 'x'"),
        ({"states": (replace(STATES[0], dims=(9,)), STATES[1])}, r"float32 \[9\], got 'h'"),
        ({"states": (replace(STATES[0], dtype="int8"), STATES[1])}, "dtype float32"),
        ({"width": 0}, "decode.step_outputs: expected at least 1, got 0"),
        ({"min_rows": 0}, "decode.min_rows: expected at least 1, got 0"),
        ({"first": 99}, "decode.first: expected 0 to 6, got 99"),
    ],
)
def test_a_decode_section_that_cannot_begin_is_refused(
    bundle: Bundle, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        saved_again(bundle, tmp_path, **changes)


def test_another_graph_than_the_manifest_says_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    states = (*STATES, StateSpec("more", "more_out", (HIDDEN,)))
    other = saved_again(bundle, tmp_path, states=states, begins=("h", "c", ""))
    with pytest.raises(BundleError, match=r"decode.onnx: expected inputs \['c', 'h', 'lengths'"):
        Model(other)


def test_answers_need_symbols_and_a_decode_graph_a_target(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    for wrong in (
        replace(manifest, decode=None),
        replace(manifest, outputs=replace(manifest.outputs, target=None)),
    ):
        with pytest.raises(BundleError, match=r"expected outputs.target and decode together"):
            contract.save(tmp_path, wrong, b"", bundle.golden)
    plain = make_speaking_bundle(tmp_path)
    other = replace(plain.manifest.features, text=Text("line", "char", ("a", "b")))
    with pytest.raises(BundleError, match=r"expected features.text, a step for each symbol, whose"):
        contract.save(tmp_path, replace(plain.manifest, features=other), b"", plain.golden)


def test_a_person_is_told_how_events_are_answered(bundle: Bundle, tmp_path: Path) -> None:
    said = " ".join(describe(bundle).split())
    assert "a text, one prediction for each of its symbols, at most 12, up to '<end>'" in said
    assert "drawn by their probabilities among the 5 likeliest at temperature 1" in said
    assert "symbols: words, 7 of them with the end and the unknown one" in said
    assert "decode.onnx; each event is read from the initial state" in said
    dialogue = " ".join(describe(make_answering_bundle(tmp_path, anew=False)).split())
    assert "each event is read from what the key's earlier events left" in dialogue


def test_states_begin_as_what_was_read_or_as_their_first_value() -> None:
    states = (StateSpec("a", "a_out", (2,)), StateSpec("b", "b_out", (3,), initial=4.0))
    begun = DecodeGraph(states, ("h", ""), 1).begun({"h": np.ones((2, 2), np.float32)}, 2)
    assert begun["a"].tolist() == [[1, 1], [1, 1]]
    assert begun["b"].tolist() == [[4, 4, 4], [4, 4, 4]]
