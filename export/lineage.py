"""Whose weights a model began with, and whether a key's state then means the same to both.

Owns the hash that tells weights apart, what a bundle's provenance says of a parent, and the one
check of a child against its parent. It needs numpy only. Called by training (a run from a parent's
weights), keyfold-export (provenance), keyfold-state (states are inherited) and keyfold-verify
(whether those who folded what is inherited were kin).

All of it stands in the manifest's provenance and not in what the id hashes: where a model's weights
came from decides no prediction, so two bundles that differ in nothing else are one bundle, and the
ids of bundles without a parent stay what they were. It guards against a mistake, not against
somebody who edits a manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle
from keyfold.export.errors import BundleError

# Members of a bundle's provenance. The parent's: "weights_sha256", "run" (its folder's name, for
# people) and "bundle" (its id, where a bundle was named to the training).
WEIGHTS, PARENT = "weights_sha256", "parent"
SHOWN = 12  # hex digits of a hash in a message


def weights_sha256(weights: Iterable[NDArray[Any]]) -> str:
    """Return the SHA-256 of a model's weights, in the order in which Keras returns them.

    Of the numbers, not of a file: saving the same weights again gives another file.
    """
    digest = hashlib.sha256()
    for array in weights:
        plain = np.ascontiguousarray(array)
        digest.update(f"{plain.dtype.str}{plain.shape};".encode())
        digest.update(plain.tobytes())
    return digest.hexdigest()


def check_inherits(child: Bundle, parent: Bundle) -> None:
    """See that a child may go on from the parent's states. Raises BundleError: why not."""
    named = child.manifest.provenance.get(PARENT)
    if not isinstance(named, Mapping):
        raise BundleError(
            f"bundle {child.id}: expected one that names {parent.id} as its parent (keyfold-train "
            "--parent), got one that names none"
        )
    if not _is_named(named, parent):
        got = named.get("bundle") or f"weights {str(named.get(WEIGHTS))[:SHOWN]}"
        mine = parent.manifest.provenance.get(WEIGHTS)
        told = f"weights {str(mine)[:SHOWN]}" if mine else "made before bundles named their weights"
        raise BundleError(
            f"bundle {child.id}: expected one that names {parent.id} ({told}) as its parent, got "
            f"one that names {got} (run {named.get('run')})"
        )
    for what, expected, got in _differences(child, parent):
        raise BundleError(
            f"bundle {child.id}: {what}: expected what its parent {parent.id} has, {expected}, "
            f"got {got}: it cannot go on with the parent's states"
        )


def _is_named(named: Mapping[str, Any], parent: Bundle) -> bool:
    if named.get("bundle") == parent.id:
        return True
    weights = parent.manifest.provenance.get(WEIGHTS)
    return bool(weights) and named.get(WEIGHTS) == weights


def _differences(child: Bundle, parent: Bundle) -> Iterator[tuple[str, Any, Any]]:
    """Yield what makes a state mean something else: its name, the parent's, the child's.

    The anomaly's scales and threshold may differ: they judge an event, they are no key's state,
    unless a key has a threshold of its own; then its past scores are in units of the scales.
    """
    old, new = parent.manifest, child.manifest
    yield from differing("events", old.events.to_json(), new.events.to_json())
    yield from differing("features", old.features.to_json(), new.features.to_json())
    # As text: an initial value may be NaN, which equals nothing.
    kept = [
        ", ".join(f"{s.input} {s.dtype}{list(s.dims)} from {s.initial:g}" for s in one.kept)
        for one in (old, new)
    ]
    if kept[0] != kept[1]:
        yield "states", kept[0], kept[1]
    mine, its = new.outputs, old.outputs
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", its.kind, mine.kind),
        ("names", its.names, mine.names),
        ("forecast", its.forecast, mine.forecast),
    ]
    if its.anomaly is not None and mine.anomaly is not None and its.anomaly.dynamic is not None:
        pairs.append(("anomaly.dynamic", its.anomaly.dynamic, mine.anomaly.dynamic))
        pairs.append(("anomaly.scales", its.anomaly.scales, mine.anomaly.scales))
    for name, a, b in pairs:
        if a != b:
            yield f"outputs.{name}", a, b


def differing(what: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two JSON values differ: the name of the first member that does, old and new."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from differing(f"{what}.{name}", old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differing(f"{what}[{number}]", one, other)
    elif old != new:
        yield what, old, new
