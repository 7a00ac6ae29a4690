"""Redis as the protocol sees it: one partition's hash and what the scripts of worker/store.py do.

Every script happens at one instant; what it wrote may be lost later, as a suffix of whole scripts.
Knows nothing of Kafka; the oracle looks at every write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyfold.worker.errors import NotOwner
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    Fence,
    Fingerprint,
    Held,
    Refused,
    SavePlan,
    Topic,
)
from simulator.model import Lineage, State

if TYPE_CHECKING:
    from simulator.world import World


@dataclass(frozen=True, slots=True)
class AcquiredFrom(Acquired):
    """Redis's word, and of which truth it speaks."""

    lineage: Lineage | None = field(default=None, compare=False)  # for the oracle only


@dataclass(frozen=True, slots=True)
class Payload:
    """What one save writes."""

    states: Mapping[bytes, State]  # new states
    cleared: Iterable[bytes]  # keys reset and not stepped since
    collect: int | None = None  # states touched before it are expired: scan for them


@dataclass(slots=True)
class Hash:
    """One partition's hash."""

    watermark: int  # #W
    base: int  # #B
    number: int  # #E
    nonce: str  # #O
    bundle: int  # #M
    lineage: Lineage  # the truth that it must show; no field
    last: Fingerprint | None = None  # #L
    keys: int = 0  # #K
    stream: int | None = None  # #S
    floor: int = 0  # #F
    lost: tuple[tuple[int, int], ...] = ()  # #G
    committed: int | None = None  # #C
    resets: int = 0  # #R
    states: dict[bytes, State] = field(default_factory=dict)
    missing: frozenset[bytes] = frozenset()  # keys whose state a fault took; no field

    def copy(self) -> Hash:
        """Return a copy."""
        return Hash(
            self.watermark, self.base, self.number, self.nonce, self.bundle, self.lineage,
            self.last, self.keys, self.stream, self.floor, self.lost, self.committed, self.resets,
            dict(self.states), self.missing,
        )  # fmt: skip


class SimRedis:
    """The scripts, on one partition."""

    KEPT = 8  # whole scripts that a failover may lose, at most

    def __init__(self, world: World) -> None:
        self.world = world
        self.hash: Hash | None = None
        self.topic: Topic | None = None  # #N and #T beside it
        self.past: deque[Hash | None] = deque([None], maxlen=self.KEPT)

    # -- scripts -----------------------------------------------------------------------------------

    def check_topic(self, now: Topic) -> Refused | None:
        """Keep the first count and id ever seen; refuse others."""
        if self.topic is None:
            self.topic = now
        elif not self.topic.identity:
            self.topic = Topic(self.topic.partitions, now.identity)
        first = self.topic
        if first.partitions != now.partitions:
            return Refused("partitions", str(now.partitions), str(first.partitions))
        if first.identity and now.identity and first.identity != now.identity:
            return Refused("topic", now.identity, first.identity)
        return None

    def take_fence(self, nonce: str, bundle: int, begin: Beginning | None) -> Acquired | Refused:
        """ACQUIRE."""
        held = self.hash
        if held is None:
            if begin is None:
                return Refused("missing", "a watermark", "none")
            lineage = self.world.begun_where_nothing_is(begin, bundle)
            at = begin.offset
            held = self.hash = Hash(at, at, 0, "", bundle, lineage, floor=begin.floor)
        elif not self._all_there(held):
            return Refused("states", str(held.keys), str(len(held.states)))
        elif not self._same_bundle(held, bundle):
            got = str(held.bundle)
            return Refused("bundle", str(bundle), got, held.watermark, held.base)
        return self._take(held, nonce, bundle)

    def begin_anew(
        self, nonce: str, bundle: int, refused: Refused, begin: int
    ) -> Acquired | Refused:
        """Drop another bundle's states."""
        held = self.hash
        if held is None or (str(held.bundle), held.watermark) != (refused.got, refused.watermark):
            got = ("none", 0) if held is None else (str(held.bundle), held.watermark)
            return Refused("bundle", str(bundle), *got)
        floor = max(refused.watermark, held.floor)
        out = max(floor, held.lineage.floor)  # C may tell of more than #F
        lineage = self.world.begun(begin, bundle, out, self.world.era_after(held.lineage))
        self.hash = Hash(
            begin, begin, held.number, "", bundle, lineage, floor=floor, committed=held.committed,
            resets=held.resets,
        )  # fmt: skip
        return self._take(self.hash, nonce, bundle)

    def skip_lost(self, acquired: Acquired, upto: int) -> Acquired:
        """Move W over lost events. Raises NotOwner."""
        held, fence = self.hash, acquired.fence
        if (
            held is None
            or held.watermark != acquired.watermark
            or (held.number, held.nonce, str(held.bundle))
            != (fence.number, fence.nonce, fence.bundle)
        ):
            raise NotOwner("the fence was taken meanwhile")
        held.lost = (*held.lost, (held.watermark, upto))
        self.world.skipped_upto = max(self.world.skipped_upto, upto)
        held.watermark, held.last = upto, None
        held.lineage = self.world.continued(held, upto, upto, held.lineage.era)
        self.wrote()
        return self._tell(held, fence.nonce, held.bundle)

    def load(self, keys: Iterable[bytes]) -> tuple[Held, dict[bytes, State | None]]:
        """Read states, and what is held at that instant."""
        states: Mapping[bytes, State] = {} if self.hash is None else self.hash.states
        return self.held(), {key: states.get(key) for key in keys}

    def save(self, fence: Fence, plan: SavePlan, payload: Payload) -> Held:
        """Compare and set."""
        held = self.hash
        if held is not None:
            if self._may_save(held, fence, plan):
                self.world.oracle.before_save(held, fence, plan)
                self._write(held, plan, payload)
                self.wrote()
                self.world.oracle.after_save(held)
            else:
                self._count_refusal(held, fence, plan)
        return self.held()

    def held(self) -> Held:
        """Return what is held."""
        held = self.hash
        if held is None:
            return Held(None, 0, "", "", 0, -13)
        return Held(
            held.watermark, held.number, held.nonce, str(held.bundle), held.keys,
            len(held.states),
        )  # fmt: skip

    # -- their parts; a negative control replaces one ----------------------------------------------

    def _same_bundle(self, held: Hash, bundle: int) -> bool:
        return held.bundle == bundle

    def _may_save(self, held: Hash, fence: Fence, plan: SavePlan) -> bool:
        return (
            self._watermark_fits(held, plan)
            and self._is_owner(held, fence)
            and self._all_there(held)
        )

    def _all_there(self, held: Hash) -> bool:
        return held.keys == len(held.states)

    def _watermark_fits(self, held: Hash, plan: SavePlan) -> bool:
        return held.watermark == plan.w0

    def _is_owner(self, held: Hash, fence: Fence) -> bool:
        return (held.number, held.nonce, str(held.bundle)) == (
            fence.number, fence.nonce, fence.bundle,
        )  # fmt: skip

    def _count_refusal(self, held: Hash, fence: Fence, plan: SavePlan) -> None:
        count = self.world.count
        if not self._is_owner(held, fence):
            count["late save of a stale owner refused"] += 1
        elif held.watermark == plan.w1:
            count["save repeated after its reply was lost"] += 1
        elif held.watermark != plan.w0:
            count["save on a watermark that moved back refused"] += 1

    def _write(self, held: Hash, plan: SavePlan, payload: Payload) -> None:
        states = held.states
        before = len(states)
        states.update(payload.states)
        for key in payload.cleared:
            states.pop(key, None)
        if payload.collect is not None:
            for key in [k for k, state in states.items() if state.touched < payload.collect]:
                if self.world.random() < 0.5:  # the scan looks at some fields only
                    del states[key]
                    self.world.count["expired state collected"] += 1
        held.keys += len(states) - before
        held.watermark, held.last, held.stream = plan.w1, plan.fingerprint, plan.stream_ms
        if self.world.exactly_once:
            held.committed = plan.w1

    def _take(self, held: Hash, nonce: str, bundle: int) -> Acquired:
        held.number += 1
        held.nonce = nonce
        if not self.world.exactly_once:
            held.committed = None
        self.wrote()
        return self._tell(held, nonce, bundle)

    def _tell(self, held: Hash, nonce: str, bundle: int) -> Acquired:
        fence = Fence(held.number, nonce, str(bundle))
        return AcquiredFrom(
            fence, held.watermark, held.last, held.stream, held.floor, held.lost, held.committed,
            held.resets, held.lineage,
        )  # fmt: skip

    # -- faults ------------------------------------------------------------------------------------

    def wrote(self) -> None:
        """Remember this instant: a failover may come back to it."""
        self.past.append(None if self.hash is None else self.hash.copy())

    def replicated(self) -> None:
        """Wait until the replicas have it: an operator's command is not lost by a failover.

        It would be the operator's loss: what was given up would be back, what was emitted again
        would not count.
        """
        self.past = deque([None if self.hash is None else self.hash.copy()], maxlen=self.KEPT)

    def roll_back(self, choice: int) -> None:
        """Lose the last `choice` scripts."""
        kept = list(self.past)[: len(self.past) - choice]
        then = kept[-1]
        self.past = deque(kept, maxlen=self.KEPT)
        self.hash = None if then is None else then.copy()

    def forget_other_logs(self) -> None:
        """Let no failover bring back what was folded from a log that is no more."""
        log = self.world.log
        kept = [one for one in self.past if one is None or one.lineage.log is log]
        self.past = deque(kept, maxlen=self.KEPT)

    def lose_all(self) -> None:
        """Lose everything."""
        self.hash = self.topic = None
        self.past = deque([None], maxlen=self.KEPT)

    def lose_key(self, key: bytes) -> None:
        """Lose one state."""
        if self.hash is not None and self.hash.states.pop(key, None) is not None:
            self.hash.missing |= {key}
