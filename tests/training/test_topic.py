"""A topic is read between two offsets or times, and only what was committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import confluent_kafka
import pytest

from keyfold.training.config import Data, Kafka
from keyfold.training.data import build
from keyfold.training.sources import SourceError, read_topic
from local.service_fixtures import MakeTopic
from local.services import KafkaService

DATA = Data(features=("a",), label="y", kind="regression")
COUNT = 30  # records of each of two partitions, one a second from the epoch on


@pytest.fixture
def topic(kafka: KafkaService, make_topic: MakeTopic) -> Kafka:
    """A topic in which partition p holds the keys kp0 and kp1, alternating."""
    name = make_topic("events", partitions=2)
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.address, "linger.ms": 50})
    for number in range(COUNT):
        for partition in range(2):
            producer.produce(
                name,
                json.dumps({"a": number, "y": partition}).encode(),
                f"k{partition}{number % 2}".encode(),
                partition=partition,
                timestamp=1000 * (number + 1),
            )
    assert producer.flush(30) == 0
    return Kafka(brokers=kafka.address, topic=name, timeout_s=20)


def numbers(settings: Kafka) -> dict[str, list[float]]:
    log = build(DATA, read_topic(settings), keyed=True)
    return {sequence.key: sequence.x[:, 0].tolist() for sequence in log.sequences}


def test_a_whole_topic_gives_every_key_its_events_in_order(topic: Kafka) -> None:
    assert numbers(topic) == {
        f"k{partition}{parity}": list(range(parity, COUNT, 2))
        for partition in range(2)
        for parity in range(2)
    }


def test_offsets_bound_every_partition_with_the_end_left_out(topic: Kafka) -> None:
    got = numbers(replace(topic, start="4", end="7"))
    assert got == {"k00": [4, 6], "k01": [5], "k10": [4, 6], "k11": [5]}


def test_times_bound_the_records_by_their_timestamps(real_kafka: object, topic: Kafka) -> None:
    got = numbers(replace(topic, start="1970-01-01T00:00:05", end="1970-01-01T00:00:08"))
    assert got == {"k00": [4, 6], "k01": [5], "k10": [4, 6], "k11": [5]}


def test_reading_ends_at_a_partitions_end_behind_transaction_markers(
    real_kafka: KafkaService, make_topic: MakeTopic, unique_name: Callable[[str], str]
) -> None:
    name = make_topic("transactional")
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": real_kafka.address, "transactional.id": unique_name("id")}
    )
    producer.init_transactions(30)
    for number, keep in enumerate((True, False)):
        producer.begin_transaction()
        producer.produce(name, json.dumps({"a": number, "y": 0}).encode(), b"k")
        producer.commit_transaction(30) if keep else producer.abort_transaction(30)
    settings = Kafka(brokers=real_kafka.address, topic=name, timeout_s=20)
    assert numbers(settings) == {"k": [0]}


def test_a_topic_that_is_not_there_is_named(kafka: KafkaService) -> None:
    with pytest.raises(SourceError, match="topic nowhere"):
        numbers(Kafka(brokers=kafka.address, topic="nowhere", timeout_s=10))
