"""keyfold-state restore: puts snapshots back into Redis, perhaps into another one.

Owns what a snapshot must be to be put back here, and what that means. Called by cli.py;
rebuild.py checks its snapshots here too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from keyfold.worker.config import Config
from keyfold.worker.protocol import Topic
from keyfold.worker.state.consent import FOUND_PROBLEMS, OWNER_STOPS, asked, done
from keyfold.worker.state.snapshot_file import Header, SnapshotError, entries, verify
from keyfold.worker.state.store_admin import INHERITED, Admin, Emission
from keyfold.worker.state.survey import Place, Survey, survey
from keyfold.worker.store import LAYOUT, META


def restore(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Put snapshots in the place of their partitions' states."""
    found = survey(config, admin)
    headers: dict[Path, Header] = {}
    for path in arguments.files:
        header = checked(path, found)
        twice = [p for p, other in headers.items() if other.partition == header.partition]
        if twice:
            raise SnapshotError(
                f"{path}: expected one file a partition, got {twice[0]} of partition "
                f"{header.partition} too"
            )
        headers[path] = header
    if not asked(_announced(found, headers), arguments.yes):
        return FOUND_PROBLEMS
    for path, header in headers.items():
        place = found.places[header.partition]
        emission = Emission(resets=place.resets)
        admin.install(header.topic, header.partition, header.meta, emission, entries(path))
        if found.then is None:
            admin.set_topic(header.topic, Topic(header.partitions, header.identity))
    return done()


def checked(path: Path, found: Survey) -> Header:
    """Verify a snapshot and that it belongs here. Raises SnapshotError."""
    header = verify(path)
    kafka = found.config.kafka
    expected: dict[str, tuple[object, object]] = {
        "group": (kafka.group, header.group),
        "topic": (kafka.input, header.topic),
        "layout": (LAYOUT, header.layout),
        "bundle": (found.identity, header.bundle),
        "number of partitions": (found.now.partitions, header.partitions),
    }
    for what, (want, got) in expected.items():
        if want != got:
            raise SnapshotError(f"{path}: expected {what} {want}, got {got}")
    if set(header.meta) - {INHERITED} != set(META) or not header.meta["#W"].isdigit():
        raise SnapshotError(f"{path}: expected all meta fields, got {sorted(header.meta)}")
    counted = header.count + (INHERITED in header.meta)
    if header.meta["#K"] != str(counted):
        raise SnapshotError(f"{path}: expected {header.meta['#K']} key states, got {counted}")
    end = found.places[header.partition].extent.end
    if header.watermark > end:
        raise SnapshotError(
            f"{path}: expected a watermark up to {end}, where the log of partition "
            f"{header.partition} ends, got {header.watermark}: it is of another log"
        )
    return header


def _announced(found: Survey, headers: Mapping[Path, Header]) -> Iterator[str]:
    for path, header in headers.items():
        place = found.places[header.partition]
        where = f"partition {header.partition}"
        yield (
            f"{where}: puts back {header.count} key states (folded up to offset "
            f"{header.watermark}, taken {header.taken}) from {path.name}"
        )
        yield f"{where}: {_replaced(place)}"
        yield from _warnings(found, place, header)
    if found.config.worker.exactly_once:
        yield (
            "A worker folds again from there; what is out up to the group offset is not emitted "
            "again."
        )
    else:
        yield (
            "A worker folds again from there; predictions from there on are emitted again, under "
            "the same ids."
        )
    yield OWNER_STOPS


def _replaced(place: Place) -> str:
    if place.held is None:
        return "Redis has no state of it, nothing is replaced"
    return f"replaces {place.held.states} key states (folded up to offset {place.meta('#W', '-')})"


def _warnings(found: Survey, place: Place, header: Header) -> Iterator[str]:
    where, start = f"partition {place.number}", place.extent.start
    if header.watermark < start:
        marking = found.config.worker.on_lost_range == "mark-and-continue"
        yield (
            f"{where}: events {header.watermark} to {start - 1} are lost to retention since; "
            + (
                "keys that may miss them will be marked"
                if marking
                else "a worker will HALT (worker.on_lost_range = mark-and-continue goes on)"
            )
        )
    identity = found.now.identity
    if header.identity and identity and header.identity != identity:
        yield (
            f"{where}: the topic was created anew since: expected topic id {header.identity}, "
            f"got {identity}; a worker will HALT: then keyfold-state adopt --all"
        )
