"""Real and embedded brokers: what the session's broker offers, and how one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from local.service_fixtures import MakeTopic
from local.services import (
    EMBEDDED,
    ApacheKafka,
    EmbeddedKafka,
    KafkaService,
    ServiceError,
    accepts_connections,
    apache_or_embedded,
    free_ports,
    missing_for_kafka,
    wanted_version,
)
from local.services.kafka import new_cluster_id

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
REASON = "Java 17 or newer"

needs_java = pytest.mark.skipif(
    wanted_version() == EMBEDDED or bool(missing_for_kafka(wanted_version())),
    reason="no Java, no Maven, or the embedded broker was asked for",
)


def read(address: str, topic: str, count: int) -> list[bytes | None]:
    """Return the first `count` values of partition 0, waiting for them at most 20 s."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "none: it only assigns"})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    try:
        records = consumer.consume(count, timeout=20)
    finally:
        consumer.close()
    return [record.value() for record in records]


def write(address: str, topic: str, *values: bytes) -> None:
    """Produce the values to partition 0 and wait until they are acknowledged."""
    producer = Producer({"bootstrap.servers": address})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0


def test_records_written_to_a_new_topic_are_read_back(
    kafka: KafkaService, make_topic: MakeTopic
) -> None:
    topic = make_topic("in", partitions=3, config={"retention.ms": "-1"})
    write(kafka.address, topic, b"one", b"two")
    assert read(kafka.address, topic, 2) == [b"one", b"two"]
    assert len(kafka.admin().list_topics(topic, timeout=10).topics[topic].partitions) == 3


def test_a_topic_that_exists_is_not_silently_reused(
    kafka: KafkaService, make_topic: MakeTopic
) -> None:
    topic = make_topic()
    with pytest.raises(ServiceError, match=topic):
        kafka.create_topic(topic)


def test_names_are_the_same_within_a_test(unique_name: Callable[[str], str]) -> None:
    assert unique_name("group") == unique_name("group")
    assert unique_name("group") != unique_name("in")


@pytest.mark.integration
@needs_java
def test_a_killed_broker_comes_back_on_its_port_with_its_records() -> None:
    with ApacheKafka() as broker:
        address, cluster = broker.address, broker.cluster_id
        broker.create_topic("kept")
        write(address, "kept", b"one")

        broker.kill()
        assert not accepts_connections(broker.port)
        broker.start()

        assert (broker.address, broker.cluster_id) == (address, cluster)
        assert read(address, "kept", 1) == [b"one"]


@pytest.mark.integration
@needs_java
def test_a_real_broker_that_cannot_start_quotes_the_end_of_its_log() -> None:
    broken = ApacheKafka(settings={"authorizer.class.name": "no.such.Authorizer"})
    with pytest.raises(ServiceError, match=r"(?s)exit code 1 .*end of .*no\.such\.Authorizer"):
        broken.__enter__()
    assert not broken.running


@pytest.mark.integration
@needs_java
def test_storage_that_cannot_be_formatted_is_reported() -> None:
    with pytest.raises(ServiceError, match=r"(?s)format.*/proc/nowhere"):
        ApacheKafka(settings={"log.dirs": "/proc/nowhere"}).__enter__()


@pytest.mark.integration
@needs_java
def test_a_real_broker_whose_port_is_taken_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedKafka() as owner:
        offers = iter([[owner.port, *free_ports(2)], free_ports(3)])
        monkeypatch.setattr("local.services.service.free_ports", lambda *_a, **_k: next(offers))
        with ApacheKafka() as broker:
            assert broker.port != owner.port


@pytest.mark.integration
def test_an_embedded_broker_whose_port_is_taken_takes_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedKafka() as owner:
        offers = iter([[owner.port], free_ports(1)])
        monkeypatch.setattr("local.services.service.free_ports", lambda *_a, **_k: next(offers))
        with EmbeddedKafka() as broker:
            assert broker.port != owner.port


def test_without_java_the_embedded_broker_takes_over_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("local.services.jars.find_java", lambda: None)
    broker, reason = apache_or_embedded("4.1.1", required=False)
    assert isinstance(broker, EmbeddedKafka)
    assert REASON in reason


def test_without_java_a_required_broker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.services.jars.find_java", lambda: None)
    with pytest.raises(ServiceError, match=REASON):
        apache_or_embedded("4.1.1", required=True)


@pytest.mark.integration
@pytest.mark.parametrize("beside_others", [[], ["-n", "1"]])
@pytest.mark.parametrize("ci", [True, False])
def test_a_session_without_java_fails_in_ci_only(
    tmp_path: Path, ci: bool, beside_others: list[str]
) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(kafka): assert kafka.address\n")
    ours = [name for name in os.environ if not name.startswith("PYTEST_")]
    env = {name: os.environ[name] for name in ours if name not in ("CI", "JAVA_HOME")}
    env |= {"PATH": str(tmp_path), "PYTHONPATH": str(DEPLOY)}
    env |= {"KEYFOLD_KAFKA_VERSION": "4.1.1"} | ({"CI": "true"} if ci else {})
    begun = time.monotonic()
    options = [
        "-p",
        "local.service_fixtures",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        *beside_others,
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert time.monotonic() - begun < 60
    assert REASON in run.stdout
    assert ("1 error" if ci else "1 passed") in run.stdout
    assert ("broker: embedded" in run.stdout) != ci


def test_a_cluster_id_never_looks_like_an_option() -> None:
    # One in 64 random ids did, and the broker then refused its own command line.
    assert not any(new_cluster_id().startswith("-") for _ in range(2000))
