"""What must always hold, checked at every save, every output and every HALT.

Owns the invariants; raises Violation at the first that does not hold. Sees the whole world; nothing
in the world asks it for anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from keyfold.worker.protocol import Fence, SavePlan
from simulator.kafka import Transaction
from simulator.model import Lineage, Output, State
from simulator.store import Hash

if TYPE_CHECKING:
    from simulator.world import World

# What a HALT's message begins with -> (its cause, the faults that may lead to it).
HALTS = {
    "the state is gone": ("missing", {"total loss", "rollback to nothing"}),
    "the topic's number": ("partitions", {"topic grown"}),
    "the topic was created": ("topic", {"topic recreated"}),
    "the state belongs": ("bundle", {"bundle switched"}),
    "key states are": ("states", {"key lost"}),
    "the log starts": ("events lost", {"retention past W"}),
    "the log ends": ("log too short", {"topic recreated", "log truncated"}),
    "the record at": ("another record", {"topic recreated", "log truncated"}),
    "exactly-once": (
        "outputs unknown",
        {"group offset lost", "topic recreated"},
    ),
}
COMMAND = re.compile(r"keyfold-state (reset|rebuild|adopt|restore)|(mark-and-continue)")


class Violation(Exception):
    """An invariant does not hold."""


class Oracle:
    """The invariants of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.out: set[tuple[int, int]] = set()  # (era, offset) that consumers can see, or will
        self._first: dict[tuple[int, bytes | None], int] = {}  # (era, key) -> latest first seen
        self.decided = 0  # exactly-once: the highest group offset decided under its metadata
        self._metadata = ("", 0)  # of that one, and its era

    # -- outputs -----------------------------------------------------------------------------------

    def emitted(self, lineage: Lineage, outputs: list[Output], stale: bool = False) -> None:
        """At-least-once: look at outputs that have arrived in the log.

        `stale`: sent by a worker that did not know yet that it has lost the partition, which
        at-least-once outputs cannot hold back: it may have fetched beyond a seam meanwhile.
        """
        for output in outputs:
            self._check_output(lineage, output)
            if stale and not self._world.emits(output.offset):
                self._world.count["outputs of a stale worker behind a seam"] += 1
                continue
            self._saw(lineage, output)

    def decided_outputs(self, transaction: Transaction) -> None:
        """Exactly-once: look at a transaction whose end is decided."""
        lineage, to = transaction.lineage, transaction.to
        for output in transaction.outputs:
            self._check_output(lineage, output)
            if (lineage.era, output.offset) in self.out:
                raise Violation(f"exactly-once: the output about {output.offset} is out twice")
            self._saw(lineage, output)
        counts = (to.metadata, lineage.era) == self._metadata
        if counts and to.offset < self.decided:
            raise Violation(f"exactly-once: C moved back from {self.decided} to {to.offset}")
        below = self.decided if counts else lineage.start
        for offset in self._due(lineage, below, to.offset):
            if (lineage.era, offset) not in self.out:
                raise Violation(
                    f"exactly-once: C moved to {to.offset}, the output {offset} did not"
                )
        self.decided, self._metadata = to.offset, (to.metadata, lineage.era)

    def _check_output(self, lineage: Lineage, output: Output) -> None:
        offset = output.offset
        expected = lineage.expected(offset)
        if expected is None:
            raise Violation(f"an output about {offset}, where no event is")
        key, history, gap = expected
        if (key, history) != (output.key, output.history):
            raise Violation(f"wrong output about {offset}: {output} instead of {expected}")
        if gap is not None and gap != output.gap:
            raise Violation(f"the output about {offset} says gap={output.gap}, expected {gap}")
        if offset < lineage.floor:
            raise Violation(f"an output about {offset}, below the emit floor {lineage.floor}")

    def _saw(self, lineage: Lineage, output: Output) -> None:
        where = (lineage.era, output.offset)
        world = self._world
        world.common.emitted[output.offset].add(world.group)
        if not world.emits(output.offset):
            raise Violation(f"seam: {world.group} emits {output.offset}: {world.common.handovers}")
        if where in self.out:
            self._world.count["output repeated"] += 1
            return
        self.out.add(where)
        of_key = (lineage.era, output.key)
        # At least once a frozen worker may still hold outputs of events that were lost meanwhile.
        late = not self._world.exactly_once and output.offset < self._world.skipped_upto
        if output.offset < self._first.get(of_key, -1) and not late:
            raise Violation(f"key {output.key!r}: {output.offset} first seen after a later one")
        self._first[of_key] = max(output.offset, self._first.get(of_key, -1))

    # -- saves -------------------------------------------------------------------------------------

    def before_save(self, held: Hash, fence: Fence, plan: SavePlan) -> None:
        """Look at a save that takes effect: is everything out that it is about?"""
        if (held.number, held.nonce, str(held.bundle)) != (fence.number, fence.nonce, fence.bundle):
            raise Violation(f"I5: stale owner {fence} saved over {held.number}/{held.nonce}")
        self._world.count["save"] += 1
        lineage = held.lineage
        for offset in self._due(lineage, held.watermark, plan.w1):
            if (lineage.era, offset) not in self.out:
                raise Violation(f"saved up to {plan.w1}, but the output about {offset} is not out")
        if self._world.exactly_once and plan.w1 > self.decided:
            raise Violation(f"saved up to {plan.w1}, C is at {self.decided}")

    def _due(self, lineage: Lineage, low: int, high: int) -> list[int]:
        """Return the offsets in [low, high) about which this group must have put something out."""
        offsets = lineage.outputs_between(low, high)
        if not (self._world.common.agreed.seams or self._world.rules.silent):
            return offsets
        return [offset for offset in offsets if self._world.emits(offset)]

    def after_save(self, held: Hash) -> None:
        """I1: the saved states are the fold of the events below W."""
        truth = held.lineage.at(held.watermark)
        if held.states != truth.states:
            self._compare_states(held, truth.states)
        if held.stream != truth.stream:
            raise Violation(f"stream time {held.stream} at {held.watermark}, not {truth.stream}")
        last = None if truth.last is None else truth.last.offset
        if last is not None and (held.last is None or held.last.offset != last):
            raise Violation(f"fingerprint {held.last} at {held.watermark}, last record {last}")

    def _compare_states(self, held: Hash, expected: dict[bytes, State]) -> None:
        reset_after, stream = self._world.reset_after, held.stream or 0
        for key, state in expected.items():
            found = held.states.get(key)
            if found is None:
                old = reset_after is not None and stream - state.touched > reset_after
                if old or key in held.missing:
                    continue
            if found is None or found[:4] != state[:4]:
                raise Violation(f"I1: at {held.watermark} key {key!r} has {found}, not {state}")
        for key in held.states.keys() - expected.keys():
            raise Violation(f"I1: at {held.watermark} key {key!r} has a state, expected none")

    # -- phases ------------------------------------------------------------------------------------

    def halted(self, why: str) -> str:
        """Return a HALT's cause; it must have one, and name what resolves it."""
        known = next((beginning for beginning in HALTS if why.startswith(beginning)), None)
        if known is None:
            raise Violation(f"a HALT nobody has heard of: {why}")
        cause, faults = HALTS[known]
        if not faults & self._world.happened:
            raise Violation(f"a HALT without a cause ({', '.join(faults)}): {why}")
        if not COMMAND.search(why):
            raise Violation(f"a HALT that names no command: {why}")
        return cause

    def at_the_end(self, held: Hash | None) -> None:
        """Look at the whole, once faults are over and a worker has caught up."""
        world = self._world
        if held is None or held.watermark != world.log.end:
            raise Violation(f"liveness: the log ends at {world.log.end}, Redis holds {held}")
        self.after_save(held)
        lineage = held.lineage
        offsets = self._due(lineage, lineage.start, held.watermark)
        left = [offset for offset in offsets if (lineage.era, offset) not in self.out]
        if left:
            raise Violation(f"outputs never came out: {left}")
        noted = world.redis.topic
        if noted is None:
            return  # lost with everything else, after the fence was taken
        if noted.partitions != world.topic.partitions:
            raise Violation(f"serving {world.topic}, folded from {world.redis.topic}")
        if world.topic.identity not in ("", noted.identity):
            raise Violation(f"serving {world.topic}, folded from {world.redis.topic}")
