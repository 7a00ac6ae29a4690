"""Outputs about another event than the newest: what the manifest says, what a key keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_bundle import CLASSES, make_text_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.answers import Happened, Late, Session, keeper_of
from keyfold.export.decode import Decoder
from keyfold.export.errors import BundleError, SpecError
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import Text

VALUE = OutputSpec("regression", ("value",))


def happened(count: int) -> Happened:
    """Return a key's next events."""
    y = np.arange(count, dtype=np.float32)[None, :, None]
    offsets = np.arange(100, 100 + count)[None]
    return Happened(y, offsets, offsets * 10, np.array([count]))


@pytest.mark.parametrize("calls", [[1] * 7, [7], [3, 4], [1, 5, 1]])
def test_late_answers_describe_the_same_events_in_every_grouping(calls: list[int]) -> None:
    late, at = Late(2), 0
    states: dict[str, Any] = {
        spec.input: np.full((1, *spec.dims), spec.initial, spec.dtype) for spec in late.states
    }
    abouts: list[int] = []
    whole = happened(7)
    for count in calls:
        part = slice(at, at + count)
        some = Happened(
            whole.y[:, part], whole.offsets[:, part], whole.times_ms[:, part], np.array([count])
        )
        kept = late.run(some, states)
        assert kept.abouts is not None and kept.about_ms is not None  # noqa: PT018
        abouts += kept.abouts[0].tolist()
        assert (kept.about_ms[0, kept.abouts[0] >= 0] % 10 == 0).all()
        states, at = kept.states, at + count
    assert abouts == [-1, -1, 100, 101, 102, 103, 104]
    assert states["back.late_offsets"].tolist() == [[105, 106]]
    assert states["back.late_ms"].tolist() == [[1050, 1060]]


def test_a_session_keeps_its_newest_answer() -> None:
    kept = Session(1).run(happened(3), {})
    assert kept.states["back.answer"].tolist() == [[2.0]]
    assert kept.states["back.answer_ms"].tolist() == [1020]
    assert kept.abouts is None


def test_a_bundle_that_answers_each_event_keeps_nothing_and_its_form(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)
    assert keeper_of(bundle.manifest.outputs) is None
    assert bundle.manifest.version == "1.0"
    assert not {"answers", "read", "delay"} & bundle.manifest.outputs.to_json().keys()
    assert "end_field" not in bundle.manifest.events.to_json()


@pytest.mark.parametrize(
    ("new", "kept"),
    [
        ({"answers": "session"}, ["back.answer", "back.answer_ms"]),
        ({"delay": 3}, ["back.late_offsets", "back.late_ms"]),
    ],
)
def test_a_manifest_says_when_answers_come(
    tmp_path: Path, new: dict[str, Any], kept: list[str]
) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=replace(VALUE, **new), end_field="bye")
    manifest = bundle.manifest
    assert manifest.version == "1.3"
    assert [spec.input for spec in manifest.kept[-2:]] == kept
    written = json.loads((bundle.path / "manifest.json").read_text())
    assert new.items() <= written["outputs"].items()
    assert written["events"]["end_field"] == "bye"
    assert contract.load(bundle.path).manifest == manifest


def test_the_state_of_an_open_session_is_never_collected(tmp_path: Path) -> None:
    """Its answer has to be given when the key comes back, however late."""
    plain = make_tiny_bundle(tmp_path, reset_after_ms=1000)
    outputs = replace(VALUE, answers="session")
    session = make_tiny_bundle(tmp_path, outputs=outputs, reset_after_ms=1000)
    assert plain.manifest.collects_after_ms == 1000
    assert session.manifest.collects_after_ms is None


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"answers": "day"}, "outputs.answers: expected 'event' or 'session', got 'day'"),
        ({"read": "some"}, "outputs.read: expected 'last' or 'every', got 'some'"),
        ({"delay": -1}, "outputs.delay: expected 0 or more events, got -1"),
        ({"delay": True}, "outputs.delay: expected 0 or more events, got True"),
        ({"delay": 2, "answers": "session"}, "expected one of outputs.answers = 'session' and"),
    ],
)
def test_outputs_that_mean_nothing_are_refused(new: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        replace(VALUE, **new)


def test_answers_that_the_events_cannot_give_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no session would ever end"):
        make_tiny_bundle(tmp_path, outputs=replace(VALUE, answers="session"))
    with pytest.raises(BundleError, match="events of one step"):
        make_tiny_bundle(tmp_path, outputs=replace(VALUE, read="every"))
    with pytest.raises(BundleError, match=r"outputs.delay: expected events of one step, got texts"):
        make_text_bundle(tmp_path, outputs=replace(CLASSES, delay=2))
    with pytest.raises(BundleError, match="lower max_symbols"):
        make_text_bundle(
            tmp_path, Text("line", max_symbols=2_000_000), outputs=replace(CLASSES, read="every")
        )


@pytest.mark.parametrize(
    ("value", "ends"),
    [(True, True), (1, True), ("x", True), (0.5, True), (None, False), (False, False), (0, False),
     ("", False), ("true", True), ("False", False), ("FALSE", False), ("falsely", True)],
)  # fmt: skip
def test_a_marker_ends_a_history_unless_it_says_no(value: object, ends: bool) -> None:
    decoder = Decoder(EventSpec(end_field="meta.bye"), FeatureSpec.numbers("a"))
    rows = [{"a": 1, "meta": {"bye": value}}, {"a": 2}, {"a": "x", "meta": {"bye": True}}]
    decoded = decoder.decode([json.dumps(row).encode() for row in rows], [0] * 3)
    assert decoded.ends is not None
    assert decoded.ends.tolist() == [ends, False, False]  # a reject ends nothing
    assert decoded.x[:2, 0].tolist() == [1, 2]
    assert list(decoded.rejects) == [2]


def test_a_marker_that_is_an_object_is_a_reject() -> None:
    decoder = Decoder(EventSpec(end_field="bye"), FeatureSpec.numbers("a"))
    decoded = decoder.decode([b'{"a": 1, "bye": {}}'], [0])
    assert "bye" in decoded.rejects[0]
    assert decoded.ends is not None
    assert not decoded.ends[0]


def test_packed_records_have_no_marker() -> None:
    with pytest.raises(SpecError, match=r"events.end_field: expected none in packed records"):
        EventSpec(format="packed", end_field="bye")
