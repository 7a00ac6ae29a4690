"""The bundle: what is written is what is read, and whatever was changed is refused.

Spoils single files and members of a real, tiny bundle and holds the message: what, where, expected,
got. The runtime's part of the checks is tested in tests/worker/test_model.py. Needs no service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export import manifest
from keyfold.export.bundle import Bundle, Manifest, StateSpec
from keyfold.export.errors import BundleError
from keyfold.export.events import Anomaly, EventSpec, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field

Data = dict[str, Any]


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return make_tiny_bundle(tmp_path)


def spoil(bundle: Bundle, change: Callable[[Data], object]) -> Path:
    """Rewrite a bundle's manifest, id included."""
    file = bundle.path / contract.MANIFEST
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return bundle.path


def test_loaded_bundle_is_what_was_saved(tiny: Bundle) -> None:
    again = contract.load(tiny.path)
    assert again.manifest == tiny.manifest
    assert again.id == tiny.id == tiny.path.name
    assert json.loads((tiny.path / contract.MANIFEST).read_text())["id"] == tiny.id
    np.testing.assert_array_equal(again.golden.y, tiny.golden.y)


def test_same_content_saved_twice_is_one_folder(tiny: Bundle) -> None:
    assert make_tiny_bundle(tiny.path.parent).path == tiny.path
    assert [p.name for p in tiny.path.parent.iterdir()] == [tiny.id]


def test_id_depends_on_all_that_decides_a_prediction_and_on_nothing_else(tiny: Bundle) -> None:
    manifest = tiny.manifest
    same = replace(manifest, provenance={"by": "another"}, golden_sha256="0")
    assert same.id == manifest.id
    others = [
        replace(manifest, step_sha256="0"),
        replace(manifest, min_rows=2),
        replace(manifest, max_steps=1),
        replace(manifest, tolerance=1e-4),
        replace(manifest, events=replace(manifest.events, tombstone="reset")),
        replace(manifest, events=replace(manifest.events, time_unit="s")),
        replace(manifest, states=manifest.states[::-1]),
        replace(manifest, states=(replace(manifest.states[0], initial=1.0), manifest.states[1])),
    ]
    assert len({manifest.id, *(other.id for other in others)}) == 1 + len(others)


def test_failed_save_leaves_nothing_behind(tiny: Bundle, tmp_path: Path) -> None:
    huge = replace(tiny.manifest, states=(StateSpec("h", "h_out", (1 << 20,)),))
    folder = tmp_path / "other"
    with pytest.raises(BundleError, match="expected at most 65536 bytes a key, got 4194304"):
        contract.save(folder, huge, b"graph", tiny.golden)
    assert list(folder.iterdir()) == []


def test_state_of_exactly_the_limit_is_accepted(tiny: Bundle, tmp_path: Path) -> None:
    largest = replace(tiny.manifest, states=(StateSpec("h", "h_out", (1 << 14,)),))
    assert largest.state_bytes == contract.MAX_STATE_BYTES
    contract.save(tmp_path / "other", largest, b"graph", tiny.golden)


@pytest.mark.parametrize("name", [contract.STEP, contract.GOLDEN])
def test_changed_file_is_refused_by_name_and_hashes(tiny: Bundle, name: str) -> None:
    with (tiny.path / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=rf"{re.escape(name)}: expected SHA-256 \w+, got \w+"):
        contract.load(tiny.path)


@pytest.mark.parametrize("name", [contract.STEP, contract.GOLDEN])
def test_missing_file_is_refused_by_name(tiny: Bundle, name: str) -> None:
    (tiny.path / name).unlink()
    with pytest.raises(BundleError, match=rf"{re.escape(name)}: not readable: No such file"):
        contract.load(tiny.path)


def test_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a bundle, got no manifest\.json"):
        contract.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_manifest_that_is_no_json_object_is_refused(tiny: Bundle, text: str) -> None:
    (tiny.path / contract.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"manifest\.json: (not readable|expected a JSON object)"):
        contract.load(tiny.path)


def _set(*path: str | int, value: object) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        at: Any = data
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


SPOILED: dict[str, tuple[Callable[[Data], object], str]] = {
    "another format": (_set("format", value="x"), "expected format 'keyfold-bundle', got 'x'"),
    "later major": (_set("version", value="2.0"), "expected version 1.x, got '2.0'"),
    "no version": (lambda data: data.pop("version"), "expected version 1.x, got None"),
    "no states": (lambda data: data.pop("states"), "expected member 'states', got none"),
    "no step": (lambda data: data.pop("step"), "expected member 'step', got none"),
    "states no list": (_set("states", value=3), "manifest: "),
    "state a number": (_set("states", 0, value=3), "manifest: "),
    "another codec": (_set("events", "codec", value="xml"), "avro, got 'xml'"),
    "names repeated": (_set("states", 1, "input", value="h"), "expected distinct names"),
    "name of x": (_set("states", 1, "input", value="x"), "expected distinct names"),
    "changed id": (_set("id", value="0"), "expected id"),
    "changed meaning": (_set("step", "max_steps", value=3), "(the hash of the content), got"),
    "unknown dtype": (_set("states", 0, "dtype", value="float33"), "manifest: "),
    "no rows": (_set("step", "min_rows", value=0), "min_rows"),
    "rows as text": (_set("step", "min_rows", value="2"), "min_rows"),
    "no steps": (_set("step", "max_steps", value=0), "max_steps"),
    "no tolerance": (_set("tolerance", value=-1.0), "tolerance"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_manifest_that_promises_something_else_is_refused(tiny: Bundle, case: str) -> None:
    change, message = SPOILED[case]
    path = spoil(tiny, change)
    with pytest.raises(BundleError, match=re.escape(message)):
        contract.load(path)


def test_manifest_of_a_later_minor_version_is_readable(tmp_path: Path) -> None:
    # What a later writer would leave: its id is the hash over its own semantic part.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "FIRST_VERSION", "1.9")
        newer = make_tiny_bundle(tmp_path)
    assert json.loads((newer.path / contract.MANIFEST).read_text())["version"] == "1.9"
    assert contract.load(newer.path).id == newer.id


DEMO = Path(__file__).parents[2] / "deploy" / "local" / "demo" / "bundle"


def test_bundle_of_version_1_0_keeps_its_id_and_its_bytes() -> None:
    text = (DEMO / contract.MANIFEST).read_text()
    loaded = contract.load(DEMO)
    assert json.loads(text)["version"] == "1.0"
    assert loaded.id == loaded.manifest.id == json.loads(text)["id"] == "328e96a36b5d910e"
    assert json.dumps(loaded.manifest.to_json(), indent=2, ensure_ascii=False) + "\n" == text
    assert loaded.manifest.kept == loaded.manifest.states


SCORED = OutputSpec.of_forecast(Forecast(("a",), (1, 2)), Anomaly((0.5,), 3.0, 0.001))
NEWER = {
    "features": FeatureSpec((Field("a", missing="last"), Field("b")), since_last=True),
    "outputs": SCORED,
    "events": EventSpec(time_field="t", time_unit="iso", time_zone="Europe/Berlin"),
}


@pytest.mark.parametrize("member", NEWER)
def test_manifest_says_1_1_only_where_it_needs_it(tiny: Bundle, member: str) -> None:
    assert tiny.manifest.version == "1.0"
    newer = replace(tiny.manifest, **{member: NEWER[member]})  # type: ignore[arg-type]
    assert newer.version == "1.1"
    assert newer.id != tiny.manifest.id
    assert Manifest.from_json(json.loads(json.dumps(newer.to_json()))) == newer


def test_what_is_kept_of_a_key_is_the_graph_s_tensors_and_those_around_it(tiny: Bundle) -> None:
    newer = replace(tiny.manifest, features=NEWER["features"], outputs=SCORED)  # type: ignore[arg-type]
    assert [state.input for state in newer.kept] == [
        "h",
        "c",
        "front.last",
        "front.time_ms",
        "back.forecast",
    ]
    assert newer.state_bytes == tiny.manifest.state_bytes + 4 + 8 + 4
    kept = contract.kept_states(newer, 3)
    assert list(kept) == [state.input for state in newer.kept]
    assert np.isnan(kept["front.last"]).all()
    assert kept["front.time_ms"].tolist() == [np.iinfo(np.int64).min] * 3
    assert list(contract.initial_states(newer, 3)) == ["h", "c"]


@pytest.mark.parametrize("name", ["front.x", "back.forecast"])
def test_graph_s_states_leave_keyfold_s_own_names_free(tiny: Bundle, name: str) -> None:
    path = spoil(tiny, _set("states", 0, "input", value=name))
    with pytest.raises(BundleError, match=f"state {name!r}: expected a name that does not begin"):
        contract.load(path)


def test_forecast_of_a_category_is_refused(tiny: Bundle) -> None:
    features = FeatureSpec((Field("a", "category", ("x", "y")),))
    wrong = replace(tiny.manifest, features=features, outputs=SCORED)
    with pytest.raises(BundleError, match="expected numbers or booleans, got category 'a'"):
        Manifest.from_json(json.loads(json.dumps(wrong.to_json())))


def test_manifest_survives_its_json_form(tiny: Bundle) -> None:
    data = json.loads(json.dumps(tiny.manifest.to_json()))
    assert Manifest.from_json(data) == tiny.manifest


def test_golden_outputs_of_another_shape_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    golden = replace(tiny.golden, y=tiny.golden.y[:, :, [0, 0]])
    path = contract.save(tmp_path / "other", tiny.manifest, tiny.step_path.read_bytes(), golden)
    with pytest.raises(BundleError, match=r"expected y of shape \(3, 7, 1\), got \(3, 7, 2\)"):
        contract.load(path)


def test_initial_states_are_the_spec_s_value_and_type(tiny: Bundle) -> None:
    spec = StateSpec("n", "n_out", (2, 3), "int64", 7.0)
    states = contract.initial_states(replace(tiny.manifest, states=(spec,)), 2)
    assert states["n"].dtype == np.int64
    assert states["n"].tolist() == [[[7] * 3] * 2] * 2


def test_scale_of_golden_outputs_ignores_padding(tiny: Bundle) -> None:
    golden = replace(tiny.golden, y=np.full_like(tiny.golden.y, 3.0))
    golden.y[1, 1:] = 1e9
    golden.y[2, 4:] = np.nan
    assert golden.scale() == pytest.approx(3.0)
