"""PURE: what each phase of a partition asks of Kafka and Redis, and in which order.

The protocol's order is what keeps the promise, so it stands here once: worker/owner.py and
worker/saver.py answer the questions with Kafka and Redis, the simulator answers them with models of
both, crashing anywhere between two. Each phase is a generator: it yields a question, is sent the
answer, and leaves its decision in the partition. No I/O, no clock. Prose: worker/PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.partition import Partition
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    GroupOffset,
    Held,
    Phase,
    Refused,
    SavePlan,
    Topic,
)


@dataclass(frozen=True, slots=True)
class AskLog:
    """The log's first retained offset and its end -> LogBounds."""


@dataclass(frozen=True, slots=True)
class LogBounds:
    """The answer to AskLog."""

    start: int  # first offset retained
    end: int  # next offset, of committed records


@dataclass(frozen=True, slots=True)
class AskBegin:
    """The settings, and the log where they name a time: where does a new group begin, and from
    where on does it emit? -> Beginning | None (None: worker.start is not set).

    Asked once in a partition's life; what was answered is noted in Kafka.
    """


@dataclass(frozen=True, slots=True)
class AskTopic:
    """The topic as Kafka sees it now -> Topic | None (None: Kafka does not answer)."""


@dataclass(frozen=True, slots=True)
class CheckTopic:
    """Redis: is it the topic that the states were folded from? -> Refused | None."""

    topic: Topic  # as Kafka sees it


@dataclass(frozen=True, slots=True)
class OpenOutputs:
    """Exactly-once: start this partition's producer -> None.

    It fences the former owner's and ends the transaction that one left open: from here on C moves
    by our transactions only.
    """


@dataclass(frozen=True, slots=True)
class AskGroupOffset:
    """Kafka: C -> GroupOffset | None."""


@dataclass(frozen=True, slots=True)
class SetGroupOffset:
    """Kafka: set C -> None."""

    at: GroupOffset  # to this


@dataclass(frozen=True, slots=True)
class TakeFence:
    """Redis: check layout, bundle and key count, then take the fence -> Acquired | Refused."""

    begin: Beginning | None  # where to begin if there is no state; None: there must be one


@dataclass(frozen=True, slots=True)
class BeginAnew:
    """Redis: drop another bundle's states, take the fence -> Acquired | Refused.

    Only if what is there is still what was refused.
    """

    refused: Refused  # the state to be dropped
    begin: int  # W and B
    floor: int  # outputs about offsets below it are not emitted


@dataclass(frozen=True, slots=True)
class SkipLost:
    """Redis: move W over events that retention took, and remember the range -> Acquired."""

    acquired: Acquired  # the fence it is done under
    upto: int  # first offset retained


@dataclass(frozen=True, slots=True)
class Seek:
    """The intake: move the position before the next fetch -> None."""

    offset: int  # to this


@dataclass(frozen=True, slots=True)
class Emit:
    """Kafka: send the outputs of all events applied and wait for their acks -> None."""

    upto: GroupOffset  # exactly-once: C, set in the same transaction


@dataclass(frozen=True, slots=True)
class Save:
    """Redis: the compare-and-set, repeated until Redis has answered -> Held | None (None: left)."""

    plan: SavePlan  # of which states and W


@dataclass(frozen=True, slots=True)
class AskHeld:
    """Redis: W and owner -> Held | None (None: the phase was left before Redis answered)."""


@dataclass(frozen=True, slots=True)
class AskHandovers:
    """Redis: whose predictions the outputs are -> Handovers | None (None: RUN was left)."""


@dataclass(frozen=True, slots=True)
class SetHandovers:
    """Redis: replace that record, if it is still what it was -> Handovers | None: what it is."""

    before: Handovers  # as it must be
    after: Handovers  # as it shall be


Question = (
    AskLog | AskBegin | AskTopic | CheckTopic | OpenOutputs | AskGroupOffset | SetGroupOffset
    | TakeFence | BeginAnew | SkipLost | Seek | Emit | Save | AskHeld | AskHandovers | SetHandovers
)  # fmt: skip
Questions = Generator[Question, Any, None]


def acquire(partition: Partition) -> Questions:
    """ACQUIRE: read Kafka's and Redis's word, take the fence, seek. Raises StartUnset.

    Whoever answers stops asking once the partition has left ACQUIRE; a fence too many is harmless.
    """
    rules = partition.rules
    refused = cast("Refused | None", (yield CheckTopic(cast(Topic, (yield AskTopic())))))
    if refused is not None:
        partition.refuse(refused)
        return
    if rules.exactly_once:
        # Before C and the log's end are read: until then the former owner may move both.
        yield OpenOutputs()
    log = cast(LogBounds, (yield AskLog()))
    end = log.end
    reply = yield from _take_fence(partition, log)
    if isinstance(reply, Acquired) and partition.may_skip(reply, log.start):
        reply = cast("Acquired | Refused", (yield SkipLost(reply, log.start)))
    if isinstance(reply, Refused):
        partition.refuse(reply)
        return
    group_offset = None
    if rules.exactly_once:
        # Last: only our own transactions move C by now, so later is only fresher. It is held
        # against the log's end, which therefore must not be older.
        group_offset = cast("GroupOffset | None", (yield AskGroupOffset()))
        end = cast(LogBounds, (yield AskLog())).end
    offset = partition.acquired(reply, log.start, end, group_offset)
    if offset is not None:
        yield Seek(offset)


def _take_fence(
    partition: Partition, log: LogBounds
) -> Generator[Question, Any, Acquired | Refused]:
    reply = cast("Acquired | Refused", (yield TakeFence(None)))
    if isinstance(reply, Acquired):
        return reply
    anew = partition.begin_anew_at(reply, log.start)
    if anew is not None:
        return cast("Acquired | Refused", (yield BeginAnew(reply, anew, reply.watermark)))
    if reply.what != "missing":
        return reply
    group_offset = cast("GroupOffset | None", (yield AskGroupOffset()))
    if group_offset is None:
        begin: Beginning | None = partition.begins_at(cast("Beginning | None", (yield AskBegin())))
    else:
        begin = partition.begins_again_at(group_offset)
    if begin is None:
        # Before saying that a state is gone: another owner may have begun meanwhile.
        return cast("Acquired | Refused", (yield TakeFence(None)))
    # Kafka remembers the beginning first: from here on a state missing in Redis is a loss, and a
    # beginning that was told by a time is never told anew.
    yield SetGroupOffset(begin.noted())
    return cast("Acquired | Refused", (yield TakeFence(begin)))


def emit(partition: Partition, upto: int) -> Questions:
    """RUN: put out everything applied, which is every event below `upto`."""
    to = partition.outputs_upto(upto)
    if to is not None:
        yield Emit(to)
    partition.ack(upto)


def turn(partition: Partition, plan: SavePlan) -> Questions:
    """RUN, DRAIN: emit, wait for the acks, then save. Raises NotOwner.

    The states to save were copied when the plan was made, at the end of a micro-batch.
    """
    yield from emit(partition, plan.w1)
    held = cast("Held | None", (yield Save(plan)))
    if held is not None:
        partition.judge_save(plan, held)


def audit(partition: Partition, topic: Topic) -> Questions:
    """RUN: see what happens under a partition that saves nothing. Raises NotOwner.

    A rollback of Redis, another owner; a topic that grew or was created anew since `topic`.
    """
    since = partition.saved
    held = cast("Held | None", (yield AskHeld()))
    if held is None or not partition.judge_held(held, since):
        return
    yield from look_at_topic(partition, topic)


def listen(partition: Partition, stood_s: float = 0.0) -> Questions:
    """RUN: hear whose predictions the outputs are, and answer what is proposed. Raises NotOwner.

    Nothing is taken before this was heard once, under our fence: whatever a former owner has
    promised is in the record by then. `stood_s`: see Partition.answer().
    """
    end = None
    if not partition.voice.heard:
        end = cast(LogBounds, (yield AskLog())).end
    record = cast("Handovers | None", (yield AskHandovers()))
    if record is None:
        return
    partition.hear(record, end)
    after = partition.answer(stood_s)
    if after is None:
        return
    # Still the owner, now that the proposal was heard: whoever takes the fence after this will hear
    # it too, before taking an event.
    since = partition.saved
    held = cast("Held | None", (yield AskHeld()))
    if held is None or not partition.judge_held(held, since):
        return
    record = cast("Handovers | None", (yield SetHandovers(record, after)))
    if record is not None:
        partition.hear(record)


def look_at_topic(partition: Partition, topic: Topic) -> Questions:
    """RUN: see whether the topic grew or was created anew since `topic`."""
    now = cast("Topic | None", (yield AskTopic()))
    if now is not None and partition.phase is Phase.RUN:
        partition.judge_topic(topic, now)
    if partition.phase is Phase.RUN:
        # Redis may have lost what it was told of the topic, alone or with everything else.
        refused = cast("Refused | None", (yield CheckTopic(topic)))
        if refused is not None and partition.phase is Phase.RUN:
            partition.acquire()
