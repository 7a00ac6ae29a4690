"""Faults that strike Redis: killed, frozen, full, rolled back, emptied whole or in part.

Each is a function of the stage and the planned fault. Used through faults.py.
"""

from __future__ import annotations

from typing import Any

from campaign.scene import META
from campaign.schedule import Fault
from campaign.stage import Stage


def kill(stage: Stage, fault: Fault) -> None:
    """SIGKILL a primary and start it again with its append-only file."""
    back = stage.scene.store.kill(fault.partition)
    stage.struck(fault)
    stage.later(fault.lasts_s, back)


def pause(stage: Stage, fault: Fault) -> None:
    """Freeze a primary for a while."""
    back = stage.scene.store.pause(fault.partition)
    stage.struck(fault)
    stage.later(fault.lasts_s, back)


def full(stage: Stage, fault: Fault) -> None:
    """Let Redis refuse writes for want of memory for a while."""
    back = stage.scene.store.fill_up()
    stage.struck(fault)
    stage.later(fault.lasts_s, back)


def failover(stage: Stage, fault: Fault) -> None:
    """Let a replica take over; writes it has not seen are lost."""
    back = stage.scene.store.failover(fault.lasts_s)
    stage.struck(fault)
    stage.later(4.0, back)


def rollback(stage: Stage, fault: Fault) -> None:
    """Copy one partition's hash and put the copy back a little later."""
    name = stage.scene.hash_name(fault.partition % stage.scene.partitions)
    copy = stage.scene.redis.dump(name)
    if copy is None:
        return

    def restore() -> None:
        stage.scene.redis.restore(name, 0, copy, replace=True)
        stage.struck(fault, [fault.partition % stage.scene.partitions])

    stage.later(fault.lasts_s, restore, heals=False)


def state_ahead(stage: Stage, fault: Fault) -> None:
    """Leave what a save that failed half way leaves: newer states beside the older watermark."""
    scene, number = stage.scene, fault.partition % stage.scene.partitions
    name = scene.hash_name(number)
    copy, before = scene.redis.dump(name), _states(stage, number)
    if copy is None:
        return

    def restore() -> None:
        newer = {f: v for f, v in _states(stage, number).items() if before.get(f) != v}
        chosen = stage.random.sample(sorted(newer), (len(newer) + 1) // 2)
        scene.redis.restore(name, 0, copy, replace=True)
        if chosen:
            scene.redis.hset(name, mapping={field: newer[field] for field in chosen})
        stage.struck(fault, [number], f"{len(chosen)} of {len(newer)} newer states")

    stage.later(fault.lasts_s, restore, heals=False)


def field_deleted(stage: Stage, fault: Fault) -> None:
    """Delete some keys' states, one by one."""
    number = fault.partition % stage.scene.partitions
    fields = stage.scene.fields(number)
    chosen = stage.random.sample(fields, min(len(fields), stage.random.choice((1, 1, 2, 5))))
    for field in chosen:
        stage.scene.redis.hdel(stage.scene.hash_name(number), field)
    if chosen:
        stage.struck(fault, [number], f"{len(chosen)} of {len(fields)}")


def meta_deleted(stage: Stage, fault: Fault) -> None:
    """Delete one meta field."""
    number = fault.partition % stage.scene.partitions
    field = f"#{stage.random.choice(META)}"
    if stage.scene.redis.hdel(stage.scene.hash_name(number), field):
        stage.struck(fault, [number], field)


def hash_deleted(stage: Stage, fault: Fault) -> None:
    """Delete one partition's whole hash."""
    number = fault.partition % stage.scene.partitions
    stage.scene.redis.delete(stage.scene.hash_name(number))
    stage.struck(fault, [number])


def flushall(stage: Stage, fault: Fault) -> None:
    """Lose everything that Redis holds."""
    stage.scene.store.flush()
    stage.struck(fault)


def _states(stage: Stage, number: int) -> dict[bytes, Any]:
    fields: dict[bytes, Any] = stage.scene.redis.hgetall(stage.scene.hash_name(number))
    return {name: value for name, value in fields.items() if name.startswith(b":")}
