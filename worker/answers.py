"""Answers what ACQUIRE and an audit ask, with Kafka and Redis, for one partition.

Owns how each question of worker/phases.py becomes a call to the store, the log or the emitter; it
decides nothing. A turn's questions are worker/saver.py's. Used by worker/owner.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError

from keyfold.worker import beginning, phases
from keyfold.worker.handover.store import HandoverStore
from keyfold.worker.kafka.topics import judge_topics
from keyfold.worker.partition import Partition
from keyfold.worker.phases import Question, Questions
from keyfold.worker.protocol import Beginning, Fence, Phase, Refused, Topic
from keyfold.worker.surroundings import Surroundings, retrying

log = logging.getLogger(__name__)


class Answers:
    """The I/O of one partition's ACQUIRE and audits."""

    def __init__(self, partition: Partition, shared: Surroundings) -> None:
        self._partition, self._shared = partition, shared
        self.topic = Topic(0, "")  # as it was when the fence was taken
        self.log_end = 0  # as it was then
        self._handovers: HandoverStore | None = None  # made when it is asked for
        self.seek_to = 0  # where the last ACQUIRE wants the position to be

    async def give(self, questions: Questions, phase: Phase) -> None:
        """Do what a phase asks for, one after the other, until it ends or is left.

        Raises what Kafka and Redis raise; in ACQUIRE KafkaTimeoutError after a freeze.
        """
        answer: object = None
        while self._partition.phase is phase:
            try:
                question = questions.send(answer)
            except StopIteration:
                return
            begun_s = time.monotonic()
            answer = await self._do(question)
            took_s = time.monotonic() - begun_s
            slow = isinstance(question, phases.OpenOutputs)  # waits for the former transaction
            limit_s = self._shared.settings.frozen_after_s
            if phase is Phase.ACQUIRE and not slow and took_s > limit_s:
                # Frozen meanwhile, and perhaps no member of the group any more: the fence would
                # only stop the rightful owner. Kafka says so as soon as it is heard.
                raise KafkaTimeoutError(f"no answer within {took_s:.0f} s")
        questions.close()

    async def _do(self, question: Question) -> Any:
        """Answer one question of ACQUIRE or of an audit."""
        partition, shared = self._partition, self._shared
        topic, number = partition.topic, partition.number
        match question:  # what is Kafka's; the rest is Redis's
            case phases.AskLog():
                return await self._ask_log()
            case phases.AskBegin():
                return await self._ask_begin()
            case phases.AskTopic():
                return await self._ask_topic()
            case phases.AskGroupOffset():
                if partition.rules.exactly_once:
                    return await shared.emitter.group_offset(number)
                return await shared.log.group_offset(topic, number)
            case phases.SetGroupOffset():
                return await shared.log.set_group_offset(topic, number, question.at)
            case phases.OpenOutputs():
                return await shared.emitter.open(number)
            case phases.Seek():
                log.info(
                    "%s: acquired at watermark %d, emitting from %d, log ends at %d",
                    partition, partition.saved, partition.emit_from, self.log_end,
                )  # fmt: skip
                self.seek_to = question.offset  # the owner hands it to the intake
                return None
        return await self._ask_redis(question)

    async def _ask_redis(self, question: Question) -> Any:
        """Answer a question that Redis answers."""
        partition, store = self._partition, self._shared.store
        topic, number = partition.topic, partition.number
        match question:
            case phases.CheckTopic():
                return await self._check_topic(question.topic)
            case phases.AskHeld():
                return await self._in_run("audit", lambda: store.hold(topic, number))
            case phases.AskHandovers():
                return await self._in_run("handovers", lambda: self._records().read(number))
            case phases.SetHandovers():
                before, after = question.before, question.after
                return await self._in_run(
                    "handovers", lambda: self._records().swap(number, before, after)
                )
        return await self._ask_for_fence(question)

    def _records(self) -> HandoverStore:
        if self._handovers is None:
            shared, topic = self._shared, self._partition.topic
            self._handovers = HandoverStore(shared.store.redis, topic, shared.settings.output)
        return self._handovers

    async def _in_run(self, doing: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Ask Redis until it answers; None when RUN was left meanwhile."""
        partition = self._partition
        return await retrying(f"{partition}: {doing}", call, lambda: partition.phase is Phase.RUN)

    async def _ask_for_fence(self, question: Question) -> Any:
        """Answer a question about the fence."""
        partition, store, settings = self._partition, self._shared.store, self._shared.settings
        topic, number = partition.topic, partition.number
        match question:
            case phases.TakeFence():
                if question.begin is not None:
                    await self._note_waiting()
                return await store.acquire(
                    topic, number, settings.nonce, settings.bundle, question.begin
                )
            case phases.BeginAnew():
                refused = question.refused
                log.warning(
                    "%s: the state belongs to bundle %s: begins anew with bundle %s at offset %d, "
                    "without emitting below %d (worker.on_bundle_change)",
                    partition, refused.got, settings.bundle, question.begin, question.floor,
                )  # fmt: skip
                fence = Fence(0, settings.nonce, settings.bundle)
                return await store.begin_anew(topic, number, fence, refused, question.begin)
            case phases.SkipLost():
                log.error(
                    "%s: events %d to %d are lost to retention: going on behind them, predictions "
                    "of the keys concerned are marked (worker.on_lost_range)",
                    partition, question.acquired.watermark, question.upto - 1,
                )  # fmt: skip
                self._shared.metrics.lost += question.upto - question.acquired.watermark
                return await store.skip_lost(topic, number, question.acquired, question.upto)
        raise RuntimeError(
            f"{partition}: expected a question of ACQUIRE or an audit, got {question}"
        )

    async def _note_waiting(self) -> None:
        """Have a group that begins silent noted, before it begins: no crash makes it emit."""
        number, records = self._partition.number, self._records()
        record = await records.read(number)
        while True:
            after = self._partition.begins_silent(record)
            if after is None:
                return
            record = await records.swap(number, record, after)

    async def _ask_log(self) -> phases.LogBounds:
        log = self._shared.log
        start, end = await log.bounds(self._partition.topic, self._partition.number)
        self.log_end = end
        return phases.LogBounds(start, end)

    async def _ask_begin(self) -> Beginning | None:
        """Find out what worker.start and worker.emit_from mean for a group that is new here."""
        settings, partition = self._shared.settings, self._partition
        if not settings.start:
            return None
        begin = await self._offset_of(settings.start)
        floor = 0
        if settings.emit_from not in beginning.EMIT_FROMS:
            floor = await self._offset_of(settings.emit_from)
        log.info(
            "%s: a new group: begins at offset %d (worker.start = %s), emits from %d (emit_from = "
            "%r)", partition, begin, settings.start, max(begin, floor), settings.emit_from,
        )  # fmt: skip
        return Beginning(begin, floor if floor > begin else 0)

    async def _offset_of(self, text: str) -> int:
        """Return the offset that a setting names in this partition, within the log's bounds."""
        partition, shared = self._partition, self._shared
        start, end = await shared.log.bounds(partition.topic, partition.number)
        if text in ("earliest", "latest"):
            return start if text == "earliest" else end
        moment = beginning.moment(text)
        at_ms = moment.at(int(time.time() * 1000))
        if moment.at_ms is None:
            # One present for all partitions, also for those that are acquired days later.
            at_ms = await shared.store.note_moment(partition.topic, text, at_ms)
        # No record is older than 1970, and Kafka's client takes no time before it.
        found = await shared.log.offset_at(partition.topic, partition.number, max(at_ms, 0))
        return end if found is None else min(max(found, start), end)

    async def _check_topic(self, found: Topic) -> Refused | None:
        partition, store = self._partition, self._shared.store
        if partition.phase is Phase.ACQUIRE:
            self.topic = found
            return await store.check_topic(partition.topic, found)
        return await retrying(
            f"{partition}: audit of the topic",
            lambda: store.check_topic(partition.topic, found),
            lambda: partition.phase is Phase.RUN,
        )

    async def _ask_topic(self) -> Topic | None:
        """Return what Kafka says of the input; in ACQUIRE only with fitting outputs.

        Raises TopicError and, in ACQUIRE, KafkaError.
        """
        settings, name, log = self._shared.settings, self._partition.topic, self._shared.log
        if self._partition.phase is Phase.ACQUIRE:
            names = (name, settings.output, settings.dead_letter, settings.alert)
            judge_topics(await log.partition_counts([n for n in names if n]), *names)
            return await log.identify(name, fresh=True)
        try:
            return await log.identify(name, fresh=False)
        except (KafkaError, OSError):
            return None  # a broker away for a moment stops nobody; the next look will tell
