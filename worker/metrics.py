"""Counters of one worker: what was done, and microseconds per event of each step of the path.

Owns numbers only; whoever does the work adds to them. Written to the log every few seconds and
served by the web view when that is on. Rates are over the time since the last line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

STEPS = ("decode", "load", "schedule", "step", "encode", "emit", "save")


@dataclass(slots=True)
class Metrics:
    """Totals since start."""

    events: int = 0  # applied to a state
    rejects: int = 0  # sent to the dead-letter topic
    loaded: int = 0  # states read from Redis
    evicted: int = 0  # idle slots dropped
    saves: int = 0  # compare-and-sets that succeeded
    saved_states: int = 0  # states they wrote
    rewinds: int = 0  # times Redis had lost writes
    halts: int = 0  # times a partition came to a halt
    lost: int = 0  # offsets that retention took unseen (worker.on_lost_range)
    resets: int = 0  # keys that started cold again after a silence (reset_after) or a tombstone
    unverified: int = 0  # acquired without finding the fingerprint's record in the log
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    _since: float = field(default_factory=time.monotonic)  # of the last line
    _before: int = 0  # events at the last line

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent inside to a step of the path."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - started

    def line(self, lag: int, keys: int, phases: str) -> str:
        """Return the periodic log line and begin the next interval."""
        now = time.monotonic()
        rate = (self.events - self._before) / max(now - self._since, 1e-9)
        self._since, self._before = now, self.events
        profile = " ".join(f"{name} {us:.2f}" for name, us in self.profile().items())
        return (
            f"{self.events} events, {rate:,.0f}/s, lag {lag}, {self.rejects} rejects, "
            f"{keys} keys resident, partitions {phases}; us/event: {profile}"
        )

    def counts(self) -> dict[str, int]:
        """Return the totals by name."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name != "seconds" and not item.name.startswith("_")
        }

    def profile(self) -> dict[str, float]:
        """Return microseconds per event by step, over all events so far."""
        return {name: 1e6 * spent / max(self.events, 1) for name, spent in self.seconds.items()}
