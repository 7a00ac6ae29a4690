"""Where keyfold-worker repartition begins in each partition: behind what was moved, or not at all.

Owns what the group's positions are worth. A position that Kafka forgot (offsets of a group that
does not run expire), or behind which retention has deleted records, is never replaced in silence:
that would move records twice, or leave some out. Called by session.py whenever
it is given partitions.

First positions are made by whoever has partition 0 and by nobody else, for all partitions at once:
two that made one could set each other's back, and records would be moved twice. Others wait for it,
and move nothing before. That only one has partition 0 the group sees to: positions told under an
assignment that is over are refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from keyfold.worker.config import Config
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.repartition.work import Again, Work

log = logging.getLogger(__name__)

WAYS = "give --from-start to go on with its oldest record, --from-end with what comes from now on"


AWAIT_S = 5.0  # for the first positions, which another instance makes
LOOK_S = 0.1  # between two looks at them


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition is read from."""

    partition: int  # its number
    offset: int  # of the first record to be moved
    known: bool  # whether that is the group's position; else it has to become it
    was: int | None = None  # the group's position where it cannot be that; None: there is none


@dataclass(frozen=True, slots=True)
class Begin:
    """Finds the places of partitions just given to this program."""

    config: Config  # for a look at the target
    work: Work  # from where to where
    consumer: Consumer  # of the group
    timeout_s: float  # of one question to the brokers

    def places(self, given: Sequence[int]) -> list[Place]:
        """Return where each partition begins. Raises SetUpError, Again, KafkaException.

        Who has partition 0 also returns those of others that have no position: all first positions
        are made at once, so that some without one are some that were lost. Again: who has it has
        not made ours yet.
        """
        every = self._every()
        if 0 in given:
            known = self._positions(every)
            asked = [*given, *(number for number in every if number not in {*known, *given})]
        else:
            known, asked = self._awaited(every, given), list(given)
        missing = [number for number in asked if number not in known]
        if missing:
            self._expect_first_time(every, known, missing)
            known = self._positions(every)  # the look may have taken a while
            if 0 not in given:
                self._expect_made(known, missing)
        return [self._place(number, known.get(number)) for number in asked]

    def unmade(self, places: Sequence[Place], ours: Sequence[int]) -> dict[int, int]:
        """Return the positions that have still to be made, just before they are.

        Another's that has come since the look stays as it is. Raises Again: one of ours has.
        """
        now = self._positions([place.partition for place in places if not place.known])
        unmade = {}
        for place in places:
            number = place.partition
            if place.known:
                continue
            if now.get(number) == place.was:
                unmade[number] = place.offset
            elif number in ours:
                raise Again(f"{self.work.source}:{number}: its position has changed meanwhile")
        return unmade

    def _expect_made(self, known: Mapping[int, int], missing: Sequence[int]) -> None:
        """Refuse to make first positions: that is another's. Raises Again."""
        unmade = [number for number in missing if number not in known]
        if unmade:
            raise Again(
                f"group {self.work.group} has no positions in partitions "
                f"{', '.join(map(str, unmade))} of {self.work.source}: whoever has partition 0 "
                "makes them (is there another instance, and does it go on?)"
            )

    def _every(self) -> list[int]:
        source = self.work.source
        return sorted(self.consumer.list_topics(source, self.timeout_s).topics[source].partitions)

    def _awaited(self, every: Sequence[int], given: Sequence[int]) -> dict[int, int]:
        """Return the group's positions; wait a while for those of partitions given to us."""
        deadline = time.monotonic() + AWAIT_S
        while True:
            known = self._positions(every)
            if known.keys() >= set(given) or time.monotonic() > deadline:
                return known
            time.sleep(LOOK_S)

    def _place(self, number: int, position: int | None) -> Place:
        where = TopicPartition(self.work.source, number)
        start, end = self.consumer.get_watermark_offsets(where, timeout=self.timeout_s)
        if position is not None and start <= position <= end:
            return Place(number, position, known=True)
        if position is not None:
            self._expect_consent(number, position, start, end)
        offset = end if self.work.begin == "end" else start
        log.info("%s:%d: beginning at offset %d", self.work.source, number, offset)
        return Place(number, offset, known=False, was=position)

    def _expect_consent(self, number: int, position: int, start: int, end: int) -> None:
        if self.work.begin:
            return
        source = self.work.source
        what = f"its end is {end}: was the topic made anew?"
        if position < start:
            what = f"its records up to offset {start - 1} were deleted (retention) before they were"
            what += " moved:"
        raise SetUpError(
            f"{source}:{number}: group {self.work.group} stands at offset {position}, but {what} "
            f"{WAYS}"
        )

    def _expect_first_time(
        self, every: Sequence[int], known: Mapping[int, int], missing: Sequence[int]
    ) -> None:
        """Refuse to begin if something may have been moved before. Raises SetUpError."""
        work = self.work
        if known:  # in a partition without records there is nothing to be moved twice
            missing = [number for number in missing if self._holds_records(number)]
        if work.begin or not missing or not self._target_holds_records():
            return
        # After the look: another one like this may just have begun, records and positions at once.
        if not known and self._positions(every):
            return
        where, why = work.source, "never begun, or expired"
        if known:
            numbers = ", ".join(map(str, sorted(missing)))
            where, why = f"partitions {numbers} of {where}", "lost, or the topic has grown"
        raise SetUpError(
            f"group {work.group} has no positions in {where} ({why}), but {work.target} holds "
            f"records: to begin now may move some twice; {WAYS}"
        )

    def _holds_records(self, number: int) -> bool:
        where = TopicPartition(self.work.source, number)
        start, end = self.consumer.get_watermark_offsets(where, timeout=self.timeout_s)
        return bool(end > start)

    def _positions(self, numbers: Sequence[int]) -> dict[int, int]:
        """Return the group's positions, settled ones only."""
        asked = [TopicPartition(self.work.source, number) for number in numbers]
        if not asked:
            return {}
        found = self.consumer.committed(asked, timeout=self.timeout_s)
        for one in found:
            if one.error is not None:
                raise KafkaException(one.error)
        return {one.partition: one.offset for one in found if one.offset >= 0}

    def _target_holds_records(self) -> bool:
        """Return whether readers of committed records find any in the target."""
        topic = self.work.target
        with open_log(self.config) as found:
            for number in range(found.partitions(topic)):
                extent = found.extent(topic, number)
                # Offsets alone do not tell: an aborted transaction's records take some, too.
                if any(True for _ in found.read(topic, number, extent.start, extent.end)):
                    return True
        return False
