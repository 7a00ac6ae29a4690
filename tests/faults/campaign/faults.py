"""Which function carries out which kind of fault of the catalogue (kinds.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from campaign import kafka_faults, network_faults, redis_faults, worker_faults
from campaign.kinds import KINDS, MARKED
from campaign.schedule import Fault
from campaign.stage import Stage

STRIKES: Mapping[str, Callable[[Stage, Fault], None]] = {
    "kill": worker_faults.kill,
    "kill-at-point": worker_faults.kill_at_point,
    "freeze": worker_faults.freeze,
    "freeze-briefly": worker_faults.freeze,
    "sigterm": worker_faults.sigterm,
    "storm": worker_faults.storm,
    "foreign-bundle": worker_faults.foreign_bundle,
    "redis-kill": redis_faults.kill,
    "redis-pause": redis_faults.pause,
    "redis-full": redis_faults.full,
    "rollback": redis_faults.rollback,
    "failover": redis_faults.failover,
    "failover-lagging": redis_faults.failover,
    "field-deleted": redis_faults.field_deleted,
    "meta-deleted": redis_faults.meta_deleted,
    "state-ahead": redis_faults.state_ahead,
    "hash-deleted": redis_faults.hash_deleted,
    "flushall": redis_faults.flushall,
    "broker-kill": kafka_faults.broker_kill,
    "leader-move": kafka_faults.leader_move,
    "quiet-weekend": kafka_faults.quiet_weekend,
    "compacted": kafka_faults.compacted,
    "truncated": kafka_faults.truncated,
    "bundle-rebuild": kafka_faults.bundle_changed,
    "bundle-reset": kafka_faults.bundle_changed,
    MARKED: kafka_faults.truncated,
    "recreated": kafka_faults.recreated,
    "grown": kafka_faults.grown,
    **{name: network_faults.network_fault for name, kind in KINDS.items() if kind.proxied},
}
