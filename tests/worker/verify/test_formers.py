"""The offline fold of inherited states: who folds what, and what cannot be judged without whom."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fine_tune import fine_tuned
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.worker.errors import Crash
from keyfold.worker.verify.compare import Place
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.formers import Former, formers, lenient
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.refold import Origin, Refold
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


def fold(refold: Refold) -> Refold:
    for offset, (key, value) in enumerate(EVENTS):
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


def test_what_was_inherited_cannot_be_judged_without_the_parent(parent: Bundle) -> None:
    said = stored(f"{parent.id}@7,0123456789abcdef@9")
    with pytest.raises(Crash) as refused:
        formers(said, 0, {parent.id: (OfflineStep(parent), None)})
    assert str(refused.value) == (
        f"{NAME}: its states below offset 9 are inherited from bundle 0123456789abcdef: nothing "
        "from there on can be judged without it: --parent bundles/0123456789abcdef"
    )
    both = {one: (OfflineStep(parent), None) for one in (parent.id, "0123456789abcdef")}
    assert [one.upto for one in formers(said, 0, both)] == [7, 9]
    assert [one.upto for one in formers(said, 7, both)] == [9]


def test_nobody_is_needed_where_nothing_was_inherited_or_none_of_it_is_left() -> None:
    for one in (None, stored(None), stored("0123456789abcdef@9")):
        assert formers(one, 9, {}) == ()


@pytest.mark.parametrize("text", ["bundle", "bundle@", "bundle@x"])
def test_a_lineage_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(Crash, match="#I: expected BUNDLE@OFFSET, got"):
        formers(stored(text), 0, {})


def test_a_hash_counts_its_lineage_and_nothing_else(child: Bundle, parent: Bundle) -> None:
    refold = Refold(OfflineStep(child))
    place = Place("in", "out", 0, 0, 0)
    for meta, wrong in (({"K": "1"}, 0), ({"K": "0"}, 1), ({"K": "1", "X": ""}, 2)):
        held = stored(f"{parent.id}@0", L="", S="", **meta)
        findings = Findings()
        check_states(child, place, refold, held, findings)
        assert findings.counts[Fault.WRONG_STATE] == wrong, meta


def test_the_largest_tolerance_of_all_counts(parent: Bundle, child: Bundle) -> None:
    loose = replace(parent, manifest=replace(parent.manifest, tolerance=1e-3))
    scales = [one.golden.scale() for one in (loose, child)]
    widened = lenient(child, [loose]).manifest.tolerance
    assert widened == pytest.approx(1e-3 * scales[0] / scales[1])
    assert lenient(child, []).manifest.tolerance == contract.TOLERANCE
    assert lenient(loose, [parent]).manifest.tolerance == 1e-3


def test_another_group_s_predictions_below_its_seam_are_its_parent_s() -> None:
    seams = Seams(
        "mine", "other", ((20, "mine"),), others={"other": Other(0, 20, "c", (("p", 9),))}
    )
    assert [seams.foreign(offset, "p") for offset in (8, 9)] == [False, True]
    assert not seams.foreign(9, "c")
