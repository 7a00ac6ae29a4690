"""A parent: the earlier run from whose weights a training begins.

Owns what must be the same in both, and what is taken over from the parent as it was: everything
that was learned before the weights (stand-ins for missing values, categories, scaling, the classes
and forecast fields). A key's state then means the same to parent and child, which is what lets
keyfold-state hand it on. Called by train.py; the same check of two bundles is export/lineage.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from keyfold.export import bundle as contract
from keyfold.export.errors import Crash
from keyfold.export.lineage import WEIGHTS, weights_sha256
from keyfold.training import run
from keyfold.training.against import run_of
from keyfold.training.config import Config

# Settings of [data] that decide how a record becomes a key's event and its inputs.
SAME = (
    "features", "label", "key_field", "time_field", "time_unit", "time_zone", "booleans",
    "categories", "missing", "missing_mask", "missing_last", "since_last", "standardise_by_key",
    "long_name", "long_value", "decoder", "tombstone", "reset_after_s", "text", "conditions",
    "end_field", "condition_count", "symbols",
)  # fmt: skip

# Settings of [model] that decide what the weights and a key's state are.
NETWORK = (
    "family", "cell", "units", "dense", "activation", "reset_after", "residual", "norm",
    "attention", "window", "look_ahead", "merge", "heads", "kv_heads", "filters", "kernel",
    "stride", "front", "sample_rate",
    "embedding", "tokens", "encoders", "encoder_units", "encoder_widths", "encoder_pool",
)  # fmt: skip


class ParentError(Crash):
    """A run cannot begin with another one's weights."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The earlier run."""

    name: str  # of its folder
    run: run.Run  # as it was trained
    bundle: str  # id of the bundle that was named in its place, "" if the run was
    weights_sha256: str  # what tells its weights from others

    @property
    def record(self) -> dict[str, str]:
        """What the child's bundle says of it (export/lineage.py)."""
        found = {"run": self.name, WEIGHTS: self.weights_sha256}
        return found | ({"bundle": self.bundle} if self.bundle else {})


def load(path: Path, runs: Path) -> Parent:
    """Load a parent, given its run's folder or the bundle made of it. Raises Crash."""
    folder = run_of(path, runs, "--parent")
    saved = run.load(folder)
    digest, bundle = weights_sha256(saved.network.whole.get_weights()), ""
    if folder != path.resolve():
        made = contract.load(path)
        bundle, noted = made.id, made.manifest.provenance.get(WEIGHTS)
        if noted not in (None, digest):
            raise ParentError(
                f"--parent {path}: expected the run it was made of, with weights {noted}, got "
                f"{folder} with {digest}"
            )
    return Parent(folder.name, saved, bundle, digest)


def taken_over(config: Config, parent: Parent) -> Config:
    """Return the settings with what the parent decides. Raises ParentError: what differs."""
    for what, expected, got in _differences(config, parent.run):
        raise ParentError(
            f"--parent {parent.name}: {what}: expected {_shown(expected)}, as it has it, got "
            f"{_shown(got)}: train without --parent, and let the new bundle's states be folded anew"
        )
    outputs = parent.run.outputs
    if outputs.forecast is not None:
        return replace(config, forecast=replace(config.forecast, fields=outputs.forecast.fields))
    if outputs.kind == "transcription":
        return replace(config, data=replace(config.data, classes=outputs.names[1:]))
    if outputs.kind == "classification":
        return replace(config, data=replace(config.data, classes=outputs.names))
    return config


def _differences(config: Config, parent: run.Run) -> Iterator[tuple[str, Any, Any]]:
    """Yield a setting's name, the parent's value and the one given, where they differ."""
    data, old = config.data, parent.data
    for name in NETWORK:
        yield from _one(f"model.{name}", getattr(parent.model, name), getattr(config.model, name))
    for name in SAME:
        yield from _one(f"data.{name}", getattr(old, name), getattr(data, name))
    for section in run.TEXTS:
        for item in fields(mine := getattr(config, section)):
            had = parent.texts[section].get(item.name, item.default)
            yield from _one(f"{section}.{item.name}", had, getattr(mine, item.name))
    for name in ("answers", "read"):
        yield from _one(
            f"outputs.{name}", getattr(parent.outputs, name), getattr(config.outputs, name)
        )
    yield from _one("data.kind", old.kind or "forecast", data.kind or "forecast")
    if data.classes:
        names = parent.outputs.names
        names = names[1:] if parent.outputs.kind == "transcription" else names
        yield from _one("data.classes", names, data.classes)
    if parent.outputs.forecast is None:
        return
    for name in ("horizons", "quantiles", "anomaly", "threshold"):
        mine = getattr(config.forecast, name)
        yield from _one(f"forecast.{name}", getattr(parent.forecast, name), mine)
    if config.forecast.fields:
        before = parent.outputs.forecast.fields
        yield from _one("forecast.fields", before, config.forecast.fields)


def _one(name: str, expected: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    if expected != got:
        yield name, expected, got


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
