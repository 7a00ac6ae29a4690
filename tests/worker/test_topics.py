"""The three topics: what must hold before a worker joins, and what is said when it does not."""

from __future__ import annotations

import asyncio

import pytest

from keyfold.worker.config import Kafka
from keyfold.worker.errors import SetUpError, TopicError
from keyfold.worker.topics import check_topics, judge_topics
from local.services import free_ports


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


def test_broker_that_does_not_answer_is_named_in_one_line() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    kafka = Kafka(address, "in", "out", session_timeout_s=0.5, request_timeout_s=1.0)
    with pytest.raises(SetUpError, match=f"kafka.brokers: no answer from {address}"):
        asyncio.run(check_topics(kafka))
