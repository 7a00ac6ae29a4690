"""What Kafka and Redis answer to a phase's question, at the instant of its arrival.

Called by owner.py, perhaps long after the question was asked, perhaps twice, perhaps when nobody
waits for the answer any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keyfold.worker.phases import (
    AskBegin,
    AskGroupOffset,
    AskLog,
    AskTopic,
    BeginAnew,
    CheckTopic,
    LogBounds,
    OpenOutputs,
    SetGroupOffset,
    SkipLost,
    TakeFence,
)
from keyfold.worker.protocol import Acquired, Beginning, GroupOffset, Refused, Topic
from simulator.tasks import Unanswered

if TYPE_CHECKING:
    from simulator.owner import Owner


def _log(owner: Owner, _: AskLog) -> LogBounds:
    log = owner.world.log
    return LogBounds(log.start, log.end)


def _begin(owner: Owner, _: AskBegin) -> Beginning | None:
    world, log = owner.world, owner.world.log
    if not world.start:
        return None
    begin = {"earliest": log.start, "latest": log.end}.get(world.start)
    if begin is None:
        begin = log.at(int(world.start))
    floor = 0 if world.emit_ahead is None else log.at(world.now_ms + world.emit_ahead)
    if floor > begin:
        world.count["begun behind an emit floor"] += 1
    return Beginning(begin, floor if floor > begin else 0)


def _topic(owner: Owner, _: AskTopic) -> Topic | None:
    return owner.world.topic


def _check_topic(owner: Owner, question: CheckTopic) -> Refused | None:
    owner.topic = question.topic
    return owner.world.redis.check_topic(question.topic)


def _open(owner: Owner, _: OpenOutputs) -> int:
    return owner.world.coordinator.init()


def _group_offset(owner: Owner, _: AskGroupOffset) -> GroupOffset | None:
    coordinator = owner.world.coordinator
    coordinator.settle()
    if coordinator.unstable:
        if owner.world.random() < 0.2:
            coordinator.expire()  # its owner is gone: the transaction's time runs out
        raise Unanswered
    return coordinator.group


def _set_group_offset(owner: Owner, question: SetGroupOffset) -> None:
    world = owner.world
    if not world.is_member(owner):
        world.count["group offset of a stale member refused"] += 1
        raise Unanswered
    world.coordinator.group = question.at


def _take_fence(owner: Owner, question: TakeFence) -> Acquired | Refused:
    worker, common = owner.worker, owner.world.common
    if question.begin is not None:
        after = owner.partition.begins_silent(common.handovers)
        if after is not None:
            common.swap(common.handovers, after)
    return owner.world.redis.take_fence(worker.nonce, worker.bundle, question.begin)


def _begin_anew(owner: Owner, question: BeginAnew) -> Acquired | Refused:
    worker = owner.worker
    return owner.world.redis.begin_anew(
        worker.nonce, worker.bundle, question.refused, question.begin
    )


def _skip_lost(owner: Owner, question: SkipLost) -> Acquired:
    return owner.world.redis.skip_lost(question.acquired, question.upto)


def _bound(answer: Callable[[Owner, Any], Any]) -> Callable[[Owner, Any], Callable[[], Any]]:
    return lambda owner, question: lambda: answer(owner, question)


ANSWERS: dict[type, Callable[[Owner, Any], Callable[[], Any]]] = {
    AskLog: _bound(_log),
    AskBegin: _bound(_begin),
    AskTopic: _bound(_topic),
    CheckTopic: _bound(_check_topic),
    OpenOutputs: _bound(_open),
    AskGroupOffset: _bound(_group_offset),
    SetGroupOffset: _bound(_set_group_offset),
    TakeFence: _bound(_take_fence),
    BeginAnew: _bound(_begin_anew),
    SkipLost: _bound(_skip_lost),
}
