"""The catalogue of faults: what each is called, what it needs and what must come of it.

Pure data. Owns the stated outcome of every fault: healed, or a HALT whose message must name an
operator's command and what the operator then runs. What a fault does is in the actors (workers,
redis_faults, kafka_faults, network); schedule.py draws from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a fault may lead to, as stated before it strikes."""

    HEALED = "healed"
    HALT = "HALT"
    EITHER = "healed or HALT"


STORES = ("plain", "replicated", "cluster")  # Redis variants


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    name: str  # as in reports, and in KINDS=
    outcome: Outcome  # the worst one of a schedule's faults is the schedule's
    weight: int = 2  # how often it is drawn
    message: str = ""  # a regular expression that the HALT's log line must match
    cures: tuple[str, ...] = ()  # operator's commands; the schedule draws one
    last: bool = False  # strikes after all others
    at_rest: bool = False  # wants every record served and saved before it strikes
    lasts_s: tuple[float, float] = (0.0, 0.0)  # least and most
    stores: tuple[str, ...] = STORES  # Redis variants it can strike
    starts_over: bool = False  # what was before it is not judged at the end, so it is before it
    brokers: int = 1  # Kafka brokers it needs
    proxied: bool = False  # wants the network between workers and services in its hands


# Where a worker may be told to kill itself; fatal_worker.py knows what each means in the product.
POINTS = ("acquire", "decode", "load", "step", "hand-over", "emit", "save", "hint")
# With exactly-once outputs only. After "emit" all is acked and the transaction has no end yet.
TRANSACTION_POINTS = ("transaction-open", "transaction", "transaction-offset")

RESET = "reset --all --to earliest --yes"
RESET_EMITTING = "reset --all --to earliest --emit-again --yes"
REBUILD = "rebuild --all --from earliest --yes"
RESTORE = "restore"  # of a snapshot taken half way
LOST = (RESET, RESET_EMITTING, REBUILD, RESTORE)

MARKED = "truncated-marked"

_WORKER = (
    Kind("kill", Outcome.HEALED, weight=8),
    Kind("kill-at-point", Outcome.HEALED, weight=14),
    Kind("freeze", Outcome.HEALED, weight=4, lasts_s=(4.5, 6.0)),  # beyond the session
    Kind("freeze-briefly", Outcome.HEALED, lasts_s=(0.5, 2.0)),
    Kind("sigterm", Outcome.HEALED, weight=4),
    Kind("storm", Outcome.HEALED, weight=3, lasts_s=(2.0, 4.0)),
    Kind("foreign-bundle", Outcome.HEALED, lasts_s=(3.0, 5.0)),
)
_REDIS = (
    Kind("redis-kill", Outcome.HEALED, weight=4, lasts_s=(0.2, 2.5), stores=("plain", "cluster")),
    Kind("redis-pause", Outcome.HEALED, lasts_s=(0.5, 3.0), stores=("plain", "cluster")),
    Kind("redis-full", Outcome.HEALED, weight=3, lasts_s=(1.0, 3.0)),
    Kind("rollback", Outcome.HEALED, weight=5, lasts_s=(0.3, 1.5)),
    Kind("failover", Outcome.HEALED, weight=8, stores=("replicated",)),
    Kind("failover-lagging", Outcome.HEALED, weight=8, lasts_s=(0.5, 1.5), stores=("replicated",)),
    Kind("field-deleted", Outcome.EITHER, weight=3, message="state", cures=LOST),
    Kind("meta-deleted", Outcome.EITHER, message="state", cures=LOST),
    Kind(
        "state-ahead", Outcome.EITHER, weight=3, message="state", cures=LOST,
        lasts_s=(0.3, 1.0),
    ),
    Kind(
        "hash-deleted", Outcome.HALT, weight=3, message="gone|missing", cures=LOST,
        last=True,
    ),
    Kind(
        "flushall", Outcome.HALT, weight=3, message="gone|missing", cures=LOST,
        last=True,
    ),
)  # fmt: skip
_KAFKA = (
    Kind("broker-kill", Outcome.HEALED, weight=3, lasts_s=(1.0, 4.0)),
    Kind("leader-move", Outcome.HEALED, weight=3, brokers=3),
    Kind("quiet-weekend", Outcome.HEALED, weight=3, last=True, at_rest=True),
    Kind("compacted", Outcome.HEALED, last=True, at_rest=True),
    Kind(
        "truncated", Outcome.HALT, weight=3, message="lost to retention", cures=(RESET,), last=True,
        at_rest=True, starts_over=True,
    ),
    Kind("bundle-rebuild", Outcome.HEALED, last=True, at_rest=True, starts_over=True),
    Kind("bundle-reset", Outcome.HEALED, last=True, at_rest=True, starts_over=True),
    # As "truncated" with worker.on_lost_range = mark-and-continue.
    Kind(MARKED, Outcome.HEALED, last=True, at_rest=True),
    Kind(
        "recreated", Outcome.HALT, weight=3, message="anew", cures=(RESET_EMITTING,),
        last=True, at_rest=True, starts_over=True,
    ),
    Kind(
        "grown", Outcome.HALT, weight=3, message="number of partitions", cures=(RESET,), last=True,
        at_rest=True, starts_over=True,
    ),
)  # fmt: skip
_NETWORK = tuple(
    # Only a single Redis is reached through a proxy: Sentinels and nodes tell addresses of others.
    Kind(f"{service}-{what}", Outcome.HEALED, stores=stores, lasts_s=lasts_s, proxied=True)
    for service, stores in (("kafka", STORES), ("redis", ("plain",)))
    for what, lasts_s in (("slow", (1.0, 3.0)), ("stall", (0.5, 4.0)), ("cut", (0.3, 3.0)))
)

KINDS = {kind.name: kind for kind in (*_WORKER, *_REDIS, *_KAFKA, *_NETWORK)}
