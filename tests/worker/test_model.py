"""The ONNX Runtime step: loads only what computes what it promises, and is exact over groupings.

The results of a row must be bit-identical whatever stands beside it: the promise of the fold rests
on it. Graphs are tiny and made by hand. Needs no service.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle, tiny_graph

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, StateSpec
from keyfold.export.errors import BundleError
from keyfold.export.events import OutputSpec
from keyfold.worker.model import Model

States = dict[str, NDArray[Any]]
Signature = dict[str, tuple[str, list[Any]]]


def resave(bundle: Bundle, folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    """Write a bundle again with a changed manifest or graph, hashes and id being right."""
    graph = bundle.step_path.read_bytes() if graph is None else graph
    return contract.save(folder, replace(bundle.manifest, **changes), graph, bundle.golden)


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return make_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "other"


def draw(model: Model, rows: int, steps: int, seed: int = 0) -> tuple[NDArray[np.float32], States]:
    manifest = model.bundle.manifest
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (rows, steps, len(manifest.features.columns))).astype(np.float32)
    states = {
        s.input: random.normal(0, 0.5, (rows, *s.dims)).astype(s.dtype) for s in manifest.states
    }
    return x, states


def test_good_bundle_loads_and_reproduces_its_golden_sequences(tiny: Bundle) -> None:
    assert Model.load(tiny.path).golden_difference == 0.0


def test_graph_that_is_no_graph_is_refused(tiny: Bundle, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"step\.onnx: ONNX Runtime cannot load it"):
        Model.load(resave(tiny, folder, b"no graph"))


def test_state_that_the_graph_does_not_have_is_refused_by_name(tiny: Bundle, folder: Path) -> None:
    states = (*tiny.manifest.states, StateSpec("z", "z_out", (4,)))
    path = resave(tiny, folder, states=states)
    with pytest.raises(
        BundleError, match=r"expected inputs \['c', 'h', 'lengths', 'x', 'z'\], got"
    ):
        Model.load(path)


def test_state_of_another_size_is_refused_by_name(tiny: Bundle, folder: Path) -> None:
    h, c = tiny.manifest.states
    path = resave(tiny, folder, states=(replace(h, dims=(5,)), c))
    with pytest.raises(BundleError, match=r"input 'h': expected tensor\(float\) \[None, 5\], got"):
        Model.load(path)


def test_state_of_another_type_is_refused_by_name(tiny: Bundle, folder: Path) -> None:
    h, c = tiny.manifest.states
    path = resave(tiny, folder, states=(replace(h, dtype="int64"), c))
    with pytest.raises(BundleError, match=r"input 'h': expected tensor\(int64\)"):
        Model.load(path)


def test_float64_state_is_called_double_by_onnx_runtime(tiny: Bundle) -> None:
    h, c = tiny.manifest.states
    manifest = replace(tiny.manifest, states=(replace(h, dtype="float64"), c))
    inputs: Signature = {
        "x": ("tensor(float)", ["B", "T", 2]),
        "lengths": ("tensor(int32)", ["B"]),
        "h": ("tensor(double)", ["B", 4]),
        "c": ("tensor(float)", ["B", 4]),
    }
    outputs: Signature = {
        "y": ("tensor(float)", ["B", "T", 1]),
        "h_out": ("tensor(double)", ["B", 4]),
        "c_out": ("tensor(float)", ["B", 4]),
    }
    contract.check_signature(replace(tiny, manifest=manifest), inputs, outputs)


def test_other_number_of_outputs_is_refused(tiny: Bundle, folder: Path) -> None:
    graph = tiny_graph(2, 4, 2, "regression", 0)
    with pytest.raises(BundleError, match=r"output 'y': expected .* \[None, None, 1\], got"):
        Model.load(resave(tiny, folder, graph))


def test_other_number_of_features_is_refused(tiny: Bundle, folder: Path) -> None:
    graph = tiny_graph(3, 4, 1, "regression", 0)
    with pytest.raises(BundleError, match=r"input 'x': expected .* \[None, None, 2\], got"):
        Model.load(resave(tiny, folder, graph))


def test_graph_with_a_fixed_number_of_rows_is_refused(tiny: Bundle, folder: Path) -> None:
    graph = onnx.load_from_string(tiny.step_path.read_bytes())
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(BundleError, match=r"input 'x': expected .* \[None, None, 2\], got .*\[3, "):
        Model.load(resave(tiny, folder, graph.SerializeToString()))


def test_graph_that_computes_something_else_is_refused(tiny: Bundle, folder: Path) -> None:
    graph = tiny_graph(2, 4, 1, "regression", 1)
    with pytest.raises(BundleError, match=r"golden sequences, whole sequences: expected outputs"):
        Model.load(resave(tiny, folder, graph))


def test_graph_that_does_not_carry_its_state_is_refused(tiny: Bundle, folder: Path) -> None:
    # h and c exchanged on the way out: whole sequences are right, carried ones are not.
    h, c = tiny.manifest.states
    states = (replace(h, output="c_out"), replace(c, output="h_out"))
    with pytest.raises(BundleError, match=r"golden sequences, one step at a time"):
        Model.load(resave(tiny, folder, states=states))


def test_graph_with_outputs_that_are_not_finite_is_refused(tiny: Bundle, folder: Path) -> None:
    golden = replace(tiny.golden, y=np.full_like(tiny.golden.y, np.nan))
    path = contract.save(folder, tiny.manifest, tiny.step_path.read_bytes(), golden)
    with pytest.raises(BundleError, match="golden sequences"):
        Model.load(path)


def test_step_does_not_change_its_inputs(tiny: Bundle) -> None:
    model = Model(tiny)
    x, states = draw(model, 3, 2)
    before = x.copy(), {name: value.copy() for name, value in states.items()}
    model.step(x, np.array([2, 1, 2], np.int32), states)
    np.testing.assert_array_equal(x, before[0])
    for name, value in states.items():
        np.testing.assert_array_equal(value, before[1][name])


def test_padding_beyond_a_row_s_length_counts_for_nothing(tiny: Bundle) -> None:
    model = Model(tiny)
    x, states = draw(model, 2, 5)
    lengths = np.array([5, 2], np.int32)
    y, after = model.step(x, lengths, states)
    x[1, 2:] = np.nan
    y_nan, after_nan = model.step(x, lengths, states)
    np.testing.assert_array_equal(y_nan[1, :2], y[1, :2])
    for name in after:
        np.testing.assert_array_equal(after_nan[name], after[name])


def test_too_few_rows_are_padded_and_the_padding_is_cut_off(tiny: Bundle, folder: Path) -> None:
    padded = Model.load(resave(tiny, folder, min_rows=4))
    plain = Model(tiny)
    for rows in (1, 3, 4, 5):
        x, states = draw(plain, rows, 3)
        lengths = np.arange(rows, dtype=np.int32) % 3 + 1
        y, after = padded.step(x, lengths, states)
        want_y, want_after = plain.step(x, lengths, states)
        assert y.shape == (rows, 3, 1)
        valid = np.arange(3) < lengths[:, None]
        np.testing.assert_array_equal(y[valid], want_y[valid])
        for name, value in after.items():
            np.testing.assert_array_equal(value, want_after[name])


@pytest.mark.parametrize("kind", ["regression", "classification"])
@pytest.mark.parametrize("hidden", [4, 33, 64])
def test_result_of_a_row_is_bit_identical_beside_any_others(
    kind: Any, hidden: int, tmp_path: Path
) -> None:
    names = [f"f{number}" for number in range(5)]
    model = Model(make_tiny_bundle(tmp_path, features=names, hidden=hidden, kind=kind))
    x, states = draw(model, 512, 3)
    lengths = np.full(512, 3, np.int32)
    want, want_after = model.step(x, lengths, states)
    for rows in (1, 2, 3, 5, 8, 17, 64, 255):
        part = slice(100, 100 + rows)
        some = {name: value[part] for name, value in states.items()}
        y, after = model.step(x[part], lengths[part], some)
        np.testing.assert_array_equal(y, want[part])
        for name, value in after.items():
            np.testing.assert_array_equal(value, want_after[name][part])


def test_outputs_of_many_classes_are_bit_identical_beside_any_others(tmp_path: Path) -> None:
    # A wide dense head: one matrix product of (rows, H) by (H, O), whatever `rows` is.
    tiny = make_tiny_bundle(tmp_path, hidden=48)
    graph = tiny_graph(2, 48, 100, "classification", 3)
    outputs = OutputSpec("classification", tuple(map(str, range(100))))
    golden_y = np.zeros((3, 7, 100), np.float32)
    manifest = replace(tiny.manifest, outputs=outputs, tolerance=10.0)
    golden = replace(tiny.golden, y=golden_y)
    model = Model.load(contract.save(tmp_path / "wide", manifest, graph, golden))
    x, states = draw(model, 300, 1)
    want, _ = model.step(x, np.ones(300, np.int32), states)
    for rows in (1, 2, 3, 4, 7, 16, 100):
        y, _ = model.step(
            x[:rows], np.ones(rows, np.int32), {n: v[:rows] for n, v in states.items()}
        )
        np.testing.assert_array_equal(y, want[:rows])
