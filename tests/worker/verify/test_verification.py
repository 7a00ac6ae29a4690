"""keyfold-verify on a real Kafka and Redis, where part of the log is gone or given up.

No worker runs: tests/support/naive_worker.py says what one leaves behind, so that each case is
exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from naive_worker import LogRecord, Served, serve
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker.errors import Crash
from keyfold.worker.verify.archive import Archive, keep_log
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.stored import StoredGroup
from keyfold.worker.verify.verification import Target, verify
from local.services import KafkaService, Valkey, ValkeyCluster, ValkeyReplicated

EVENTS = 30
Pair = tuple[bytes | None, bytes | None]  # key, value


@dataclass
class Stage:
    """One topic of one partition, its outputs and its state."""

    kafka: KafkaService
    valkey: Valkey
    bundle: Bundle
    folder: Path
    name: str
    records: list[LogRecord] = field(default_factory=list)

    @property
    def archive(self) -> Path:
        return self.folder / "archive.jsonl"

    def produce(self, topic: str, pairs: list[Pair], timestamp: int = 10**9) -> None:
        """Write records."""
        producer = Producer({"bootstrap.servers": self.kafka.address, "acks": "all"})
        for key, value in pairs:
            producer.produce(topic, value, key, timestamp=timestamp)
        assert producer.flush(30) == 0

    def events(self, count: int, begin: int = 0) -> None:
        """Write events of three keys to the input."""
        pairs: list[Pair] = [
            (
                f"k{i % 3}".encode(),
                json.dumps({"a": i % 7 / 7, "b": -0.5, "time": 1000 * i}).encode(),
            )
            for i in range(begin, begin + count)
        ]
        self.produce(f"{self.name}-in", pairs)
        at = len(self.records)
        self.records += [LogRecord(at + i, 10**9, k, v) for i, (k, v) in enumerate(pairs)]

    def serve(self, lost: tuple[int, int] | None = None) -> Served:
        """Leave behind what a worker does: outputs and states."""
        served = serve(self.bundle, f"{self.name}-in", 0, self.records, lost)
        self.produce(f"{self.name}-out", served.outputs)
        fields = {name.encode(): text.encode() for name, text in served.meta.items()}
        fields |= {b":" + key: state for key, state in served.states.items()}
        client = redis.Redis.from_url(self.valkey.url)
        client.hset(f"{{{self.name}:{self.name}-in:0}}", mapping=cast(Any, fields))
        client.close()
        return served

    def trim(self, upto: int) -> None:
        """Let retention take everything below an offset."""
        admin = AdminClient({"bootstrap.servers": self.kafka.address})
        where = TopicPartition(f"{self.name}-in", 0, upto)
        for done in cast(Any, admin).delete_records([where]).values():
            assert done.result(30).low_watermark == upto

    def verify(self, **options: Any) -> Findings:
        """Run the verification."""
        return verify(
            Target(
                bundle=self.bundle.path, kafka=self.kafka.address, input=f"{self.name}-in",
                output=f"{self.name}-out", dead_letter=f"{self.name}-none", group=self.name,
                redis=self.valkey.url, **options,
            )
        )  # fmt: skip


@pytest.fixture
def stage(
    real_kafka: KafkaService, valkey: Valkey, tmp_path: Path, unique_name: Callable[[str], str]
) -> Stage:
    bundle = make_tiny_bundle(tmp_path, reset_after_ms=10**7)
    stage = Stage(real_kafka, valkey, bundle, tmp_path, unique_name("t"))
    for kind in ("in", "out"):
        real_kafka.create_topic(f"{stage.name}-{kind}", 1)
    return stage


def test_what_a_right_worker_leaves_behind_is_clean(stage: Stage) -> None:
    stage.events(EVENTS)
    stage.serve()
    findings = stage.verify()
    assert not findings.counts
    assert (findings.events, findings.states, findings.unverifiable) == (EVENTS, 3, 0)


def test_events_that_left_the_log_stop_the_verification_unless_they_were_kept(
    stage: Stage,
) -> None:
    stage.events(10)
    assert keep_log(stage.kafka.address, f"{stage.name}-in", stage.archive) == 10
    stage.events(EVENTS - 10, begin=10)
    assert keep_log(stage.kafka.address, f"{stage.name}-in", stage.archive) == EVENTS - 10
    assert Archive.load(stage.archive).ranges(0) == [(0, 10), (10, EVENTS)]
    stage.serve()
    stage.trim(EVENTS)  # a quiet weekend: everything expired, nothing lost
    with pytest.raises(Crash, match=rf"since offset 0, .* begins at {EVENTS}"):
        stage.verify()
    findings = stage.verify(archive=stage.archive)
    assert not findings.counts
    assert (findings.events, findings.states, findings.unverifiable) == (EVENTS, 3, 0)


def test_an_archive_with_a_hole_is_not_enough(stage: Stage) -> None:
    stage.events(EVENTS)
    stage.serve()
    stage.trim(10)
    keep_log(stage.kafka.address, f"{stage.name}-in", stage.archive)
    stage.trim(20)
    with pytest.raises(Crash, match="nothing to compare with"):
        stage.verify(archive=stage.archive)


def test_a_lost_range_leaves_what_follows_checked_as_far_as_it_can_be(stage: Stage) -> None:
    stage.events(EVENTS)
    keep_log(stage.kafka.address, f"{stage.name}-in", stage.archive)
    stage.trim(20)
    stage.serve(lost=(10, 20))
    findings = stage.verify()
    assert not findings.counts
    assert (findings.events, findings.unverifiable) == (10, 10 + 10 + 3)
    findings = stage.verify(archive=stage.archive)
    assert not findings.counts
    assert (findings.events, findings.lost_records, findings.unverifiable) == (20, 10, 0)


def test_a_log_that_lost_more_than_was_given_up_cannot_be_verified(stage: Stage) -> None:
    stage.events(EVENTS)
    stage.serve(lost=(10, 20))
    stage.trim(21)
    with pytest.raises(Crash, match="nothing to compare with"):
        stage.verify()


def test_predictions_required_from_below_the_base_cannot_be_verified(stage: Stage) -> None:
    stage.events(EVENTS)
    stage.serve()
    assert not stage.verify(require_from=0).counts
    with pytest.raises(Crash, match="at or below offset -1"):
        stage.verify(require_from=-1)


@pytest.mark.parametrize("text", ["{", "[]", '{"partition": 0}', '{"partition": 0, "from": 1}'])
def test_a_file_that_is_no_archive_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "archive.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Crash, match=r"archive\.jsonl: not readable as an archive"):
        Archive.load(file)


@pytest.fixture(params=["cluster", "sentinel"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    service = ValkeyCluster() if request.param == "cluster" else ValkeyReplicated()
    with service:
        yield service.url


@pytest.mark.integration
def test_states_are_found_on_every_node_of_a_cluster_and_behind_sentinels(url: str) -> None:
    group = StoredGroup(url, "g")
    try:
        assert not group.knows("in", 16)
        client = cast(Any, group._redis)
        for partition in range(8):
            client.hset(f"{{g:in:{partition}}}", mapping={"#W": partition, b":k": b"state"})
        assert group.knows("in", 16)
        for partition in range(8):
            stored = group.read("in", partition)
            assert stored is not None
            assert (stored.number("#W"), stored.states) == (partition, {b"k": b"state"})
            assert stored.fields == 2
        assert group.read("in", 8) is None
    finally:
        group.close()
