"""Where producers put keys: the partitioners against known values and real producers."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from java_keys import JAVA_MURMUR2

from keyfold.worker.check.key_placement import (
    CRC32,
    MURMUR2,
    java_partition,
    librdkafka_partition,
    survey_keys,
)
from local.service_fixtures import MakeTopic
from local.services import KafkaService

KEYS = [f"machine-{number}".encode() for number in range(60)]


@pytest.mark.parametrize("key", JAVA_MURMUR2)
def test_java_s_partitioner_is_kafka_s_own(key: bytes) -> None:
    assert java_partition(key, 7) == (JAVA_MURMUR2[key] & 0x7FFFFFFF) % 7


@pytest.mark.parametrize(
    ("partitioner", "expected"),
    [("murmur2_random", java_partition), ("consistent_random", librdkafka_partition)],
)
def test_partitioners_put_keys_where_a_real_producer_does(
    kafka: KafkaService, make_topic: MakeTopic, partitioner: str, expected: object
) -> None:
    assert callable(expected)
    topic, went = make_topic(partitions=5), {}
    producer = Producer({"bootstrap.servers": kafka.address, "partitioner": partitioner})

    def note(error: object, message: object) -> None:
        assert error is None
        went[message.key()] = message.partition()  # type: ignore[attr-defined]

    for key in KEYS:
        producer.produce(topic, b"{}", key, on_delivery=note)
    assert producer.flush(30) == 0
    assert went == {key: expected(key, 5) for key in KEYS}


def by(of: object, keys: list[bytes], partitions: int = 5) -> dict[int, list[bytes | None]]:
    """Place keys by a partitioner."""
    assert callable(of)
    placed: dict[int, list[bytes | None]] = {number: [] for number in range(partitions)}
    for key in keys:
        placed[of(key, partitions)].append(key)
    return placed


def test_partitioner_that_fits_every_key_is_told() -> None:
    assert survey_keys(by(java_partition, KEYS), 5).fits[MURMUR2] == len(KEYS)
    assert survey_keys(by(java_partition, KEYS), 5).fits[CRC32] < len(KEYS)
    assert survey_keys(by(librdkafka_partition, KEYS), 5).fits[CRC32] == len(KEYS)


def test_key_in_two_partitions_is_found_with_its_partitions() -> None:
    both = by(java_partition, KEYS)
    for number, keys in by(librdkafka_partition, KEYS[:20]).items():
        both[number] += keys
    found = survey_keys(both, 5)
    moved = [k for k in KEYS[:20] if java_partition(k, 5) != librdkafka_partition(k, 5)]
    assert sorted(found.split) == sorted(moved)
    assert all(
        where == sorted({java_partition(k, 5), librdkafka_partition(k, 5)})
        for k, where in found.split.items()
    )
    assert found.keys == len(KEYS)
    assert found.records == len(KEYS) + 20


def test_null_keys_are_counted_and_are_no_key() -> None:
    found = survey_keys({0: [None, b"a", None], 1: [None]}, 2)
    assert (found.records, found.null, found.keys) == (4, 3, 1)


def test_key_where_no_partitioner_puts_it_fits_neither() -> None:
    elsewhere = {
        key: ({0, 1, 2, 3, 4} - {java_partition(key, 5), librdkafka_partition(key, 5)}).pop()
        for key in KEYS
    }
    seen: dict[int, list[bytes | None]] = {number: [] for number in range(5)}
    for key, number in elsewhere.items():
        seen[number].append(key)
    assert survey_keys(seen, 5).neither == len(KEYS)
