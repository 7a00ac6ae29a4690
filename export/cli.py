"""The `keyfold-export` command: a training run becomes a bundle; a bundle is shown to a person.

Owns arguments, the reading of a training run's folder, and what is printed. A bundle appears in the
output folder only after every check has passed. Exit status 0, or 1 with one line that says what,
where, expected, got. TensorFlow is loaded only to export.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfold.export import bundle as contract
from keyfold.export.bundle import Manifest
from keyfold.export.describe import describe
from keyfold.export.errors import BundleError, Crash
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.lineage import PARENT, WEIGHTS, weights_sha256
from keyfold.export.motion import Motion

if TYPE_CHECKING:
    from keyfold.export.convert import StepGraph
    from keyfold.export.verify import Proof

MODEL, SPEC, METRICS = "model.keras", "spec.json", "metrics.json"  # of a training run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["inspect"]:
            return _inspect(arguments[1:])
        if arguments[:1] == ["wrap"]:
            from keyfold.export.wrap import cli as wrap

            return wrap.main(arguments[1:])
        return _export(arguments)
    except Crash as crash:
        print(f"keyfold-export: {crash}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keyfold-export: interrupted", file=sys.stderr)
        return 130


def _inspect(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keyfold-export inspect", description="Print what a bundle promises."
    )
    parser.add_argument("bundle", type=Path, help="a bundle's folder")
    print(describe(contract.load(parser.parse_args(arguments).bundle)))
    return 0


def _export(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keyfold-export",
        description="Convert a training run to ONNX, prove it equal, and write a bundle.",
        epilog="Other commands: keyfold-export inspect BUNDLE, keyfold-export wrap MODEL.",
    )
    parser.add_argument("run", type=Path, help="a training run's folder, such as runs/latest")
    parser.add_argument("--out", type=Path, default=Path("bundles"), help="folder of bundles")
    parser.add_argument(
        "--unless-worse",
        action="store_true",
        help="refuse a model that keyfold-train --against found worse than the earlier one",
    )
    given = parser.parse_args(arguments)
    if given.unless_worse:
        _refuse_worse(given.run)
    path = export(given.run, given.out)
    print(f"bundle: {path}")
    print(f"next: keyfold-worker init {path}")
    return 0


def _refuse_worse(run: Path) -> None:
    found = _read(run / METRICS).get("against")
    if not found:
        raise BundleError(
            f"{run}: expected a comparison for --unless-worse, got none: train with "
            "keyfold-train CONFIG --against BUNDLE"
        )
    if not found["new"] <= found["old"]:
        raise BundleError(
            f"{run}: expected a model no worse than {found['earlier']}, got {found['measure']} "
            f"{found['new']:.4g} against {found['old']:.4g}; nothing was written. Without "
            "--unless-worse it is exported all the same"
        )


def export(run: Path, out: Path) -> Path:
    """Write the bundle of a training run to out/<id> and return that path.

    Raises Crash, and leaves nothing behind, when the model cannot be stepped or the graph does not
    compute what the model does.
    """
    # `runs/latest` is a link; the provenance names the run.
    run = run.resolve()
    spec, metrics = _read(run / SPEC), _read(run / METRICS)
    _prepare_tensorflow()
    from keyfold.export.convert import convert, in_float64, load_model, reference
    from keyfold.export.decode_proof import prove, taken
    from keyfold.export.pairing import is_of_pairs
    from keyfold.export.verify import Model, check_bundle, verify

    model = load_model(run / MODEL)
    pair = taken(model) if is_of_pairs(model) else None
    read = model if pair is None else pair.encoder
    converted = convert(model) if pair is None else pair.read
    scaling = spec["scaling"]
    truth = Model(
        reference(read),
        reference(in_float64(read)),
        tuple(scaling["mean"]),
        tuple(scaling["deviation"]),
        Motion.from_json(scaling["motion"]) if scaling.get("motion") else None,
        scaling.get("symbols", 0),
        scaling.get("width", 0),
    )
    proof = verify(converted.onnx, converted.states, truth, max_steps=converted.max_steps)
    provenance = _provenance(run, metrics, proof) | _lineage(model, metrics)
    manifest = _manifest(spec, converted, proof, provenance)
    golden, decode = proof.golden, None
    if pair is not None:
        sizes = (scaling["symbols"], len(manifest.outputs.names))
        answers = prove(pair, golden, sizes)
        tolerance = max(proof.tolerance, answers.tolerance)
        manifest = replace(manifest, tolerance=tolerance, decode=answers.decode)
        golden, decode = replace(golden, answers=answers.golden), pair.said.onnx
    path = _write(out, manifest, (converted.onnx, decode), golden, check_bundle)
    print(
        f"parity: largest difference {proof.largest_difference:.2g} over {proof.steps:,} carried "
        f"steps (allowed {proof.allowed:.2g})"
    )
    return path


def _prepare_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and its start-up notice
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the reference is the CPU's arithmetic


def _manifest(
    spec: Mapping[str, Any], converted: StepGraph, proof: Proof, provenance: Mapping[str, Any]
) -> Manifest:
    return Manifest(
        events=EventSpec.from_json(spec["events"]),
        features=FeatureSpec.from_json(spec["features"]),
        outputs=OutputSpec.from_json(spec["outputs"]),
        states=converted.states,
        step_sha256="",  # save fills it in
        min_rows=proof.min_rows,
        max_steps=converted.max_steps,
        tolerance=proof.tolerance,
        provenance=provenance,
    )


def _write(
    out: Path,
    manifest: Manifest,
    graphs: tuple[bytes, bytes | None],
    golden: contract.Golden,
    check: Callable[[contract.Bundle], object],
) -> Path:
    """Write, load and check the bundle beside its final place, then move it there."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checking-", dir=out) as aside:
        bundle = contract.load(contract.save(Path(aside), manifest, graphs[0], golden, graphs[1]))
        check(bundle)
        target = out / bundle.id
        if not target.exists():
            bundle.path.rename(target)
    return target


def _provenance(run: Path, metrics: Mapping[str, Any], proof: Proof) -> dict[str, Any]:
    return {
        "run": run.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": metrics.get("data", {}).get("sha256"),
        "table": metrics.get("data", {}).get("table"),  # how its CSV files were written
        "metrics": metrics.get("metrics"),
        "versions": metrics.get("versions"),
        "parity": {
            "reference": "Keras, whole sequences",
            "largest_difference": proof.largest_difference,
            "allowed": proof.allowed,
            "float32_noise": proof.noise,
            "carried_steps": proof.steps,
            "bit_identical_in_every_grouping": proof.identical,
        },
    }


def _lineage(model: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells whose child this is, and lets others be its children."""
    found = {WEIGHTS: weights_sha256(model.get_weights())}
    return found | ({PARENT: metrics[PARENT]} if PARENT in metrics else {})


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{file}: expected a training run's file, got: {why}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{file}: expected a JSON object")
    return content
