"""keyfold-state handover: gives the outputs of one group to another, at one offset per partition.

Owns the words, the answers to worker/handover/handing_over.py's questions and how long they are
waited for; who decides what is worker/handover/ownership.py's. It may be killed at any moment and
run again. Called by cli.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keyfold.worker.config import Config, read_config
from keyfold.worker.errors import Crash
from keyfold.worker.handover import handing_over
from keyfold.worker.handover.handing_over import AskRecord, AskWhere, Change, Outcome, Pause, Where
from keyfold.worker.handover.ownership import HandoverRefused, Handovers
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state.consent import FOUND_PROBLEMS, asked
from keyfold.worker.state.store_admin import Admin

FEW = 1000  # events that a group may be behind without a word
LOOK_EVERY_S = 0.1  # while waiting for the workers


@dataclass(frozen=True, slots=True)
class _Pair:
    """Who hands over to whom."""

    topic: str  # input of both
    output: str  # output of both
    giver: str  # group that has the outputs
    taker: str  # group that is to have them


def handover(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Hand the outputs over, back, or withdraw what a killed command has left."""
    other = read_config(arguments.old, arguments.set)
    pair = _pair(other, config, back=arguments.back)
    records = HandoverAdmin(admin.redis, pair.topic, pair.output)
    with KafkaLog(config.connection) as log:
        count = log.partitions(pair.topic)
        if arguments.cancel:
            return _cancel(records, count)
        scene = _Scene(pair, records, log, admin)
        places = [scene.where(number) for number in range(count)]
        _check(pair, places)
        if not asked(_announced(pair, places), arguments.yes):
            return FOUND_PROBLEMS
        return _told(pair, _hand_over_all(scene, count, arguments.timeout))


def _pair(old: Config, new: Config, *, back: bool) -> _Pair:
    """Put the two settings files together. Raises Crash when they do not belong together."""
    for name, one, two in (
        ("kafka.input", old.kafka.input, new.kafka.input),
        ("kafka.output", old.kafka.output, new.kafka.output),
        ("redis.url", old.redis.url, new.redis.url),
    ):
        if one != two:
            what = "another one" if name == "redis.url" else repr(two)
            raise Crash(f"{name}: expected the same in both files, got {what} in the second")
    groups = old.kafka.group, new.kafka.group
    if groups[0] == groups[1]:
        raise Crash(f"kafka.group: expected two groups, got {groups[0]!r} in both files")
    giver, taker = reversed(groups) if back else groups
    return _Pair(new.kafka.input, new.kafka.output, giver, taker)


def _check(pair: _Pair, places: Sequence[Where]) -> None:
    """Refuse what cannot come to a good end. Raises Crash."""
    for number, place in enumerate(places):
        record = place.record
        if record.seams and record.last not in (pair.giver, pair.taker):
            raise Crash(
                f"partition {number}: expected group {pair.giver!r} to have the outputs, got "
                f"{record.last!r}"
            )
        if not record.seams and pair.taker not in record.waiting:
            raise Crash(
                f"partition {number}: group {pair.taker!r} does not wait for a handover: begin it "
                "as a new group with worker.emit_from = handover, and let its worker catch up"
            )


def _announced(pair: _Pair, places: Sequence[Where]) -> Iterator[str]:
    yield f"{pair.topic} -> {pair.output}: from group {pair.giver!r} to group {pair.taker!r}"
    for number, place in enumerate(places):
        if place.record.last == pair.taker:
            at = place.record.seams[-1].offset
            yield f"partition {number}: group {pair.taker!r} has the outputs from {at} on already"
        else:
            at, behind = max(place.end, place.furthest), place.end - place.slowest
            late = f"; a group is {behind} events behind it" if behind > FEW else ""
            yield f"partition {number}: at offset {at} or soon after it{late}"
    yield (
        "Both groups wait for each other there. Below it every prediction is the former group's, "
        "from it on the latter's; the former goes on folding silently."
    )


def _told(pair: _Pair, outcomes: Sequence[Outcome]) -> int:
    """Say what became of every partition; return the exit status."""
    good = True
    for number, outcome in enumerate(outcomes):
        if outcome.seam is not None:
            print(f"partition {number}: group {pair.taker!r} from offset {outcome.seam.offset} on")
            continue
        good = False
        print(f"partition {number}: not handed over, nothing has changed: {_why(pair, outcome)}")
    print("done" if good else "run it again once that is mended; what is handed over stays so")
    return 0 if good else FOUND_PROBLEMS


def _why(pair: _Pair, outcome: Outcome) -> str:
    proposal = outcome.proposal
    if proposal is None:
        return "no time was left"
    late = [group for group in (pair.giver, pair.taker) if group not in proposal.ready]
    names = " and ".join(f"group {group!r}" for group in late)
    if not late:
        return "a worker had waited for too long"
    return f"{names} did not come to offset {proposal.offset} (does it run, has it caught up?)"


def _cancel(records: HandoverAdmin, count: int) -> int:
    """Withdraw every proposal that stands."""
    for number in range(count):
        record = records.read(number)
        stood = record.proposal is not None
        command = handing_over.cancel(record)
        answer: Any = None
        while True:
            try:
                question = command.send(answer)
            except StopIteration as end:
                outcome: Outcome = end.value
                break
            match question:  # it asks nothing else
                case Change():
                    answer = records.swap(number, question.before, question.after)
                case AskRecord():
                    answer = records.read(number)
                case Pause():
                    time.sleep(LOOK_EVERY_S)
                    answer = True
        if outcome.seam is not None:
            print(f"partition {number}: too late: group {outcome.seam.group!r} has the outputs "
                  f"from offset {outcome.seam.offset} on; --back gives them back")  # fmt: skip
        else:
            print(f"partition {number}: {'withdrawn' if stood else 'nothing is proposed'}")
    return 0


class _Scene:
    """Answers what handing over asks, with Kafka and Redis."""

    def __init__(self, pair: _Pair, records: HandoverAdmin, log: KafkaLog, admin: Admin) -> None:
        self.pair, self._records, self._log = pair, records, log
        self._groups = [Admin(admin.redis, group) for group in (pair.giver, pair.taker)]

    def where(self, number: int) -> Where:
        """Look at a partition, at its record first."""
        record = self._records.read(number)
        held = [group.look(self.pair.topic, number) for group in self._groups]
        marks = [0 if one is None else one.watermark or 0 for one in held]
        end = self._log.extent(self.pair.topic, number).end
        return Where(record, end, max(marks), min(marks))

    def answer(self, number: int, question: AskWhere | AskRecord | Change) -> Where | Handovers:
        """Answer a question about a partition."""
        match question:
            case AskWhere():
                return self.where(number)
            case AskRecord():
                return self._records.read(number)
            case Change():
                return self._records.swap(number, question.before, question.after)


def _hand_over_all(scene: _Scene, count: int, timeout_s: float) -> list[Outcome]:
    """Hand all partitions over, beside each other. Raises Crash."""
    pair, due_s = scene.pair, time.monotonic() + timeout_s
    commands = {number: handing_over.hand_over(pair.giver, pair.taker) for number in range(count)}
    outcomes: dict[int, Outcome] = {}
    answers: dict[int, Any] = dict.fromkeys(commands)
    while commands:
        for number, command in list(commands.items()):
            try:
                question = command.send(answers[number])
                while not isinstance(question, Pause):
                    question = command.send(scene.answer(number, question))
            except StopIteration as end:
                outcomes[number] = end.value
                del commands[number]
            except HandoverRefused as refused:
                raise Crash(f"partition {number}: {refused}") from refused
        left = time.monotonic() < due_s
        answers = dict.fromkeys(commands, left)
        if commands and left:
            time.sleep(LOOK_EVERY_S)
    return [outcomes[number] for number in range(count)]
