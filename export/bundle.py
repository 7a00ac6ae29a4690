"""The bundle: the folder that training leaves and serving reads. This file is the contract.

A bundle holds `step.onnx`, `golden.npz` and `manifest.json`. The manifest says how an event becomes
the step's inputs, which tensors are a key's state, and what the outputs mean; its id is the hash of
everything that decides a prediction. This module owns the manifest's form, the id, loading, saving
and the checks that need no runtime; it imports numpy and the standard library only. Called by
export (save), the worker and keyfold-verify (load, then `check_golden` with their own step).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.anomaly import Back
from keyfold.export.columns import check_targets
from keyfold.export.errors import BundleError, SpecError
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.front import Front
from keyfold.export.states import DTYPES as DTYPES
from keyfold.export.states import OWN_PREFIXES, cold
from keyfold.export.states import StateSpec as StateSpec
from keyfold.export.states import Tensors as Tensors

FORMAT = "keyfold-bundle"
VERSION = "1.2"  # same major: readable
SECOND_VERSION = "1.1"  # of a manifest without text: likewise
FIRST_VERSION = "1.0"  # of a manifest that needs nothing newer: its id stays what it was
MANIFEST, STEP, GOLDEN = "manifest.json", "step.onnx", "golden.npz"
ID_LENGTH = 16  # hex digits of SHA-256
MAX_STATE_BYTES = 64 * 1024  # of one key; a larger one makes every save slow
TOLERANCE = 1e-5  # times max(1, RMS of the golden output): float32 noise across CPU kinds

# (x (B,T,F), lengths (B,), states) -> (y (B,T,O), new states under their input names)
StepFunction = Callable[
    [NDArray[np.float32], NDArray[np.int32], Tensors], tuple[NDArray[np.float32], Tensors]
]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle promises. All but `golden_sha256` and `provenance` decides its id."""

    events: EventSpec  # record -> event
    features: FeatureSpec  # event -> x, F = number of columns
    outputs: OutputSpec  # y -> prediction, O = number of names
    states: tuple[StateSpec, ...]  # the graph's tensors of a key's state
    step_sha256: str  # of step.onnx
    min_rows: int = 1  # smallest B at which a row's result is the same as at any other
    max_steps: int = 512  # largest T of one call
    tolerance: float = TOLERANCE  # of golden sequences and offline comparisons
    golden_sha256: str = ""  # of golden.npz
    provenance: Mapping[str, Any] = field(default_factory=dict)  # who, when, from what

    @property
    def id(self) -> str:
        """The bundle's id: SHA-256 over the canonical JSON of the semantic part."""
        return _hash(self._semantic())

    @property
    def kept(self) -> tuple[StateSpec, ...]:
        """All tensors of a key's state, in storage order: the graph's, then what is around it."""
        front, back = Front.of(self.features), Back.of(self.outputs)
        return (
            *self.states,
            *(front.states if front is not None else ()),
            *(back.states if back is not None else ()),
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one key's tensors."""
        return sum(state.bytes_per_key for state in self.kept)

    @property
    def version(self) -> str:
        """The oldest version whose readers understand this manifest."""
        first = (
            self.features.is_plain
            and self.events.is_first_version
            and self.outputs.forecast is None
        )
        if self.features.text is not None:
            return VERSION
        return FIRST_VERSION if first else SECOND_VERSION

    def _semantic(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "events": self.events.to_json(),
            "features": self.features.to_json(),
            "outputs": self.outputs.to_json(),
            "states": [
                {
                    "input": state.input,
                    "output": state.output,
                    "dtype": state.dtype,
                    "dims": list(state.dims),
                    "initial": state.initial,
                }
                for state in self.states
            ],
            "step": {
                "file": STEP,
                "sha256": self.step_sha256,
                "min_rows": self.min_rows,
                "max_steps": self.max_steps,
            },
            "tolerance": self.tolerance,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the manifest file's content."""
        return {
            "id": self.id,
            **self._semantic(),
            "golden": {"file": GOLDEN, "sha256": self.golden_sha256},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read a manifest file's content. Raises BundleError naming the member that is wrong."""
        _check_version(data)
        try:
            step = data["step"]
            manifest = cls(
                events=EventSpec.from_json(data["events"]),
                features=FeatureSpec.from_json(data["features"]),
                outputs=OutputSpec.from_json(data["outputs"]),
                states=tuple(
                    StateSpec(s["input"], s["output"], tuple(s["dims"]), s["dtype"], s["initial"])
                    for s in data["states"]
                ),
                step_sha256=step["sha256"],
                min_rows=step["min_rows"],
                max_steps=step["max_steps"],
                tolerance=data["tolerance"],
                golden_sha256=data["golden"]["sha256"],
                provenance=data["provenance"],
            )
        except KeyError as error:
            raise BundleError(f"manifest: expected member {error}, got none") from error
        except (TypeError, AttributeError, SpecError) as error:
            raise BundleError(f"manifest: {error}") from error
        _check_numbers(manifest)
        _check_states(manifest)
        _check_targets(manifest)
        _check_text(manifest)
        return manifest


@dataclass(frozen=True, slots=True)
class Golden:
    """Sequences with known outputs: R sequences of up to T steps from the initial state."""

    x: NDArray[np.float32]  # (R,T,F)
    lengths: NDArray[np.int32]  # (R,)
    y: NDArray[np.float32]  # (R,T,O); steps beyond a row's length are 0

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


def initial_states(manifest: Manifest, rows: int) -> dict[str, NDArray[Any]]:
    """Return the graph's states of `rows` cold keys: (rows, *dims) under its input names."""
    return cold(manifest.states, rows)


def kept_states(manifest: Manifest, rows: int) -> dict[str, NDArray[Any]]:
    """Return all states of `rows` cold keys: (rows, *dims) by name, in storage order."""
    return cold(manifest.kept, rows)


def save(folder: Path, manifest: Manifest, graph: bytes, golden: Golden) -> Path:
    """Write a bundle to folder/<id> and return that path; nothing is left behind on failure.

    Hashes in `manifest` are filled in here. An existing folder of the same id is kept: the same id
    is the same content.
    """
    temporary = folder / f".partial-{hashlib.sha256(graph).hexdigest()[:ID_LENGTH]}"
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        (temporary / STEP).write_bytes(graph)
        np.savez_compressed(temporary / GOLDEN, x=golden.x, lengths=golden.lengths, y=golden.y)
        manifest = replace(
            manifest,
            step_sha256=_sha256(temporary / STEP),
            golden_sha256=_sha256(temporary / GOLDEN),
        )
        _check_states(manifest)
        _check_text(manifest)
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
    for name, expected in ((STEP, manifest.step_sha256), (GOLDEN, manifest.golden_sha256)):
        got = _sha256(path / name)
        if got != expected:
            raise BundleError(f"{path / name}: expected SHA-256 {expected}, got {got}")
    content = {name: data[name] for name in data if name not in ("id", "golden", "provenance")}
    if _hash(content) != data.get("id"):
        raise BundleError(
            f"{path / MANIFEST}: expected id {_hash(content)} (the hash of the content), "
            f"got {data.get('id')}"
        )
    return Bundle(path, manifest, _load_golden(path / GOLDEN, manifest), data["id"])


def check_golden(bundle: Bundle, step: StepFunction) -> float:
    """Replay the golden sequences with `step`, one step at a time and in calls as long as may be.

    Returns the largest difference. Raises BundleError when it is above the manifest's tolerance.
    """
    manifest, golden = bundle.manifest, bundle.golden
    states: Tensors = initial_states(manifest, len(golden.x))
    whole = _in_calls(step, golden, manifest)
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


def _in_calls(step: StepFunction, golden: Golden, manifest: Manifest) -> NDArray[np.float32]:
    """Run the golden sequences in calls of at most max_steps steps."""
    states: Tensors = initial_states(manifest, len(golden.x))
    parts = []
    for first in range(0, golden.x.shape[1], manifest.max_steps):
        x = golden.x[:, first : first + manifest.max_steps]
        # A row that has ended steps on unheeded: a length of 0 gives no state.
        lengths = np.clip(golden.lengths - first, 1, x.shape[1]).astype(np.int32)
        y, states = step(x, lengths, states)
        parts.append(y)
    return np.concatenate(parts, axis=1)


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
    features, targets = len(manifest.features.columns), len(manifest.outputs.names)
    expected_in: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "x": ("tensor(float)", (None, None, features)),
        "lengths": ("tensor(int32)", (None,)),
    }
    expected_out: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "y": ("tensor(float)", (None, None, targets))
    }
    for state in manifest.states:
        kind = f"tensor({DTYPES[state.dtype]})"
        expected_in[state.input] = (kind, (None, *state.dims))
        expected_out[state.output] = (kind, (None, *state.dims))
    for what, expected, got in (("input", expected_in, inputs), ("output", expected_out, outputs)):
        if set(expected) != set(got):
            raise BundleError(
                f"{bundle.path / STEP}: expected {what}s {sorted(expected)}, got {sorted(got)}"
            )
        for name, (kind, dims) in expected.items():
            if not _fits(kind, dims, *got[name]):
                raise BundleError(
                    f"{bundle.path / STEP}: {what} {name!r}: expected {kind} {list(dims)}, "
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


def _check_version(data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise BundleError(f"manifest: expected format {FORMAT!r}, got {data.get('format')!r}")
    major = str(data.get("version", "")).partition(".")[0]
    if major != VERSION.partition(".")[0]:
        raise BundleError(
            f"manifest: expected version {VERSION.partition('.')[0]}.x, got {data.get('version')!r}"
        )


def _check_numbers(manifest: Manifest) -> None:
    for name in ("min_rows", "max_steps"):
        value = getattr(manifest, name)
        if not isinstance(value, int) or value < 1:
            raise BundleError(f"manifest: step.{name}: expected at least 1, got {value!r}")
    tolerance = manifest.tolerance
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise BundleError(f"manifest: tolerance: expected at least 0, got {tolerance!r}")


def _check_targets(manifest: Manifest) -> None:
    try:
        check_targets(manifest.features, manifest.outputs.targets)
    except SpecError as error:
        raise BundleError(f"manifest: {error}") from error


def _check_text(manifest: Manifest) -> None:
    """Refuse what has no meaning yet for events of several steps."""
    if manifest.features.text is None:
        return
    if manifest.outputs.forecast is not None:
        raise BundleError("manifest: outputs: expected no forecast with features.text, got one")
    if manifest.events.format == "packed":
        raise BundleError("manifest: events.codec: expected no 'packed' with features.text")


def _check_states(manifest: Manifest) -> None:
    for state in manifest.states:
        if state.dtype not in DTYPES:
            raise BundleError(
                f"manifest: state {state.input!r}: expected dtype {', '.join(DTYPES)}, "
                f"got {state.dtype!r}"
            )
    names = [state.input for state in manifest.states] + [s.output for s in manifest.states]
    if len(set(names)) != len(names) or {"x", "lengths", "y"} & set(names):
        raise BundleError(f"manifest: states: expected distinct names, got {names}")
    for name in names:
        if name.startswith(OWN_PREFIXES):
            raise BundleError(
                f"manifest: state {name!r}: expected a name that does not begin with "
                f"{' or '.join(OWN_PREFIXES)} (keyfold's own), rename it"
            )
    if manifest.state_bytes > MAX_STATE_BYTES:
        raise BundleError(
            f"manifest: states: expected at most {MAX_STATE_BYTES} bytes a key, "
            f"got {manifest.state_bytes}; use fewer units or a shorter window"
        )


def _load_golden(path: Path, manifest: Manifest) -> Golden:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            golden = Golden(arrays["x"], arrays["lengths"], arrays["y"])
    except (KeyError, ValueError, OSError) as error:
        raise BundleError(f"{path}: expected arrays x, lengths and y: {error}") from error
    rows, steps, features = golden.x.shape
    want = (rows, steps, len(manifest.outputs.names))
    if features != len(manifest.features.columns) or golden.y.shape != want:
        raise BundleError(f"{path}: expected y of shape {want}, got {golden.y.shape}")
    return golden


def _hash(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: not readable: {error.strerror}") from error
