"""keyfold-state inherit: a new group begins with another group's states, to serve a fine-tune.

Owns what must hold and the order of what is written. The old group's states and worker stay as they
are: each partition is copied at one instant, states, watermark and stream time together, and put in
place at one instant, only where the new group has nothing. It may be killed at any moment and run
again. Called by cli.py.

The order: Redis learns that the new group waits for the outputs before it has a state, so that no
worker that starts in between emits anything. A name that waits is never taken back: owners that
have heard it would put it there again (handover/ownership.py).

With exactly-once outputs this is safe where adopt --inherit is not. What the old group puts out
beyond the copied watermark, by transactions under way or behind a save that is not due, stays its
own: the new group has no group offset that could hide an event (it must be new, and _BEGIN demands
that no owner of it has taken a fence, without which nothing is emitted), folds silently from the
copied watermark on, and begins to emit at a seam below which everything is out AND saved. With an
output topic of its own it emits from the copied watermark on, and nobody else emits there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from keyfold.export.lineage import check_inherits
from keyfold.worker.beginning import HANDOVER
from keyfold.worker.config import Config, read_config
from keyfold.worker.errors import Crash
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.state.adopt import INHERITANCE, check, check_folded_by
from keyfold.worker.state.consent import FOUND_PROBLEMS, asked, done
from keyfold.worker.state.inherited import begin, folded_by
from keyfold.worker.state.store_admin import Admin
from keyfold.worker.state.survey import Place, Survey, survey


def inherit(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Let the new group begin where the old one stands, with its states."""
    old_config = read_config(arguments.old, arguments.set)
    _check_files(old_config, config)
    giver = Admin(admin.redis, old_config.kafka.group)
    old, new = survey(old_config, giver), survey(config, admin)
    check_inherits(new.bundle, old.bundle)
    places = list(_places(old, new))
    if not asked(_announced((old, new), places), arguments.yes):
        return FOUND_PROBLEMS
    topic = config.kafka.input
    if new.then is None and old.then is not None:
        admin.set_topic(topic, old.then)  # under which the states were folded
    for place in places:
        if not _silent(config):
            _copy(giver, admin, (old, new), place)
            continue
        _wait(config, admin, place.number)
        try:
            _copy(giver, admin, (old, new), place)
        except Crash as error:
            raise Crash(
                f"{error} (group {config.kafka.group!r} stays noted as one that waits for the "
                f"outputs: group {old_config.kafka.group!r} goes on as it is, and this command may "
                "be run again)"
            ) from error
    return done()


def _check_files(old: Config, new: Config) -> None:
    """Refuse two files that do not belong together. Raises Crash."""
    for name, one, two in (
        ("kafka.input", old.kafka.input, new.kafka.input),
        ("redis.url", old.redis.url, new.redis.url),
    ):
        if one != two:
            what = "another one" if name == "redis.url" else repr(two)
            raise Crash(f"{name}: expected the same in both files, got {what} in the second")
    if old.kafka.group == new.kafka.group:
        raise Crash(
            f"kafka.group: expected two groups, got {new.kafka.group!r} in both files (where they "
            "are, states go on by keyfold-state adopt --inherit)"
        )
    if new.worker.emit_from not in ("", HANDOVER):
        raise Crash(
            f"worker.emit_from: expected {HANDOVER!r}, or none with an output topic of its own, "
            f"got {new.worker.emit_from!r}"
        )
    if not _silent(new) and old.kafka.output == new.kafka.output:
        raise Crash(
            f"worker.emit_from: expected {HANDOVER!r} with the old group's output topic "
            f"{new.kafka.output!r}, got none: both groups would emit there"
        )


def _silent(new: Config) -> bool:
    return new.worker.emit_from == HANDOVER


def _places(old: Survey, new: Survey) -> Iterator[Place]:
    """Yield the old group's partitions that are to be copied. Raises Crash."""
    groups = [survey.config.kafka.group for survey in (old, new)]
    theirs = False
    for one, other in zip(old.places, new.places, strict=True):
        number = one.number
        if other.held is not None and _is_copied(one, other):
            theirs = True
            continue
        if other.held is not None or other.committed is not None:
            raise Crash(
                f"partition {number}: expected group {groups[1]!r} to be new, got "
                f"{'a state' if other.held is not None else 'a group offset'} of it: give the new "
                "bundle a kafka.group of its own"
            )
        check(one)
        check_folded_by(one, old.bundle, new.identity)
        for problem in old.problems(one):
            raise Crash(f"partition {number}: group {groups[0]!r}: {problem}")
        yield one
    if theirs:
        print(f"group {groups[1]!r} has inherited some partitions already: they stay as they are")


def _is_copied(one: Place, other: Place) -> bool:
    """Say whether a killed command has copied this partition already."""
    if one.held is None or other.held is None:
        return False
    mine, parent = other.held.inherited, folded_by(one.held).rpartition("@")[0]
    return mine.rpartition("@")[0] == parent


def _announced(surveys: tuple[Survey, Survey], places: Sequence[Place]) -> Iterator[str]:
    old, new = surveys
    group, taker = old.config.kafka.group, new.config.kafka.group
    for place in places:
        states = 0 if place.held is None else place.held.states
        yield (
            f"partition {place.number}: group {taker!r} (bundle {new.identity}) begins at offset "
            f"{place.meta('#W')} or soon after it with {states} key states of group {group!r} "
            f"(its parent {old.identity})"
        )
    yield from INHERITANCE
    if _silent(new.config):
        yield f"It emits nothing until keyfold-state handover; group {group!r} goes on as it is."
    else:
        yield f"It emits from there on; group {group!r} goes on as it is."


def _wait(new: Config, admin: Admin, number: int) -> None:
    """Have Redis know that the new group waits for the outputs. Raises Crash."""
    records, group = HandoverAdmin(admin.redis, new.kafka.input, new.kafka.output), new.kafka.group
    record = records.read(number)
    while group not in record.waiting:
        if group == record.first or any(seam.group == group for seam in record.seams):
            raise Crash(
                f"partition {number}: expected a group that never had the outputs, got {group!r}: "
                "give the new bundle a kafka.group of its own"
            )
        record = records.swap(number, record, record.wait(group))


def _copy(giver: Admin, taker: Admin, surveys: tuple[Survey, Survey], place: Place) -> None:
    """Copy one partition as it is now. Raises Crash."""
    old, new = surveys
    topic, where = old.config.kafka.input, f"partition {place.number}"
    with giver.copy(topic, place.number) as copy:
        if copy is None:
            raise Crash(f"{where}: its state is gone since it was looked at: ask again")
        now = replace(place, held=copy.held)
        check(now)  # its worker runs on, and an operator may have come in between
        check_folded_by(now, old.bundle, new.identity)
        floor = 0 if _silent(new.config) else int(copy.held.meta["#W"])
        if not begin(taker, (topic, place.number), copy.held, copy.entries, (new.identity, floor)):
            raise Crash(
                f"{where}: expected group {taker.group!r} to be new, got a state of it since this "
                "command began: stop its worker, and give the new bundle a kafka.group of its own"
            )
        print(f"{where}: begins at offset {copy.held.meta['#W']}")
