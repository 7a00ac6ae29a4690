"""Keeps one partition's owner informed of whose predictions the outputs are, and says so.

Owns when the record of handovers is looked at, how long the partition has stood at a proposal's
offset, and the log lines about it. What is answered is ownership.py's, in which order
worker/phases.py's. Used by worker/owner.py.
"""

from __future__ import annotations

import asyncio
import logging

from aiokafka.errors import KafkaError

from keyfold.worker import phases
from keyfold.worker.answers import Answers
from keyfold.worker.handover.words import told
from keyfold.worker.partition import Partition
from keyfold.worker.protocol import Phase

log = logging.getLogger(__name__)

LISTEN_S = 1.0  # how often the record is looked at
PROPOSAL_S = 0.1  # how often while a proposal stands that concerns this group


class Listener:
    """What one owner hears of handovers."""

    def __init__(self, partition: Partition, answers: Answers) -> None:
        self._partition, self._answers = partition, answers
        self._due_s = 0.0  # by the event loop's clock
        self._stands_since_s: float | None = None  # at a proposal's offset, by the loop's clock

    @property
    def due(self) -> bool:
        """Whether the record should be looked at."""
        return self.due_in_s <= 0

    @property
    def due_in_s(self) -> float:
        """Return in how many seconds it should be."""
        return self._due_s - asyncio.get_running_loop().time()

    @property
    def urgent(self) -> bool:
        """Whether a proposal stands that concerns this group."""
        return self._partition.voice.proposal is not None

    def forget(self) -> None:
        """Begin anew, with a new ACQUIRE."""
        self._stands_since_s = None

    async def listen(self, next_offset: int | None) -> None:
        """Hear whose predictions the outputs are, and answer what is proposed. Raises NotOwner.

        `next_offset` is that of the first record that waits to be applied; None: none does.
        """
        partition, now_s = self._partition, asyncio.get_running_loop().time()
        before, emitted = partition.voice.record, self._emits if partition.voice.heard else None
        if next_offset is not None:
            partition.stand_before(next_offset)
        try:
            questions = phases.listen(partition, self._stood_s(now_s))
            await self._answers.give(questions, Phase.RUN)
        except (KafkaError, OSError) as error:
            log.warning("%s: whose outputs: %s; asking again", partition, error)
        soon = self.urgent or not partition.voice.heard
        self._due_s = now_s + (PROPOSAL_S if soon else LISTEN_S)
        if changed := told(before, partition.voice.record):
            log.info("%s: %s", partition, changed)
        if partition.voice.heard and self._emits != emitted:
            self._tell()

    def _tell(self) -> None:
        at, last = self._partition.applied, self._partition.voice.record.last
        if self._emits:
            if self._partition.rules.silent and not self._partition.voice.record.seams:
                log.warning(
                    "%s: worker.emit_from = handover is ignored: the group has a state here, so "
                    "it is not new and goes on emitting",
                    self._partition,
                )
            log.info("%s: its predictions are emitted from offset %d on", self._partition, at)
        else:
            log.warning(
                "%s: folds silently from offset %d on: group %s has the outputs (keyfold-state "
                "handover changes that)",
                self._partition, at, repr(last) if last else "that runs already",
            )  # fmt: skip

    @property
    def _emits(self) -> bool:
        return self._partition.voice.emits(self._partition.applied)

    def _stood_s(self, now_s: float) -> float:
        """Say for how long this partition has stood at a proposal's offset."""
        partition, proposal = self._partition, self._partition.voice.proposal
        if proposal is None or partition.applied < proposal.offset:
            self._stands_since_s = None
            return 0.0
        if self._stands_since_s is None:
            self._stands_since_s = now_s
        return now_s - self._stands_since_s
