"""The bundles that folded the beginning of a partition, where a fine-tune inherited their states.

Owns what is needed to fold that part again, and how exactly its numbers can be told; who folded
what, Redis says (stored.py reads #I). A bundle that no partition names is refused, and so is one
that the next is no fine-tune of: what a parent may have been off widens what is allowed, which
must be for no one else's sake. Called by verification.py; refold.py folds with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.lineage import PARENT, check_inherits
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.verify.offline_emit import OfflineEmit
from keyfold.worker.verify.offline_key import OfflineKey
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.stored import Stored


@dataclass(frozen=True, slots=True)
class Former:
    """A bundle with whose states the next one went on."""

    step: OfflineStep  # what it computes
    upto: int  # offset of the first event that it did not fold
    rule: OfflineEmit | None = None  # which of its predictions were emitted; None: all


@dataclass(frozen=True, slots=True)
class Folder:
    """How one bundle folds a key, with the tolerance that the key's history asks for."""

    bundle: Bundle  # what it computes, and how far numbers may be off
    key: OfflineKey  # its step
    rule: OfflineEmit | None  # which of its predictions were emitted; None: all


class Folders:
    """Who folds which of a partition's events."""

    def __init__(self, folders: Sequence[Former]) -> None:
        """`folders`: in order; the last one folds all that the others have not."""
        self._all = folders
        self._known: dict[tuple[int, int], Folder] = {}

    def number(self, offset: int) -> int:
        """Return who folds the event at an offset, counted from 0."""
        return next(number for number, one in enumerate(self._all) if offset < one.upto)

    def of(self, now: int, since: int) -> Folder:
        """Return how `now` folds a key that was cold last when `since` folded.

        Only such a key's numbers may be off by as much as those between were allowed to be.
        """
        found = self._known.get((now, since))
        if found is None:
            one = self._all[now]
            step, rule = one.step, one.rule
            if since < now:
                before = [former.step.bundle for former in self._all[since:now]]
                step = step.judged_as(lenient(step.bundle, before))
                rule = None if rule is None else rule.judged_as(step.bundle)
            found = self._known[now, since] = Folder(step.bundle, OfflineKey(step), rule)
        return found


Parents = Mapping[str, tuple[OfflineStep, OfflineEmit | None]]  # by bundle id


def load_parents(paths: Iterable[Path], emit: Emit | None) -> Parents:
    """Load what is at hand; `emit` says which predictions went out, None: all."""
    bundles = [contract.load(path) for path in paths]
    return {
        one.id: (OfflineStep(one), None if emit is None else OfflineEmit(emit, one))
        for one in bundles
    }


def check_named(known: Collection[str], named: Collection[str] | None, group: str) -> None:
    """Refuse a parent that folded nothing of what is verified. Raises Crash.

    `named` are those that Redis names; None: without Redis nobody can tell.
    """
    if known and named is None:
        raise Crash("--parent: which events it folded only Redis knows: verify without --no-state")
    for bundle in known:
        if bundle not in (named or ()):
            raise Crash(
                f"--parent: expected a bundle whose states group {group!r} has inherited "
                f"({', '.join(sorted(named or ())) or 'none'}), got {bundle}: leave it out"
            )


def formers(
    stored: Stored | None, first: int, known: Parents, present: Bundle
) -> tuple[Former, ...]:
    """Return who folded what from `first` on before the `present` bundle, in order.

    `known` are those at hand. Raises Crash: one that is needed is not. Raises BundleError: one is
    no fine-tune of the one before it.
    """
    if stored is None:
        return ()
    chain = [known[bundle][0].bundle if bundle in known else None for bundle, _ in stored.formers]
    for parent, child in pairwise([*chain, present]):
        if parent is not None and child is not None:
            check_inherits(child, parent)
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
