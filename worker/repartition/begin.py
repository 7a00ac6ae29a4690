"""Where keyfold-worker repartition begins in each partition: behind what was moved, or not at all.

Owns what the group's positions are worth. A position that Kafka forgot (offsets of a group that
does not run expire), or behind which retention has deleted records, is never replaced in silence:
that would move records twice, or leave some out. Called by session.py whenever
it is given partitions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from keyfold.worker.config import Config
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.samples import open_log
from keyfold.worker.repartition.work import Work

log = logging.getLogger(__name__)

WAYS = "give --from-start to go on with its oldest record, --from-end with what comes from now on"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition is read from."""

    partition: int  # its number
    offset: int  # of the first record to be moved
    known: bool  # whether that is the group's position; else it has to become it


@dataclass(frozen=True, slots=True)
class Begin:
    """Finds the places of partitions just given to this program."""

    config: Config  # for a look at the target
    work: Work  # from where to where
    consumer: Consumer  # of the group
    timeout_s: float  # of one question to the brokers

    def places(self, given: Sequence[int]) -> list[Place]:
        """Return where each partition begins. Raises SetUpError, KafkaException."""
        known = self._positions(given)
        if given and not known:
            self._expect_first_time()
        return [self._place(number, known.get(number)) for number in given]

    def _place(self, number: int, position: int | None) -> Place:
        where = TopicPartition(self.work.source, number)
        start, end = self.consumer.get_watermark_offsets(where, timeout=self.timeout_s)
        if position is not None and start <= position <= end:
            return Place(number, position, known=True)
        if position is not None:
            self._expect_consent(number, position, start, end)
        offset = end if self.work.begin == "end" else start
        log.info("%s:%d: beginning at offset %d", self.work.source, number, offset)
        return Place(number, offset, known=False)

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

    def _expect_first_time(self) -> None:
        """Refuse to begin if something may have been moved before. Raises SetUpError."""
        if self.work.begin or not self._target_holds_records():
            return
        # After the look: another one like this may just have begun, records and positions at once.
        with open_log(self.config) as found:
            count = found.partitions(self.work.source)
        if self._positions(range(count)):
            return
        work = self.work
        raise SetUpError(
            f"group {work.group} has no positions in {work.source} (never begun, or expired), but "
            f"{work.target} holds records: to begin now may move some twice; {WAYS}"
        )

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
