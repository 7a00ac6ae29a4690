"""The bundles that folded the beginning of a partition, where a fine-tune inherited their states.

Owns what is needed to fold that part again; who folded what, Redis says (stored.py reads #I).
Called by verification.py; refold.py folds with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.lineage import PARENT
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.verify.offline_emit import OfflineEmit
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.stored import Stored


@dataclass(frozen=True, slots=True)
class Former:
    """A bundle with whose states the next one went on."""

    step: OfflineStep  # what it computes
    upto: int  # offset of the first event that it did not fold
    rule: OfflineEmit | None = None  # which of its predictions were emitted; None: all


Parents = Mapping[str, tuple[OfflineStep, OfflineEmit | None]]  # by bundle id


def load_parents(paths: Iterable[Path], emit: Emit | None) -> Parents:
    """Load what is at hand; `emit` says which predictions went out, None: all."""
    bundles = [contract.load(path) for path in paths]
    return {
        one.id: (OfflineStep(one), None if emit is None else OfflineEmit(emit, one))
        for one in bundles
    }


def formers(stored: Stored | None, first: int, known: Parents) -> tuple[Former, ...]:
    """Return who folded what from `first` on before the present bundle, in order.

    `known` are those at hand. Raises Crash: one that is needed is not.
    """
    if stored is None:
        return ()
    found = []
    for bundle, upto in stored.formers:
        if upto <= first:
            continue  # nothing of what it folded is left to be folded again
        if bundle not in known:
            raise Crash(
                f"{stored.name}: its states below offset {upto} are inherited from bundle {bundle}"
                f": nothing from there on can be judged without it: --parent bundles/{bundle}"
            )
        step, rule = known[bundle]
        found.append(Former(step, upto, rule))
    return tuple(found)


def lenient(bundle: Bundle, parents: Iterable[Bundle]) -> Bundle:
    """Return the bundle with the largest tolerance of all: a state keeps what a parent was off."""
    scale = bundle.golden.scale()
    allowed = [one.manifest.tolerance * one.golden.scale() / scale for one in parents]
    most = max([bundle.manifest.tolerance, *allowed])
    return replace(bundle, manifest=replace(bundle.manifest, tolerance=most))


def check_judged(bundle: Bundle, wrong: int) -> None:
    """Refuse, without Redis, to call wrong what may follow from inherited states. Raises Crash."""
    named = bundle.manifest.provenance.get(PARENT)
    if named and wrong:
        raise Crash(
            f"{wrong} predictions are not what bundle {bundle.id} folds by itself; it is a "
            f"fine-tune (of {named.get('bundle') or named.get('run')}), and whether it went on "
            "with its parent's states only Redis knows: verify without --no-state"
        )
