"""One schedule from one integer: services, workers, settings, traffic, timed faults, outcome.

Pure: the same seed (with the same kinds allowed and the same services) gives the same schedule, so
that a failing one can be repeated alone. Drawn here, carried out by run.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from campaign.kinds import KINDS, MARKED, POINTS, TRANSACTION_POINTS, Kind, Outcome
from campaign.traffic import Traffic

PARTITIONS = 4
RESET_AFTER_MS = 20_000


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a campaign may draw: the services that run here, and a wish for some kinds only."""

    stores: tuple[str, ...] = ("plain", "replicated", "cluster")  # Redis variants
    brokers: int = 3  # of the Kafka cluster
    proxied: bool = True  # whether there is a network to be cut
    outputs: tuple[str, ...] = ("at-least-once", "exactly-once")  # modes of the worker
    expiry: bool = True  # whether bundles may have reset_after
    kinds: tuple[str, ...] = tuple(KINDS)  # which faults


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault at one time."""

    at_s: float  # since the traffic began
    kind: str  # name in KINDS
    worker: int = 0  # which one, where it strikes a worker
    partition: int = 0  # which one, where it strikes a partition; also: which node of a service
    lasts_s: float = 0.0  # until it is healed, where it lasts
    point: str = ""  # "save:before:2" where a worker kills itself
    back_s: float = 0.0  # how long a killed worker stays away


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that one run needs to know."""

    seed: int  # it follows from this alone
    store: str  # Redis variant: plain, replicated or cluster
    workers: int  # how many serve
    outputs: str  # at-least-once or exactly-once
    save_every_ms: int  # 0: no write-behind
    partitions: int  # of the topics
    max_events: int  # of a micro-batch
    tombstone: str  # of the bundle: reject or reset
    reset_after_ms: int | None  # of the bundle
    session_timeout_s: float  # of the consumer group
    duration_s: float  # of the traffic that runs beside the faults
    traffic: Traffic  # what is sent
    faults: tuple[Fault, ...]  # in order of time
    expected: Outcome  # the worst of its faults' outcomes
    cure: str  # the operator's command after a HALT; "" where none is expected

    @property
    def proxied(self) -> bool:
        """Whether workers reach their services through the proxies."""
        return any(KINDS[fault.kind].proxied for fault in self.faults)

    @property
    def on_lost_range(self) -> str:
        """What workers are to do about events that retention took unserved."""
        marked = any(fault.kind == MARKED for fault in self.faults)
        return "mark-and-continue" if marked else "halt"

    def to_json(self) -> dict[str, Any]:
        """Return it for the report."""
        return asdict(self)


def make_schedule(seed: int, allowed: Allowed) -> Schedule:
    """Draw a schedule. Raises ValueError when nothing that is allowed can be drawn."""
    rng = random.Random(seed)
    kinds = [KINDS[name] for name in allowed.kinds]
    stores = [s for s in allowed.stores if any(_possible(kind, s, allowed) for kind in kinds)]
    if not stores:
        raise ValueError(f"none of these faults can strike here: {', '.join(allowed.kinds)}")
    store = rng.choice(stores)
    outputs = rng.choice(allowed.outputs)
    duration_s = round(rng.uniform(6.0, 9.0), 1)
    workers = rng.choice((2, 2, 3, 4))
    session_s = rng.choice((3.0, 4.0))
    drawn = _draw_kinds(rng, [kind for kind in kinds if _possible(kind, store, allowed)])
    faults = tuple(_place(rng, kind, duration_s, workers, outputs) for kind in drawn)
    worst = _worst(drawn)
    cures = next((kind.cures for kind in drawn if kind.outcome is worst and kind.cures), ())
    large = rng.random() < 0.08
    return Schedule(
        seed=seed,
        store=store,
        workers=workers,
        outputs=outputs,
        save_every_ms=rng.choice((0, 0, 100, 400)),
        partitions=1 if large else PARTITIONS,
        max_events=8192 if large else rng.choice((20, 100, 500, 8192)),
        tombstone=rng.choice(("reject", "reset")),
        reset_after_ms=rng.choice((None, RESET_AFTER_MS)) if allowed.expiry else None,
        session_timeout_s=session_s,
        duration_s=duration_s,
        traffic=_traffic(rng, large),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        expected=worst,
        cure=rng.choice(cures) if cures else "",
    )


def _possible(kind: Kind, store: str, allowed: Allowed) -> bool:
    return (
        store in kind.stores
        and kind.brokers <= allowed.brokers
        and (allowed.proxied or not kind.proxied)
    )


def _draw_kinds(rng: random.Random, kinds: Sequence[Kind]) -> list[Kind]:
    """Draw some faults, at most one of those that must be the last."""
    timed = [kind for kind in kinds if not kind.last]
    last = [kind for kind in kinds if kind.last]
    drawn = rng.choices(timed, [k.weight for k in timed], k=rng.randint(2, 5)) if timed else []
    if last and (not timed or rng.random() < 0.3):
        # What an EITHER leaves behind would hide what the last one does.
        drawn = [kind for kind in drawn if kind.outcome is Outcome.HEALED]
        drawn += rng.choices(last, [kind.weight for kind in last])
    # Twice the same damage would have to be cured twice.
    damages = {kind.name: kind for kind in drawn if kind.outcome is not Outcome.HEALED}
    return [kind for kind in drawn if kind.outcome is Outcome.HEALED] + list(damages.values())


def _worst(drawn: Sequence[Kind]) -> Outcome:
    outcomes = {kind.outcome for kind in drawn}
    return next(o for o in (Outcome.HALT, Outcome.EITHER, Outcome.HEALED) if o in outcomes)


def _place(rng: random.Random, kind: Kind, duration_s: float, workers: int, outputs: str) -> Fault:
    points = POINTS + (TRANSACTION_POINTS if outputs == "exactly-once" else ())
    nth = rng.choice((1, 1, 2, 5))
    point = f"{rng.choice(points)}:{rng.choice(('before', 'after'))}:{nth}"
    return Fault(
        at_s=duration_s if kind.last else round(rng.uniform(0.3, duration_s - 0.5), 2),
        kind=kind.name,
        worker=rng.randrange(workers),
        partition=rng.randrange(PARTITIONS),
        lasts_s=round(rng.uniform(*kind.lasts_s), 2),
        point=point if kind.name == "kill-at-point" else "",
        back_s=round(rng.choice((0.0, 0.0, 0.5, 1.5)), 2),
    )


def _traffic(rng: random.Random, large: bool) -> Traffic:
    return Traffic(
        events=500 if large else rng.choice((1000, 2500, 5000)),
        keys=300 if large else rng.choice((3, 40, 400)),
        zipf=rng.random() < 0.5,
        key_bytes=rng.choice((20_000, 60_000)) if large else 1,
        poison=rng.choice((0.0, 0.01, 0.1)),
        tombstones=rng.choice((0.0, 0.01, 0.1)),
        null_keys=rng.choice((0.0, 0.01)),
        future=rng.choice((0.0, 0.0, 0.002)),
        ms_per_event=rng.choice((10, 100, 1000)),
        bursts=rng.choice((0, 1, 3)),
        aborted=rng.choice((None, None, 0.0, 0.3)),
    )
