"""Two groups on one input and one output topic, and an operator who hands the outputs over.

Each group is a world of its own (workers, Redis hash, coordinator); they have the input log and the
record of handovers in common, and one random source. Faults are those that leave the log and the
group's hash in existence: what follows when these are gone is the business of a single world.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from keyfold.worker.handover.handing_over import AskRecord, AskWhere, Change, Outcome, Pause, Where
from keyfold.worker.handover.ownership import HandoverRefused, Handovers
from simulator import faults
from simulator.kafka import Log
from simulator.moves import finish, move
from simulator.oracle import Violation
from simulator.schedules import Failed, Tally
from simulator.world import Common, Parts, Weights, World

OLD, NEW = "old", "new"
COMMAND = 0.15  # of all moves: the operator's
FORGETS = 0.01  # of all moves between an agreement and the next change: Redis fails over


def fail_over(world: World) -> None:
    """Redis fails over to a replica that lags, which has the partition at least."""
    if None not in world.redis.past:
        faults.roll_back(world)


FAULTS: Weights = {
    faults.crash: 3, faults.freeze: 1, faults.split: 1, faults.expire_transaction: 1,
    faults.settle: 3, faults.join: 2, faults.rebalance: 1, faults.thaw: 3, faults.hint: 5,
    faults.skip: 2,
}  # fmt: skip


class Pair:
    """One schedule of two groups."""

    def __init__(self, seed: int, parts: Parts | None = None, traced: bool = False) -> None:
        given = parts or Parts()
        parts = replace(given, tune=lambda world, weights: self._tune(world, weights, given))
        self.common = Common(Log(), Handovers(), defaultdict(set))
        self.old = World(seed, parts, traced, self.common, OLD)
        self.new = World(seed + (1 << 40), parts, traced, self.common, NEW)
        for one in (self.old, self.new):
            one.rules = replace(one.rules, bundle_change="halt", silent=one is self.new)
            one.start = "earliest" if one is self.old else one.start
            one.fault_rate = one.fault_rate / 2
        self.new.append_rate = 0.0  # the log is one
        self.old.append_rate /= 2
        self.new.bundle = 2
        for worker in self.new.workers:
            worker.bundle = 2
        for _ in range(int(self.old.random() * 8)):
            self.old.append()
        self.operator = Operator(self)
        self.forgetful = self.old.random() < 0.5  # Redis, in schedules of this kind

    def _tune(self, world: World, weights: Weights, given: Parts) -> None:
        world.allowed, world.emit_ahead = set(), None
        weights.clear()
        weights.update(FAULTS)
        if world.random() < 0.3:
            weights[fail_over] = 1
        given.tune(world, weights)

    def run(self) -> None:
        """Run the schedule, then let both groups catch up. Raises Violation."""
        draw = self.old.random
        for _ in range(self.old.length * 10):
            if self.forgetful and self.common.may_forget and draw() < FORGETS:
                self.common.forget()
                self.old.count["agreement forgotten"] += 1
            if draw() < COMMAND:
                self.operator.move()
            else:
                world = self.old if draw() < 0.5 else self.new
                move(world)
                self.old.now_ms = self.new.now_ms = max(self.old.now_ms, self.new.now_ms)
        self.operator.die()  # what it has proposed stands
        for world in (self.old, self.new, self.old):
            finish(world)
        self._check()

    def _check(self) -> None:
        """Every prediction is the group's that has it, also those that were out before that."""
        handovers = self.common.handovers
        for offset, groups in sorted(self.common.emitted.items()):
            for group in groups:
                if not handovers.emits(group, offset):
                    raise Violation(f"seam: {group} has emitted {offset}: {handovers}")


class Operator:
    """Hands the outputs over, and back; dies at any point."""

    def __init__(self, pair: Pair) -> None:
        self._pair, self._world = pair, pair.old
        self._command: Any = None
        self._question: Any = None
        self._sent: Callable[[], object] | None = None  # arrives even if the command dies

    def move(self) -> None:
        """Do one step."""
        world, draw = self._world, self._world.random
        if self._command is None:
            if draw() < 0.3:
                self._begin()
            return
        if draw() < 0.002:
            world.count["command killed"] += 1
            self.die()
            return
        if self._sent is None and isinstance(self._question, Change):
            before, after = self._question.before, self._question.after
            self._sent = lambda: self._pair.common.swap(before, after)
            return  # it is on its way
        if self._sent is not None and world.lossy and draw() < world.lossy:
            world.lose(self._sent)
            self._sent = None  # sent again
            return
        self._advance(self._answer())

    def die(self) -> None:
        """End the command; what it has sent may still arrive."""
        if self._sent is not None and self._world.random() < 0.6:
            self._world.orphans.append(self._sent)
        self._command = self._sent = None

    def _begin(self) -> None:
        giver = self._pair.common.handovers.last or OLD
        taker = NEW if giver == OLD else OLD
        self._command = self._world.parts.command(giver, taker)
        self._world.count["command"] += 1
        self._advance(None)

    def _advance(self, answer: object) -> None:
        self._sent = None
        try:
            self._question = self._command.send(answer)
        except StopIteration as end:
            outcome: Outcome = end.value
            self._world.count["handed over" if outcome.seam else "not handed over"] += 1
            self._command = None
        except HandoverRefused:
            self._world.count["command refused"] += 1
            self._command = None

    def _answer(self) -> object:
        common = self._pair.common
        if isinstance(self._question, Pause):
            return self._world.random() > 0.001
        if isinstance(self._question, AskWhere):
            hashes = (self._pair.old.redis.hash, self._pair.new.redis.hash)
            furthest = max((one.watermark for one in hashes if one is not None), default=0)
            return Where(common.handovers, common.log.end, furthest)
        if isinstance(self._question, AskRecord):
            return common.handovers
        assert self._sent is not None
        held = self._sent()
        if common.handovers.proposal is None and common.handovers.seams:
            self._world.trace("decided", None, common.handovers)
        return held


def run_pairs(seeds: Iterable[int], parts: Parts | None = None) -> Tally:
    """Run schedules of two groups. Raises Failed at the first violation."""
    tally = Tally()
    for seed in seeds:
        pair = Pair(seed, parts)
        try:
            pair.run()
        except Violation as violation:
            raise Failed(_told(seed, violation, parts)) from violation
        tally.add(pair.old)
        tally.add(pair.new)
    return tally


def first_caught(seeds: Iterable[int], parts: Parts, seen: str = "") -> tuple[int, str] | None:
    """Return the first seed whose violation says `seen`, and what it says; None: none does."""
    for seed in seeds:
        try:
            Pair(seed, parts).run()
        except Violation as violation:
            if seen in str(violation):
                return seed, str(violation)
    return None


def _told(seed: int, violation: Violation, parts: Parts | None) -> str:
    pair = Pair(seed, parts, traced=True)
    try:
        pair.run()
    except Violation as same:
        violation = same
    lines = [
        f"{world.group}: {'exactly' if world.exactly_once else 'at least'} once, "
        f"lossy={world.lossy}, write_behind={world.write_behind}\n"
        + "\n".join(f"  {event}" for event in world.events[-60:])
        for world in (pair.old, pair.new)
    ]
    return f"pair, seed {seed}: {violation}\n" + "\n".join(lines)
