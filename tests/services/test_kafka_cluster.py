"""Three real Kafka brokers as one: what survives one of them, and where the leaders go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka import admin as kafka_admin
from confluent_kafka.admin import AdminClient

from local.services import (
    EMBEDDED,
    ApacheKafka,
    KafkaCluster,
    accepts_connections,
    free_ports,
    missing_for_kafka,
    wanted_version,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        wanted_version() == EMBEDDED or bool(missing_for_kafka(wanted_version())),
        reason="no Java, no Maven, or the embedded broker was asked for",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(proxied=True) as brokers:
        yield brokers


def write(address: str, topic: str, *values: bytes) -> None:
    """Produce the values to partition 0 and wait until all copies acknowledged them."""
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def read(address: str, topic: str, count: int) -> list[bytes | None]:
    """Return the first `count` values of partition 0, waiting for them at most 30 s."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "none: it only assigns"})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    try:
        return [record.value() for record in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def test_a_topic_has_a_copy_on_each_broker_and_needs_two(
    cluster: KafkaCluster, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic, partitions=3, config={"retention.ms": "-1"})
    admin = cluster.admin()
    known = admin.list_topics(topic, timeout=10).topics[topic].partitions
    assert [sorted(partition.isrs) for partition in known.values()] == [[1, 2, 3]] * 3
    asked: Any = cast(Any, kafka_admin).ConfigResource("topic", topic)
    settings = admin.describe_configs([asked])[asked].result(10)
    assert settings["min.insync.replicas"].value == "2"
    assert settings["retention.ms"].value == "-1"
    cluster.delete_topic(topic)


def test_what_two_brokers_acknowledged_survives_the_leaders_death(
    cluster: KafkaCluster, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic)
    write(cluster.address, topic, b"one")
    dead = cluster.leader(topic, 0)
    assert dead is not None

    cluster.kill(dead)
    write(cluster.address, topic, b"two")
    assert cluster.leader(topic, 0) not in (dead, None)
    cluster.restart(dead)
    cluster.wait_in_sync(topic)

    assert read(cluster.brokers[dead].address, topic, 2) == [b"one", b"two"]


def test_a_leader_moves_without_a_broker_ending(
    cluster: KafkaCluster, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic, partitions=2)
    first, pids = cluster.leader(topic, 0), [broker.pid for broker in cluster.brokers]

    assert cluster.move_leader(topic, 0) == cluster.leader(topic, 0) != first
    for index in range(3):
        assert cluster.move_leader(topic, 1, index) == cluster.leader(topic, 1) == index

    assert [broker.pid for broker in cluster.brokers] == pids


def test_clients_of_the_proxies_stay_behind_them(
    cluster: KafkaCluster, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic)
    admin = AdminClient({"bootstrap.servers": cluster.proxied_address, "log_level": 0})
    told = {f"{b.host}:{b.port}" for b in admin.list_topics(timeout=10).brokers.values()}
    assert told == set(cluster.proxied_address.split(","))
    assert told.isdisjoint(cluster.address.split(","))
    write(cluster.proxied_address, topic, b"one")
    assert read(cluster.address, topic, 1) == [b"one"]


@pytest.mark.parametrize("orderly", [True, False])
def test_a_whole_cluster_comes_back_with_its_records(
    cluster: KafkaCluster, unique_name: Callable[[str], str], orderly: bool
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic)
    write(cluster.address, topic, b"one")
    if orderly:
        cluster.stop()
    for index in range(3):
        cluster.kill(index)
    cluster.start()
    cluster.wait_in_sync(topic)
    assert read(cluster.address, topic, 1) == [b"one"]


def test_a_frozen_broker_is_left_out_until_it_goes_on(
    cluster: KafkaCluster, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    cluster.create_topic(topic)
    frozen = cluster.leader(topic, 0)
    assert frozen is not None
    cluster.pause(frozen)
    try:
        alive = cluster.brokers[(frozen + 1) % 3]
        write(alive.address, topic, b"one")
    finally:
        cluster.resume(frozen)
    cluster.wait_in_sync(topic)


def test_one_broker_behind_a_proxy_advertises_the_proxy_there_and_itself_elsewhere() -> None:
    with ApacheKafka(proxied=True) as broker:
        broker.create_topic("in")
        for address in (broker.address, broker.proxied_address):
            admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
            (one,) = admin.list_topics(timeout=10).brokers.values()
            assert f"{one.host}:{one.port}" == address
        assert broker.proxy is not None
        proxy_port, port = broker.proxy.port, broker.port
        broker.kill()
        broker.start()
        assert (broker.proxy.port, broker.port) == (proxy_port, port)
        write(broker.proxied_address, "in", b"one")
    assert not accepts_connections(proxy_port)


def test_a_cluster_whose_ports_are_taken_takes_others_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, cluster: KafkaCluster
) -> None:
    taken = cluster.brokers[0].port
    tried: list[list[int]] = []

    def offer(count: int, avoid: frozenset[int] = frozenset()) -> list[int]:
        tried.append([taken, *free_ports(count - 1)] if not tried else free_ports(count))
        return tried[-1]

    monkeypatch.setattr("local.services.kafka_cluster.free_ports", offer)
    with KafkaCluster(brokers=1) as another:
        assert another.address != f"127.0.0.1:{taken}"
        pids, folder = [broker.pid for broker in another.brokers], another.brokers[0].folder
        assert len(tried) == 2
    assert not folder.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
