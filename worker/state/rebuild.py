"""keyfold-state rebuild: drops partitions' states and has the worker fold them again, silently.

Owns where the fold begins and which outputs are out already. Called by cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.protocol import Beginning
from keyfold.worker.state.consent import FOUND_PROBLEMS, OWNER_STOPS, asked, chosen, done
from keyfold.worker.state.reset import offset_at
from keyfold.worker.state.restore import checked
from keyfold.worker.state.snapshot_file import Header, entries
from keyfold.worker.state.store_admin import Admin, Emission, new_meta
from keyfold.worker.state.survey import Place, Survey, survey


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one partition."""

    place: Place  # as it is
    begin: int  # offset of the first event to fold
    emission: Emission  # which outputs are not wanted
    floor: int  # as it will be when nothing changes meanwhile
    why: str  # where the floor comes from
    snapshot: tuple[Path, Header] | None  # states to begin with; None: every key starts cold


def rebuild(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Have partitions folded again without emitting what is out already."""
    found = survey(config, admin)
    if found.recounted or found.replaced:
        raise Crash(
            f"{found.recounted or found.replaced}; folding again does not make the keys' history "
            "whole: keyfold-state reset --all"
        )
    plans = [_plan(found, place, arguments) for place in chosen(found, arguments)]
    if not asked(_announced(found, plans), arguments.yes):
        return FOUND_PROBLEMS
    for plan in plans:
        meta = new_meta(plan.begin, found.identity)
        states: Iterable[tuple[bytes, bytes]] = ()
        if plan.snapshot is not None:
            path, header = plan.snapshot
            meta, states = dict(header.meta), entries(path)
        admin.install(config.kafka.input, plan.place.number, meta, plan.emission, states)
    return done()


def _plan(found: Survey, place: Place, arguments: argparse.Namespace) -> _Plan:
    snapshot = None
    given = arguments.start
    if given is not None and Path(given).is_file():
        snapshot = Path(given), checked(Path(given), found)
        if snapshot[1].partition != place.number:
            raise Crash(f"{given}: expected partition {place.number}, got {snapshot[1].partition}")
        begin = int(snapshot[1].meta["#W"])
    elif given is None:
        base = place.meta("#B")
        begin = max(int(base) if base.isdigit() else 0, place.extent.start)
    elif given == "earliest" or given.isdigit():
        begin = offset_at("--from", given, place.extent)
    else:
        raise Crash(f"--from: expected earliest, an offset or a snapshot's file, got {given!r}")
    _check_nothing_is_skipped(place, begin)
    emission, floor, why = _emission(place, arguments.emit_from)
    return _Plan(place, begin, emission, max(floor, begin), why, snapshot)


def _check_nothing_is_skipped(place: Place, begin: int) -> None:
    watermark, extent = place.watermark, place.extent
    if begin < extent.start:
        raise Crash(
            f"partition {place.number}: events {begin} to {extent.start - 1} are lost to retention "
            "and cannot be folded; use a newer snapshot, or --from earliest"
        )
    if watermark is not None and begin > watermark:
        raise Crash(
            f"partition {place.number}: the states end at offset {watermark}: a fold from {begin} "
            "would pass over the events in between; keyfold-state reset gives them up"
        )


def _emission(place: Place, emit_from: str | None) -> tuple[Emission, int, str]:
    """Return what is not to be emitted, the floor that makes, and whose word that is."""
    where = f"partition {place.number}"
    kept = int(place.meta("#F", "0") or 0)
    if emit_from is not None:
        floor = offset_at("--emit-from", emit_from, place.extent)
        return Emission(floor=floor, resets=place.resets), floor, "--emit-from"
    watermark = place.watermark
    if watermark is None:
        if place.committed is None:
            raise Crash(
                f"{where}: no state and no group offset say which predictions are out; expected "
                "--emit-from OFFSET or --emit-from latest"
            )
        noted = Beginning.read(place.committed)  # of a group that never told more
        floor = max(place.committed.offset, 0 if noted is None else noted.floor)
        return Emission(floor=floor, resets=place.resets), floor, "the group offset"
    if watermark > place.extent.end:
        raise Crash(
            f"{where}: the log ends at {place.extent.end}, below the old watermark {watermark}: "
            "its predictions were about other events; expected --emit-from OFFSET"
        )
    emission = Emission(not_again=True, resets=place.resets)
    return emission, max(kept, watermark), "the old watermark"


def _announced(found: Survey, plans: list[_Plan]) -> Iterator[str]:
    for plan in plans:
        place, where = plan.place, f"partition {plan.place.number}"
        states = 0 if place.held is None else place.held.states
        yield (
            f"{where}: drops {states} key states (folded up to offset {place.meta('#W', '-')}), "
            f"folds again from offset {plan.begin} with bundle {found.identity}"
        )
        if plan.snapshot is not None:
            path, header = plan.snapshot
            yield f"{where}: begins with the {header.count} key states of {path.name}"
        else:
            yield from _shortened(place, plan.begin)
        upto = max(plan.floor, place.out_upto or 0)
        yield (
            f"{where}: nothing about offsets below {upto} is emitted ({plan.why}"
            f"{', exactly-once: the group offset' if upto > plan.floor else ''})"
        )
        if place.meta("#C") and place.out_upto is None:
            yield (
                f"{where}: exactly-once outputs: the group offset is gone; a worker will HALT: "
                "then keyfold-state adopt"
            )
    yield OWNER_STOPS


def _shortened(place: Place, begin: int) -> Iterator[str]:
    base = place.meta("#B")
    if base.isdigit() and int(base) < begin:
        yield (
            f"partition {place.number}: the old fold began at offset {base}: events up to "
            f"{begin - 1} are not in the new one, and keys start cold behind them"
        )
    elif not base:
        yield (
            f"partition {place.number}: where the lost fold began is unknown: the new one holds "
            f"the events from {begin} on, and keys start cold there"
        )
