"""An operator who reads a HALT and does what it names.

Mirrors what worker/state/ leave in Redis. Every command takes the fence, so that an owner that
still runs stops. Chooses among the commands that a message names; decides nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from keyfold.worker.protocol import outputs_metadata
from simulator.store import Hash

if TYPE_CHECKING:
    from simulator.world import World

NAMED = re.compile(r"keyfold-state (\w+)|(mark-and-continue)|(on_bundle_change)")
COUNTED = "keyfold:r"


def resolve(world: World, why: str) -> None:
    """Do one of the things that a HALT's message names, if it can be done."""
    world.coordinator.settle()  # the commands ask for a stable group offset
    named = [next(filter(None, found)) for found in NAMED.findall(why)]
    verb = named[int(world.random() * len(named))]
    if verb == "reset" and "--to earliest|latest" not in why:
        done = reset(world, world.log.start)
    else:
        done = COMMANDS[verb](world)
    if not done and verb in ("rebuild", "restore", "adopt"):
        # The command says what stands in its way and names this one.
        verb, done = "reset", reset(world)
    if done:
        world.count[f"operator: {verb}"] += 1
        held = world.redis.hash
        world.trace(
            "operator", None, verb, world.era, world.coordinator.group,
            held and (held.watermark, held.floor, held.resets, held.committed, held.lineage.floor),
        )  # fmt: skip


def reset(world: World, begin: int | None = None) -> bool:
    """keyfold-state reset: begin anew, outputs too unless they are exactly-once and known."""
    held, log = world.redis.hash, world.log
    if begin is None:
        begin = (log.start, log.end)[int(world.random() * 2)]
    known = held is None or held.committed is None or _out_upto(world, held) is not None
    # Of another log the group offset says nothing.
    other = world.coordinator.of_log not in (None, log)
    anew = not world.exactly_once or not known or other or world.random() < 0.3
    # What is out stays out; what is below it and never was (the fold began later) stays in.
    floor = 0 if anew else _out_upto(world, held) or 0
    _install(world, begin, floor=floor, anew=anew)
    world.redis.topic = None
    return True


def rebuild(world: World) -> bool:
    """keyfold-state rebuild: fold again, emitting nothing that is out."""
    held, log, group = world.redis.hash, world.log, world.coordinator.group
    if world.redis.topic not in (None, world.topic):
        return False
    begin = log.start if held is None or world.random() < 0.5 else max(held.base, log.start)
    if held is None:
        if not world.exactly_once:
            world.era += 1  # C is a hint: what is out above it comes out again
        _install(world, begin, floor=log.end if group is None else group.offset)
        return True
    if not begin <= held.watermark <= log.end:
        return False
    _install(world, begin, floor=max(held.floor, held.watermark))
    return True


def restore(world: World) -> bool:
    """keyfold-state restore: put a snapshot back."""
    # A snapshot of another bundle or topic is refused.
    now = world.redis.hash
    good = [
        (snapshot, topic)
        for snapshot, topic in world.snapshots
        if snapshot.bundle == world.bundle
        and topic in (None, world.topic)
        and snapshot.lineage.log is world.log
        and snapshot.watermark <= world.log.end
    ]
    if not good:
        return False
    snapshot, topic = good[int(world.random() * len(good))]
    installed = snapshot.copy()
    _take_over(world, installed, now, floor=max(snapshot.floor, now.floor if now else 0))
    if world.redis.topic is None:
        world.redis.topic = topic
    return True


def adopt(world: World) -> bool:
    """keyfold-state adopt: keep the states for the present bundle, topic and log."""
    held, log = world.redis.hash, world.log
    if held is None or held.keys != len(held.states):
        return False
    if not log.start <= held.watermark <= log.end:
        return False
    if held.lineage.log is not log:
        return False  # the operator knows that the new topic does not hold the same records
    # C may tell of a reset that Redis has lost: it counts again.
    held.resets = _resets_known(world, held)
    unknown = held.committed is not None and _out_upto(world, held) is None
    if unknown:
        world.era += 1
        world.era_of[held.resets] = world.era
    held.number += 1
    held.nonce, held.bundle = "operator", world.bundle
    held.last = held.committed = None
    out = 0 if unknown or not world.exactly_once else _out_upto(world, held) or 0
    era = world.era_of[held.resets] if world.exactly_once else held.lineage.era
    held.lineage = world.continued(held, held.watermark, held.lineage.lost_upto, era, out)
    world.redis.topic = world.topic
    world.redis.replicated()
    return True


def mark(world: World) -> bool:
    """worker.on_lost_range = mark-and-continue, and a restart."""
    world.rules = replace(world.rules, mark_lost=True)
    _restart_all(world)
    return True


def follow_bundle(world: World) -> bool:
    """worker.on_bundle_change = rebuild or reset, and a restart."""
    choice = ("rebuild", "reset")[int(world.random() * 2)]
    world.rules = replace(world.rules, bundle_change=choice)
    _restart_all(world)
    return True


COMMANDS: dict[str, Callable[[World], bool]] = {
    "reset": reset,
    "rebuild": rebuild,
    "restore": restore,
    "adopt": adopt,
    "mark-and-continue": mark,
    "on_bundle_change": follow_bundle,
}


def _restart_all(world: World) -> None:
    for worker in list(world.workers):
        world.crash(worker, "restarted")


def _resets_known(world: World, *hashes: Hash | None) -> int:
    group = world.coordinator.group
    said = group.metadata if group is not None else ""
    counted = int(said[len(COUNTED) :]) if said.startswith(COUNTED) else 0
    return max(counted, *(held.resets for held in hashes if held is not None), 0)


def _out_upto(world: World, held: Hash | None) -> int | None:
    group = world.coordinator.group
    resets = _resets_known(world, held)
    if group is not None and group.metadata == outputs_metadata(resets):
        return group.offset
    return None


def _install(world: World, begin: int, floor: int, anew: bool = False) -> None:
    out, old = 0, world.redis.hash
    if anew:
        world.era += 1
    elif world.exactly_once:
        out = _out_upto(world, old) or 0
    # What a transaction put out before is not put out again.
    lineage = world.begun(begin, world.bundle, max(floor, out))
    installed = Hash(begin, begin, 0, "operator", world.bundle, lineage)
    _take_over(world, installed, old, floor, anew)


def _take_over(world: World, new: Hash, old: Hash | None, floor: int, anew: bool = False) -> None:
    """Put a hash in the place of another one (_INSTALL of worker/state/store_admin.py)."""
    resets = _resets_known(world, old, new)
    committed = [
        one.committed
        for one in (old, new)
        if one is not None and one.resets == resets and one.committed is not None
    ]
    new.number = max(new.number, old.number if old else 0) + 1
    new.nonce, new.floor = "operator", floor
    world.beginning = (world.log, None)  # whatever began before was given up
    new.resets, new.committed = resets, max(committed) if committed else None
    if anew:
        new.resets, new.committed = resets + 1, None
        world.era_of[new.resets] = world.era
    era = world.era_of[new.resets] if world.exactly_once else new.lineage.era
    out = _out_upto(world, new) or 0 if world.exactly_once else 0
    if max(floor, out) > new.lineage.floor or new.lineage.era != era:
        out = max(out, new.lineage.floor)
        new.lineage = world.continued(new, new.watermark, new.lineage.lost_upto, era, out)
    world.redis.hash = new
    world.redis.replicated()
