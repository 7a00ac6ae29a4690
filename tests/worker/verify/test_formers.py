"""The offline fold of inherited states: who folds what, and what cannot be judged without whom."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from fine_tune import fine_tuned
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.errors import BundleError
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.formers import (
    Folders,
    Former,
    Parents,
    check_named,
    formers,
    lenient,
)
from keyfold.worker.verify.offline_emit import Due, Memory, OfflineEmit
from keyfold.worker.verify.offline_key import UNJUDGED, Stepped
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.refold import KeyState, Origin, Refold
from keyfold.worker.verify.seams import Other, Seams
from keyfold.worker.verify.stored import META, Stored
from keyfold.worker.verify.stored_states import check_states

NAME = "{group:in:0}"
EVENTS = [
    (b"k0" if n % 3 else b"k1", json.dumps({"a": n % 5, "b": -n, "time": n})) for n in range(12)
]


@pytest.fixture
def parent(tmp_path: Path) -> Bundle:
    return make_tiny_bundle(tmp_path / "parent")


@pytest.fixture
def child(tmp_path: Path, parent: Bundle) -> Bundle:
    return fine_tuned(tmp_path / "child", parent)


def stored(inherited: str | None, **meta: str) -> Stored:
    fields = dict.fromkeys(META, "0") | {f"#{name}": value for name, value in meta.items()}
    if inherited is not None:
        fields["#I"] = inherited
    return Stored(NAME, fields, {}, len(fields))


def at_hand(*bundles: Bundle) -> Parents:
    return {one.id: (OfflineStep(one), None) for one in bundles}


def fold(refold: Refold, events: list[tuple[bytes, str]] = EVENTS) -> Refold:
    for offset, (key, value) in enumerate(events):
        refold.fold(offset, offset, key, value.encode())
    return refold


def with_rows(bundle: Bundle, rows: int) -> OfflineStep:
    """Return the step of a bundle that must be called with so many rows."""
    return OfflineStep(replace(bundle, manifest=replace(bundle.manifest, min_rows=rows)))


@pytest.mark.parametrize("rows", [(1, 1), (1, 4), (3, 1)])
def test_from_the_seam_on_the_child_folds_what_its_parent_has_left(
    parent: Bundle, child: Bundle, rows: tuple[int, int]
) -> None:
    steps = with_rows(parent, rows[0]), with_rows(child, rows[1])
    got = fold(Refold(steps[1], Origin(formers=(Former(steps[0], 7),))))
    plain = OfflineStep(parent), OfflineStep(child)
    tensors: dict[bytes, Any] = {}
    for offset, (key, text) in enumerate(EVENTS):
        event, step = json.loads(text), plain[offset >= 7]
        x = np.array([[event["a"], event["b"]]], np.float32)
        y, tensors[key] = step.one(x, tensors.get(key) or step.cold())
        assert got.expected(offset).output == pytest.approx(y.tolist(), abs=1e-6)
        assert got.bundle_at(offset).id == (parent, child)[offset >= 7].id
    for key, state in got.states.items():
        np.testing.assert_allclose(state.tensors[0][0], tensors[key][0][0], atol=1e-6)


def test_what_was_inherited_cannot_be_judged_without_the_parent(
    parent: Bundle, child: Bundle, tmp_path: Path
) -> None:
    present = fine_tuned(tmp_path / "present", child, seed=5)
    lost = stored(f"{parent.id}@7,0123456789abcdef@9")
    with pytest.raises(Crash) as refused:
        formers(lost, 0, at_hand(parent), present)
    assert str(refused.value) == (
        f"{NAME}: its states below offset 9 are inherited from bundle 0123456789abcdef: nothing "
        "from there on can be judged without it: --parent bundles/0123456789abcdef"
    )
    said, both = stored(f"{parent.id}@7,{child.id}@9"), at_hand(parent, child)
    assert [one.upto for one in formers(said, 0, both, present)] == [7, 9]
    assert [one.upto for one in formers(said, 7, both, present)] == [9]


def test_nobody_is_needed_where_nothing_was_inherited_or_none_of_it_is_left(child: Bundle) -> None:
    for one in (None, stored(None), stored("0123456789abcdef@9")):
        assert formers(one, 9, {}, child) == ()


def test_parent_that_is_no_kin_of_the_next_one_is_refused(
    parent: Bundle, child: Bundle, tmp_path: Path
) -> None:
    """Whatever Redis says: its tolerance would widen that of the partition."""
    other = make_tiny_bundle(tmp_path / "other", seed=8)
    third = fine_tuned(tmp_path / "third", child, seed=5)
    for text, known, present in (
        (f"{other.id}@7", at_hand(other), child),
        (f"{other.id}@7,{child.id}@9", at_hand(other, child), third),
        (f"{parent.id}@7", at_hand(parent), third),
    ):
        with pytest.raises(BundleError, match="as its parent"):
            formers(stored(text), 0, known, present)
    wide = fine_tuned(tmp_path / "wide", parent, hidden=5)
    with pytest.raises(BundleError, match="states: expected what its parent"):
        formers(stored(f"{parent.id}@7"), 0, at_hand(parent), wide)


def test_parent_that_nothing_was_inherited_from_is_refused() -> None:
    check_named({}, None, "g")
    check_named({}, {"a"}, "g")
    check_named({"a"}, {"a", "b"}, "g")
    for known, named, said in (
        ({"c"}, {"b", "a"}, "has inherited (a, b), got c: leave it out"),
        ({"a", "c"}, {"a"}, "has inherited (a), got c: leave it out"),
        ({"a"}, set[str](), "--parent: expected a bundle whose states group 'g' has inherited ("
         "none), got a: leave it out"),
        ({"a"}, None, "--parent: which events it folded only Redis knows: verify without --no-"),
    ):  # fmt: skip
        with pytest.raises(Crash) as refused:
            check_named(known, named, "g")
        assert said in str(refused.value)


def loose(bundle: Bundle, tolerance: float) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, tolerance=tolerance))


def checked(refold: Refold, bundle: Bundle, off: float) -> list[int]:
    """Return which offsets' predictions are wrong where all numbers are off by so much."""
    place, findings = Place("in", "out", 0, 0, len(refold)), Findings(keep=99)
    check = OutputCheck(bundle, place, refold, findings, Strays())
    for offset in range(len(refold)):
        expected = refold.expected(offset)
        members = {
            "id": f"in:0:{offset}:0", "about": f"in:0:{offset}", "key": expected.key.decode(),
            "time": expected.time_ms, "output": {"value": expected.output[0] + off},
            "steps": expected.steps, "cold": expected.steps == 1,
            "bundle": refold.bundle_at(offset).id,
        }  # fmt: skip
        check.prediction(offset, expected.key, json.dumps(members).encode())
    check.finish()
    assert set(findings.counts) <= {Fault.WRONG_OUTPUT}
    return [
        int(one.where.rpartition(":")[2]) for one in findings.examples.get(Fault.WRONG_OUTPUT, [])
    ]


def test_only_keys_that_carry_a_parent_s_state_may_be_off_as_it_was(
    parent: Bundle, child: Bundle, tmp_path: Path
) -> None:
    """k2 begins under the child: nothing of the parent's is in it. Nor in another partition."""
    present = fine_tuned(tmp_path / "present", child, seed=5)
    steps = OfflineStep(loose(parent, 0.1)), OfflineStep(loose(child, 0.01)), OfflineStep(present)
    more = [(b"k2", json.dumps({"a": 1, "b": 1, "time": 12 + n})) for n in range(4)]
    both = Refold(steps[1], Origin(formers=(Former(steps[0], 7),)))
    every = Refold(steps[2], Origin(formers=(Former(steps[0], 7), Former(steps[1], 14))))
    alone = Refold(steps[1])
    for refold in (both, every, alone):
        fold(refold, [*EVENTS, *more])
    inherited, fresh = list(range(12)), list(range(12, 16))
    assert checked(both, child, 0.05) == fresh
    assert checked(both, child, 0.2) == inherited + fresh
    assert checked(both, child, 0.005) == []
    assert checked(alone, child, 0.05) == inherited + fresh
    # Behind a second seam k2 carries what the child was off, and not what the parent was.
    assert checked(every, present, 0.05) == fresh
    assert checked(every, present, 0.005) == []
    plain = fold(Refold(steps[2]), [*EVENTS, *more])
    assert checked(plain, present, 0.005) == inherited + fresh


@pytest.mark.parametrize("watermark", [14, 16])
def test_only_states_that_carry_a_parent_s_may_be_off_as_it_was(
    parent: Bundle, child: Bundle, watermark: int
) -> None:
    """Also where the child has folded nothing yet: the watermark is its seam."""
    steps = OfflineStep(loose(parent, 0.1)), OfflineStep(child)
    more = [(b"k2", json.dumps({"a": 1, "b": 1, "time": 12 + n})) for n in range(4)]
    refold = Refold(steps[1], Origin(formers=(Former(steps[0], 14),)))
    fold(refold, [*EVENTS, *more][:12])
    if watermark == 16:
        for offset in (14, 15):
            key, value = more[offset - 12]
            refold.fold(offset, offset, key, value.encode())
    findings = Findings(keep=99)
    held = stored(
        f"{parent.id}@14", L=refold.fingerprint, S=str(refold.stream_ms), W=str(watermark),
        K=str(1 + len(refold.states)),
    )  # fmt: skip
    states = {key: off(refold, key, state) for key, state in refold.states.items()}
    held = replace(held, states=states, fields=held.fields + len(states))
    check_states(child, Place("in", "out", 0, 0, watermark), refold, held, findings)
    wrong = [one.where.split()[1] for one in findings.examples.get(Fault.WRONG_STATE, [])]
    assert wrong == (["'k2'"] if watermark == 16 else [])
    assert findings.states == len(states)


def test_what_was_emitted_near_a_limit_is_as_unsure_as_the_key_s_numbers(
    parent: Bundle, child: Bundle
) -> None:
    emit = Emit("when", above=1.0)
    one, other = loose(parent, 0.1), child
    folders = Folders(
        [
            Former(OfflineStep(one), 7, OfflineEmit(emit, one)),
            Former(OfflineStep(other), 99, OfflineEmit(emit, other)),
        ]
    )
    near = Stepped(np.array([1.05], np.float32), [], UNJUDGED, [])
    due = []
    for now, since in ((0, 0), (1, 0), (1, 1)):
        rule = folders.of(now, since).rule
        assert rule is not None
        due.append(rule.one(near, Memory())[0])
    assert due == [Due.MAY, Due.MAY, Due.MUST]
    numbers = [folders.number(offset) for offset in (0, 6, 7, 98)]
    assert numbers == [0, 0, 1, 1]


def off(refold: Refold, key: bytes, state: KeyState) -> bytes:
    """Return a key's stored state whose numbers are all off by 0.05."""
    numbers = b"".join((tensor[0] + np.float32(0.05)).tobytes() for tensor in state.tensors)
    rest = struct.pack("<BQqqq", 0, state.steps, state.offset, state.time_ms, state.touched_ms)
    rest += numbers
    return struct.pack("<BI", 2, crc32(key + rest)) + rest


@pytest.mark.parametrize("text", ["bundle", "bundle@", "bundle@x"])
def test_a_lineage_that_cannot_be_read_is_named(text: str, child: Bundle) -> None:
    with pytest.raises(Crash, match="#I: expected BUNDLE@OFFSET, got"):
        formers(stored(text), 0, {}, child)


def test_a_hash_counts_its_lineage_and_nothing_else(child: Bundle, parent: Bundle) -> None:
    refold = Refold(OfflineStep(child))
    place = Place("in", "out", 0, 0, 0)
    for meta, wrong in (({"K": "1"}, 0), ({"K": "0"}, 1), ({"K": "1", "X": ""}, 2)):
        held = stored(f"{parent.id}@0", L="", S="", **meta)
        findings = Findings()
        check_states(child, place, refold, held, findings)
        assert findings.counts[Fault.WRONG_STATE] == wrong, meta


def test_the_largest_tolerance_of_all_counts(parent: Bundle, child: Bundle) -> None:
    wider = loose(parent, 1e-3)
    scales = [one.golden.scale() for one in (wider, child)]
    widened = lenient(child, [wider]).manifest.tolerance
    assert widened == pytest.approx(1e-3 * scales[0] / scales[1])
    assert lenient(child, []).manifest.tolerance == contract.TOLERANCE
    assert lenient(wider, [parent]).manifest.tolerance == 1e-3


def test_another_group_s_predictions_below_its_seam_are_its_parent_s() -> None:
    seams = Seams(
        "mine", "other", ((20, "mine"),), others={"other": Other(0, 20, "c", (("p", 9),))}
    )
    assert [seams.foreign(offset, "p") for offset in (8, 9)] == [False, True]
    assert not seams.foreign(9, "c")
