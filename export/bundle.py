"""The bundle: the folder that training leaves and serving reads. This file is the contract.

A bundle holds `step.onnx`, where something is answered by symbols `decode.onnx`, `golden.npz` and
`manifest.json`, which manifest.py owns. This module owns loading, saving and the checks that need
no runtime; it imports numpy and the standard library only. Called by export (save), the worker and
keyfold-verify (load, then `check_golden` with their own step).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.calls import in_calls
from keyfold.export.decode_graph import DECODE, GoldenAnswers, golden_difference
from keyfold.export.errors import BundleError
from keyfold.export.manifest import GOLDEN as GOLDEN
from keyfold.export.manifest import ID_LENGTH as ID_LENGTH
from keyfold.export.manifest import MAX_STATE_BYTES as MAX_STATE_BYTES
from keyfold.export.manifest import STEP as STEP
from keyfold.export.manifest import TOLERANCE as TOLERANCE
from keyfold.export.manifest import VERSION as VERSION
from keyfold.export.manifest import Manifest as Manifest
from keyfold.export.manifest import hash_of
from keyfold.export.states import DTYPES, cold
from keyfold.export.states import StateSpec as StateSpec
from keyfold.export.states import Tensors as Tensors

MANIFEST = "manifest.json"

# (x (B,T,F), lengths (B,), states) -> (y (B,T,O), new states under their input names)
StepFunction = Callable[
    [NDArray[np.float32], NDArray[np.int32], Tensors], tuple[NDArray[np.float32], Tensors]
]


@dataclass(frozen=True, slots=True)
class Golden:
    """Sequences with known outputs: R sequences of up to T steps from the initial state."""

    x: NDArray[np.float32]  # (R,T,F)
    lengths: NDArray[np.int32]  # (R,)
    y: NDArray[np.float32]  # (R,T,O); steps beyond a row's length are 0
    answers: GoldenAnswers | None = None  # of a bundle with a decode graph

    def scale(self) -> float:
        """Return max(1, RMS of the outputs): what a tolerance is relative to."""
        valid = self.y[np.arange(self.y.shape[1]) < self.lengths[:, None]]
        return max(1.0, float(np.sqrt(np.mean(np.square(valid, dtype=np.float64)))))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle whose files are what its manifest says."""

    path: Path  # the folder
    manifest: Manifest  # the promises
    golden: Golden  # the proof
    id: str  # as it stands in predictions and in Redis; a later minor version may hash more

    @property
    def step_path(self) -> Path:
        """Where the step graph is."""
        return self.path / STEP

    @property
    def decode_path(self) -> Path:
        """Where the decode graph is, if there is one."""
        return self.path / DECODE


def initial_states(manifest: Manifest, rows: int) -> dict[str, NDArray[Any]]:
    """Return the graph's states of `rows` cold keys: (rows, *dims) under its input names."""
    return cold(manifest.states, rows)


def kept_states(manifest: Manifest, rows: int) -> dict[str, NDArray[Any]]:
    """Return all states of `rows` cold keys: (rows, *dims) by name, in storage order."""
    return cold(manifest.kept, rows)


def save(
    folder: Path, manifest: Manifest, graph: bytes, golden: Golden, decode: bytes | None = None
) -> Path:
    """Write a bundle to folder/<id> and return that path; nothing is left behind on failure.

    Hashes in `manifest` are filled in here. An existing folder of the same id is kept: the same id
    is the same content.
    """
    temporary = folder / f".partial-{hashlib.sha256(graph).hexdigest()[:ID_LENGTH]}"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        (temporary / STEP).write_bytes(graph)
        arrays: dict[str, Any] = {"x": golden.x, "lengths": golden.lengths, "y": golden.y}
        if manifest.decode is not None and decode is not None and golden.answers is not None:
            (temporary / DECODE).write_bytes(decode)
            sha256 = _sha256(temporary / DECODE)
            manifest = replace(manifest, decode=replace(manifest.decode, sha256=sha256))
            said = golden.answers
            arrays |= {"said": said.x, "said_lengths": said.lengths, "said_y": said.y}
        np.savez_compressed(temporary / GOLDEN, **arrays)
        manifest = replace(
            manifest,
            step_sha256=_sha256(temporary / STEP),
            golden_sha256=_sha256(temporary / GOLDEN),
        )
        manifest.check()
        text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        target = folder / manifest.id
        if not target.exists():
            temporary.rename(target)
        return target
    finally:
        for leftover in temporary.glob("*"):
            leftover.unlink()
        if temporary.exists():
            temporary.rmdir()


def load(path: Path) -> Bundle:
    """Read a bundle and check its files against its manifest.

    Raises BundleError: missing or malformed manifest, another major version, a changed file, an id
    that is not the hash of the content, a state larger than MAX_STATE_BYTES. Whoever runs the graph
    calls check_golden next.
    """
    try:
        data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: expected a bundle, got no {MANIFEST}") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"{path / MANIFEST}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path / MANIFEST}: expected a JSON object")
    manifest = Manifest.from_json(data)
    hashes = {STEP: manifest.step_sha256, GOLDEN: manifest.golden_sha256}
    if manifest.decode is not None:
        hashes[DECODE] = manifest.decode.sha256
    for name, expected in hashes.items():
        got = _sha256(path / name)
        if got != expected:
            raise BundleError(f"{path / name}: expected SHA-256 {expected}, got {got}")
    content = {name: data[name] for name in data if name not in ("id", "golden", "provenance")}
    if hash_of(content) != data.get("id"):
        raise BundleError(
            f"{path / MANIFEST}: expected id {hash_of(content)} (the hash of the content), "
            f"got {data.get('id')}"
        )
    return Bundle(path, manifest, _load_golden(path / GOLDEN, manifest), data["id"])


def check_golden(bundle: Bundle, step: StepFunction) -> float:
    """Replay the golden sequences with `step`, one step at a time and in calls as long as may be.

    Returns the largest difference. Raises BundleError when it is above the manifest's tolerance.
    """
    manifest, golden = bundle.manifest, bundle.golden
    states: Tensors = initial_states(manifest, len(golden.x))
    whole, _ = in_calls(step, manifest.max_steps)(golden.x, golden.lengths, states)
    ones = np.ones(len(golden.x), np.int32)
    carried = []
    for t in range(golden.x.shape[1]):
        # Rows beyond their length step on unheeded: their outputs are not compared.
        y, states = step(golden.x[:, t : t + 1], ones, states)
        carried.append(y)
    valid = np.arange(golden.x.shape[1]) < golden.lengths[:, None]
    allowed = manifest.tolerance * golden.scale()
    worst = 0.0
    for how, y in (("whole sequences", whole), ("one step at a time", np.concatenate(carried, 1))):
        difference = float(np.abs(y - golden.y)[valid].max())
        if not difference <= allowed:
            raise BundleError(
                f"{bundle.path / STEP}: golden sequences, {how}: expected outputs within "
                f"{allowed:.3g}, got a difference of {difference:.3g}"
            )
        worst = max(worst, difference)
    return worst


def check_signature(
    bundle: Bundle,
    inputs: Mapping[str, tuple[str, list[Any]]],
    outputs: Mapping[str, tuple[str, list[Any]]],
) -> None:
    """Compare the graph's names, element types and shapes (name -> (type, dims)) with the manifest.

    Types are ONNX Runtime's ("tensor(float)"); symbolic dims are anything but a number. Raises
    BundleError naming what is missing, extra or different.
    """
    manifest = bundle.manifest
    _check_graph(
        bundle.step_path,
        (len(manifest.features.columns), manifest.width),
        manifest.states,
        (inputs, outputs),
    )


def check_decode_signature(
    bundle: Bundle,
    inputs: Mapping[str, tuple[str, list[Any]]],
    outputs: Mapping[str, tuple[str, list[Any]]],
) -> None:
    """Compare the decode graph with the manifest, as check_signature does the step graph."""
    manifest = bundle.manifest
    states = () if manifest.decode is None else manifest.decode.states
    sizes = (1, len(manifest.outputs.names))
    _check_graph(bundle.decode_path, sizes, states, (inputs, outputs))


def check_answers(bundle: Bundle, step: StepFunction, decode: StepFunction) -> float:
    """Replay the golden answers: read the golden sequences with `step`, then say with `decode`.

    Returns the largest difference. Raises BundleError when it is above the manifest's tolerance.
    """
    manifest, golden = bundle.manifest, bundle.golden
    if manifest.decode is None or golden.answers is None:
        raise BundleError(f"{bundle.path}: expected a decode graph and golden answers, got none")
    states = initial_states(manifest, len(golden.x))
    _, read = in_calls(step, manifest.max_steps)(golden.x, golden.lengths, states)
    begun = manifest.decode.begun(read, len(golden.x))
    worst = golden_difference(golden.answers, begun, decode)
    if not worst <= manifest.tolerance:
        raise BundleError(
            f"{bundle.decode_path}: golden answers: expected probabilities within "
            f"{manifest.tolerance:.3g}, got a difference of {worst:.3g}"
        )
    return worst


def _check_graph(
    path: Path,
    sizes: tuple[int, int],
    states: tuple[StateSpec, ...],
    got_values: tuple[Mapping[str, tuple[str, list[Any]]], Mapping[str, tuple[str, list[Any]]]],
) -> None:
    """Compare a graph's inputs and outputs with what they have to be; `sizes`: of x and y."""
    (features, targets), (inputs, outputs) = sizes, got_values
    expected_in: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "x": ("tensor(float)", (None, None, features)),
        "lengths": ("tensor(int32)", (None,)),
    }
    expected_out: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "y": ("tensor(float)", (None, None, targets))
    }
    for state in states:
        kind = f"tensor({DTYPES[state.dtype]})"
        expected_in[state.input] = (kind, (None, *state.dims))
        expected_out[state.output] = (kind, (None, *state.dims))
    for what, expected, got in (("input", expected_in, inputs), ("output", expected_out, outputs)):
        if set(expected) != set(got):
            raise BundleError(f"{path}: expected {what}s {sorted(expected)}, got {sorted(got)}")
        for name, (kind, dims) in expected.items():
            if not _fits(kind, dims, *got[name]):
                raise BundleError(
                    f"{path}: {what} {name!r}: expected {kind} {list(dims)}, "
                    f"got {got[name][0]} {got[name][1]}"
                )


def _fits(kind: str, dims: tuple[int | None, ...], got_kind: str, got_dims: list[Any]) -> bool:
    if kind != got_kind or len(dims) != len(got_dims):
        return False
    # A free dimension must be free, a fixed one fixed (or left open by the exporter).
    return all(
        not isinstance(got, int) if want is None else (got == want or not isinstance(got, int))
        for want, got in zip(dims, got_dims, strict=True)
    )


def _load_golden(path: Path, manifest: Manifest) -> Golden:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            golden = Golden(arrays["x"], arrays["lengths"], arrays["y"])
            if manifest.decode is not None:
                said = (arrays[name] for name in ("said", "said_lengths", "said_y"))
                golden = replace(golden, answers=GoldenAnswers(*said))
    except (KeyError, ValueError, OSError) as error:
        raise BundleError(f"{path}: expected arrays x, lengths and y: {error}") from error
    rows, steps, features = golden.x.shape
    want = (rows, steps, manifest.width)
    if features != len(manifest.features.columns) or golden.y.shape != want:
        raise BundleError(f"{path}: expected y of shape {want}, got {golden.y.shape}")
    return golden


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: not readable: {error.strerror}") from error
