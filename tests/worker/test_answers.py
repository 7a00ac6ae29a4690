"""How the questions of ACQUIRE and audits are answered: by whom, and when asking stops.

What the answers mean is worker/partition.py's business; Redis's part is in test_store.py and
test_owner.py. Kafka is a list in memory here, and no question of this file reaches Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError
from memory_log import MemoryLog, RecordingEmitter, RecordingTransactions, event

from keyfold.worker import phases
from keyfold.worker.answers import Answers
from keyfold.worker.errors import TopicError
from keyfold.worker.metrics import Metrics
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.phases import Question
from keyfold.worker.protocol import GroupOffset, Phase, SavePlan, Topic
from keyfold.worker.surroundings import Settings, Surroundings

NOTHING = cast(Any, None)


class Scene:
    """One partition's answers and what stands around them."""

    def __init__(self, start: str = "earliest", **rules: Any) -> None:
        self.log = MemoryLog("in", {"in": 4, "out": 4, "dead": 1})
        self.partition = Partition("in", 0, "group", rules=Rules(**rules))
        self.partition.acquire()
        self.emitter = (
            RecordingTransactions(self.log) if self.partition.rules.exactly_once
            else RecordingEmitter()
        )  # fmt: skip
        shared = Surroundings(
            NOTHING, NOTHING, NOTHING, self.emitter, self.log, Metrics(),
            Settings("out", "dead", start, 0.0, "me", "bundle"), NOTHING, NOTHING,
        )  # fmt: skip
        self.answers = Answers(self.partition, shared)
        self.heard: list[Any] = []

    def phase(self, *questions: Question) -> Generator[Question, Any, None]:
        """Ask these questions; remember the answers."""
        for question in questions:
            self.heard.append((yield question))

    async def ask(self, *questions: Question) -> list[Any]:
        """Ask in the present phase; return the answers."""
        self.heard = []
        await self.answers.give(self.phase(*questions), self.partition.phase)
        return self.heard


def test_asking_stops_as_soon_as_the_phase_is_left() -> None:
    async def main() -> None:
        scene = Scene()
        closed = []

        def leaving() -> Generator[Question, Any, None]:
            try:
                yield phases.AskLog()
                scene.partition.drain()  # revoked while an answer is on its way
                yield phases.SetGroupOffset(GroupOffset(0, "never"))
                yield phases.SetGroupOffset(GroupOffset(0, "nor this"))
            finally:
                closed.append(True)

        await scene.answers.give(leaving(), Phase.ACQUIRE)
        assert closed
        assert scene.log.offsets.get(0) != GroupOffset(0, "nor this")

    asyncio.run(main())


def test_nothing_is_asked_in_another_phase() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.answers.give(scene.phase(phases.AskLog()), Phase.RUN)
        assert scene.log.asked == 0

    asyncio.run(main())


def test_log_is_told_with_its_bounds() -> None:
    async def main() -> None:
        scene = Scene()
        scene.log.append(event(4, b"k"), event(5, b"k"))
        scene.log.starts[0] = 4
        assert await scene.ask(phases.AskLog()) == [phases.LogBounds(4, 6)]
        assert scene.answers.log_end == 6

    asyncio.run(main())


def test_group_offset_is_the_log_s_at_least_once_and_the_transactions_exactly_once() -> None:
    async def main() -> None:
        at = GroupOffset(7, "keyfold:r0")
        scene = Scene()
        scene.log.offsets[0] = at
        assert await scene.ask(phases.AskGroupOffset()) == [at]
        scene = Scene(exactly_once=True)
        scene.log.offsets[0] = at
        scene.log.failures = [AssertionError("the consumer cannot tell a pending transaction")]
        assert await scene.ask(phases.OpenOutputs(), phases.AskGroupOffset()) == [None, at]

    asyncio.run(main())


def test_topics_that_do_not_fit_stop_acquire_by_name() -> None:
    async def main() -> None:
        scene = Scene()
        assert await scene.ask(phases.AskTopic()) == [Topic(4, "id-1")]
        scene.log.counts["out"] = 3
        with pytest.raises(TopicError, match="topic 'out': expected 4 partitions"):
            await scene.ask(phases.AskTopic())

    asyncio.run(main())


@pytest.mark.parametrize("error", [KafkaConnectionError("broker"), TimeoutError("thread")])
def test_broker_that_is_away_fails_acquire_and_tells_an_audit_nothing(error: Exception) -> None:
    async def main() -> None:
        scene = Scene()
        scene.log.failures = [error]
        with pytest.raises(type(error)):
            await scene.ask(phases.AskTopic())
        scene.partition.phase = Phase.RUN
        scene.log.failures = [error]
        assert await scene.ask(phases.AskTopic()) == [None]
        scene.log.counts["out"] = 3  # an audit looks at the input only
        assert await scene.ask(phases.AskTopic()) == [Topic(4, "id-1")]

    asyncio.run(main())


def test_acquire_waits_for_fresh_word_on_the_topic_and_an_audit_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An audit that waits for a broker would keep the partition from saving."""
    wanted: list[bool] = []

    async def identify(self: MemoryLog, name: str, *, fresh: bool) -> Topic:
        wanted.append(fresh)
        return Topic(4, "id")

    monkeypatch.setattr(MemoryLog, "identify", identify)

    async def main() -> None:
        scene = Scene()
        await scene.ask(phases.AskTopic())
        scene.partition.phase = Phase.RUN
        await scene.ask(phases.AskTopic())
        assert wanted == [True, False]

    asyncio.run(main())


def test_seek_is_noted_for_the_owner_and_not_done_here() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.ask(phases.Seek(42))
        assert scene.answers.seek_to == 42
        assert scene.log.seeks == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "question", [phases.Emit(GroupOffset(1, "")), phases.Save(SavePlan(0, 1, None))]
)
def test_question_of_a_turn_is_a_bug_here(question: Question) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="expected a question of ACQUIRE or an audit"):
            await Scene().ask(question)

    asyncio.run(main())
