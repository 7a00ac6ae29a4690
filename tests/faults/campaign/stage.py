"""What faults act on: the scene, the workers, the traffic, and what is to be undone when.

Owns the list of undoings and the record of what struck when. Faults are functions of a stage and a
planned fault; run.py owns the time.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import redis
from confluent_kafka import KafkaException

from campaign.archive import Archive
from campaign.scene import Scene
from campaign.schedule import Fault
from campaign.sender import Sender
from campaign.workers import Run, Workers
from local.services import ServiceError


@dataclass(slots=True)
class Strike:
    """A fault that has struck."""

    kind: str  # of the fault
    at_ms: int  # by this machine's clock, which also stamps the predictions
    partitions: tuple[int, ...]  # whose next prediction ends the outage
    detail: str = ""  # where exactly


@dataclass(slots=True)
class Stage:
    """One schedule under way."""

    scene: Scene
    workers: Workers
    sender: Sender
    archive: Archive
    random: random.Random  # of the schedule's seed
    strikes: list[Strike] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the report, nothing wrong
    operated: list[str] = field(default_factory=list)  # operator's commands that were run
    _pending: list[tuple[float, int, bool, Callable[[], object]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def struck(
        self, fault: Fault, partitions: Sequence[int] | None = None, detail: str = ""
    ) -> None:
        """Note that a fault strikes now."""
        self.note_strike(fault.kind, int(time.time() * 1000), partitions, detail)

    def note_strike(
        self, kind: str, at_ms: int, partitions: Sequence[int] | None = None, detail: str = ""
    ) -> None:
        """Note a strike; without `partitions` it concerns all."""
        everything = range(self.scene.partitions)
        concerned = tuple(everything if partitions is None else partitions)
        self.strikes.append(Strike(kind, at_ms, concerned, detail))

    def owned_by(self, run: Run) -> list[int]:
        """Return the partitions that a worker owns by Redis's word, [] when Redis is away."""
        with suppress(redis.RedisError, OSError):
            return [n for n, nonce in self.scene.owners().items() if nonce and nonce == run.nonce]
        return []

    # -- undoing -----------------------------------------------------------------------------------

    def later(self, seconds: float, call: Callable[[], object], *, heals: bool = True) -> None:
        """Call something later; what `heals` is called in any case, early if need be."""
        due = time.monotonic() + seconds
        heapq.heappush(self._pending, (due, next(self._numbers), heals, call))

    def run_due(self) -> None:
        """Call what is due."""
        while self._pending and self._pending[0][0] <= time.monotonic():
            _, _, heals, call = heapq.heappop(self._pending)
            if heals:
                call()
            else:
                self.attempt(call)

    def attempt(self, call: Callable[[], object]) -> None:
        """Let a fault strike; one that another fault keeps from striking is noted, no more."""
        try:
            call()
        except (redis.RedisError, KafkaException, OSError, ServiceError) as error:
            self.notes.append(f"did not strike: {type(error).__name__}")

    def heal(self) -> None:
        """Undo all faults now."""
        while self._pending:
            _, _, heals, call = heapq.heappop(self._pending)
            if heals:
                call()
        self.workers.disarm()
        self.workers.end_extras()
        self.workers.come_back()
        self.scene.kafka.revive()
        self.scene.store.revive()
