"""The three topics: what must hold before a worker joins, and what is said when it does not."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from aiokafka.errors import KafkaConnectionError

from keyfold.export.connection import Connection
from keyfold.worker.config import Kafka
from keyfold.worker.errors import TopicError
from keyfold.worker.kafka import topics as topics_module
from keyfold.worker.kafka.topics import NoBroker, TopicIds, check_topics, judge_topics
from local.service_fixtures import MakeTopic
from local.services import KafkaService, free_ports


def test_topics_that_fit_each_other_are_accepted() -> None:
    judge_topics({"in": 4, "out": 4, "dead": 1}, "in", "out", "dead")


@pytest.mark.parametrize("missing", ["in", "out", "dead"])
def test_missing_topic_is_named(missing: str) -> None:
    counts = {"in": 4, "out": 4, "dead": 1, missing: 0}
    with pytest.raises(TopicError, match=f"topic '{missing}': expected it to exist, got none"):
        judge_topics(counts, "in", "out", "dead")


def test_output_with_another_number_of_partitions_is_refused() -> None:
    with pytest.raises(TopicError, match="'out': expected 4 partitions like the input 'in', got 3"):
        judge_topics({"in": 4, "out": 3, "dead": 1}, "in", "out", "dead")


def test_the_alert_topic_is_judged_like_the_output() -> None:
    counts = {"in": 4, "out": 4, "dead": 1}
    with pytest.raises(TopicError, match="topic 'alerts': expected it to exist, got none"):
        judge_topics(counts, "in", "out", "dead", "alerts")
    said = "'alerts': expected 4 partitions like the input 'in', got 3"
    with pytest.raises(TopicError, match=said):
        judge_topics({**counts, "alerts": 3}, "in", "out", "dead", "alerts")
    judge_topics({**counts, "alerts": 4}, "in", "out", "dead", "alerts")


def test_broker_that_does_not_answer_is_named_in_one_line() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    kafka = Kafka(address, "in", "out", session_timeout_s=0.5, request_timeout_s=1.0)
    with pytest.raises(NoBroker, match=f"kafka.brokers: no answer from {address}"):
        asyncio.run(check_topics(kafka))


# -- topic ids -------------------------------------------------------------------------------------


def ids_of(brokers: str, name: str) -> str:
    """Ask a broker for a topic's id, once."""
    return asyncio.run(TopicIds(Connection(brokers)).of(name))


def test_topic_deleted_and_created_anew_has_another_id(
    real_kafka: KafkaService, make_topic: MakeTopic
) -> None:
    topic = make_topic()
    first = ids_of(real_kafka.address, topic)
    assert first
    assert ids_of(real_kafka.address, topic) == first
    real_kafka.delete_topic(topic)
    real_kafka.create_topic(topic, 1, None)
    deadline = time.monotonic() + 10  # a busy broker may tell of the old one for a moment
    while ids_of(real_kafka.address, topic) in ("", first):
        assert time.monotonic() < deadline


class CountedIds(TopicIds):
    """Topic ids by a broker that says what a test tells it."""

    def __init__(self) -> None:
        super().__init__(Connection("127.0.0.1:1"))
        self.asked = 0

    def _ask(self, name: str) -> str:
        self.asked += 1
        return f"{name}-{self.asked}"


def test_word_on_a_topic_s_id_is_never_an_old_one() -> None:
    # Who shares an answer, and for how long, is the intake's business alone (test_intake.py).
    async def main() -> None:
        ids = CountedIds()
        assert [await ids.of("t"), await ids.of("t"), await ids.of("u")] == ["t-1", "t-2", "u-3"]

    asyncio.run(main())


def test_question_for_a_topic_s_id_keeps_nothing_else_waiting() -> None:
    asked, answer = threading.Event(), threading.Event()

    class Blocking(TopicIds):
        def _ask(self, name: str) -> str:
            asked.set()
            assert answer.wait(10)
            return "id"

    async def main() -> None:
        question = asyncio.create_task(Blocking(Connection("127.0.0.1:1")).of("t"))
        assert await asyncio.to_thread(asked.wait, 10)
        assert not question.done()  # and this line ran beside it
        answer.set()
        assert await question == "id"

    asyncio.run(main())


def test_broker_that_does_not_answer_is_no_broker_without_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # "" would mean that a topic created anew cannot be told: that must be the broker's own word.
    monkeypatch.setattr(topics_module, "ASK_S", 0.2)
    with pytest.raises(KafkaConnectionError, match="id of topic 't'"):
        ids_of(f"127.0.0.1:{free_ports(1)[0]}", "t")
