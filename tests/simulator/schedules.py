"""One schedule, many schedules, and what they covered.

Owns how a seed becomes a verdict and how a violation is told. Called by __main__.py and the tests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from keyfold.worker.protocol import Phase
from simulator.moves import run
from simulator.oracle import Violation
from simulator.world import Parts, World

SHOWN = 60  # last events of a schedule that failed


@dataclass(slots=True)
class Tally:
    """What some schedules covered."""

    schedules: int = 0  # run
    moves: int = 0  # of all of them
    seconds: float = 0.0  # it took
    happened: Counter[str] = field(default_factory=Counter)  # faults and what followed
    asked: Counter[str] = field(default_factory=Counter)  # questions of the phases
    changes: Counter[tuple[Phase, Phase]] = field(default_factory=Counter)  # of phase, as seen

    def add(self, world: World) -> None:
        """Count one schedule."""
        self.schedules += 1
        self.moves += world.moves
        self.happened.update(world.count)
        self.asked.update({kind.__name__: times for kind, times in world.asked.items()})
        self.changes.update(world.changes)

    def add_all(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.schedules += other.schedules
        self.moves += other.moves
        self.seconds += other.seconds
        self.happened.update(other.happened)
        self.asked.update(other.asked)
        self.changes.update(other.changes)

    def __str__(self) -> str:
        """Tell it in lines."""
        lines = [
            f"{self.schedules} schedules, {self.moves} moves, {self.seconds:.1f} s, "
            f"{self.schedules / max(self.seconds, 1e-9):.0f} schedules/s"
        ]
        lines += [f"  {times:9d}  {what}" for what, times in sorted(self.happened.items())]
        lines += [f"  {times:9d}  asked: {what}" for what, times in sorted(self.asked.items())]
        changes = {f"{old.value} -> {new.value}": n for (old, new), n in self.changes.items()}
        lines += [f"  {times:9d}  {what}" for what, times in sorted(changes.items())]
        return "\n".join(lines)


class Failed(AssertionError):
    """A schedule violated an invariant; the text says which and how to see it again."""


def run_many(seeds: Iterable[int], parts: Parts | None = None) -> Tally:
    """Run schedules. Raises Failed at the first violation."""
    tally, began = Tally(), time.perf_counter()
    for seed in seeds:
        world = World(seed, parts)
        try:
            run(world)
        except Violation as violation:
            raise Failed(told(seed, violation, parts)) from violation
        tally.add(world)
    tally.seconds = time.perf_counter() - began
    return tally


def first_caught(seeds: Iterable[int], parts: Parts, seen: str = "") -> tuple[int, str] | None:
    """Return the first seed whose violation says `seen`, and what it says; None: none does."""
    for seed in seeds:
        try:
            run(World(seed, parts))
        except Violation as violation:
            if seen in str(violation):
                return seed, str(violation)
    return None


def told(seed: int, violation: Violation, parts: Parts | None = None) -> str:
    """Tell a violation: what, the last events, and how to run it alone."""
    world = World(seed, parts, traced=True)
    again = "it does not happen again: the schedule is not deterministic"
    try:
        run(world)
    except Violation as same:
        again = str(same)
    events = "\n".join(
        f"  {move:5d}  {what:10s} {who:9s} {' '.join(map(str, more))}"
        for move, what, who, *more in world.events[-SHOWN:]
    )
    outputs = "exactly-once" if world.exactly_once else "at-least-once"
    return (
        f"seed {seed}: {violation}\n{events}\n"
        f"  {outputs}, start={world.start!r}, reset_after={world.reset_after}, {world.rules}, "
        f"lossy={world.lossy}, write_behind={world.write_behind}\n"
        f"  seed {seed}: {again}\n"
        f"again: PYTHONPATH=tests .venv/bin/python -m simulator --seed {seed} --schedules 1"
    )
