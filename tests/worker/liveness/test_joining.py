"""Joining a group and leaving it when a service is away, or another member is stuck: for real."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from live_worker import Serving, make_events

from local.services import Child, KafkaService, free_ports

EVENTS = make_events(600, 50)
PROMPT_S = 5.0  # of a stop without a drain: 2 s of ours, the rest for a busy machine


def ended_after_s(worker: Child, limit_s: float) -> float:
    """Send SIGTERM and expect status 0; return how long it took."""
    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait(limit_s) == 0, worker.log_tail()
    return time.monotonic() - begun


def members(serving: Serving) -> list[str]:
    """Return the client ids of the group's members."""
    admin = AdminClient({"bootstrap.servers": serving.kafka.address})
    asked: Any = admin.describe_consumer_groups([serving.group])
    return [member.client_id for member in asked[serving.group].result().members]


# -- a Redis that never answered -------------------------------------------------------------------


def test_a_worker_that_never_reached_its_redis_takes_no_partition_from_the_others(
    serving: Serving, real_kafka: KafkaService
) -> None:
    port, nowhere = free_ports(2)
    url = f"redis://127.0.0.1:{nowhere}/0"
    lost = serving.worker(redis__url=url, worker__web_port=port)
    try:
        pages = ("/live", "/ready", "/health")
        serving.wait_until(
            lambda: [serving.get(port, page)[0] for page in pages] == [200, 503, 503],
            "its pages", [lost],
        )  # fmt: skip
        serving.wait_until(
            lambda: "Connection refused" in serving.get(port, "/ready")[1]["why"], "why", [lost]
        )
        serving.send(EVENTS)
        with serving.running() as worker:
            serving.wait_saved([worker, lost])  # all partitions: none is in the other's hands
            assert len(members(serving)) == 1
        assert "acquired" not in lost.log.read_text()
        assert ended_after_s(lost, 20) < PROMPT_S
    finally:
        lost.kill()
    lines = lost.log.read_text().splitlines()
    assert len([line for line in lines if f"redis.url: no answer from {url}" in line]) == 1
    assert len(lines) == 2, lines
    assert "stopped, drained" in lines[1]
    serving.verify_clean(len(EVENTS))


# -- Kafka and Redis both away ---------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("how", ["pause", "kill"])
def test_a_stop_while_kafka_and_redis_are_away_ends_in_time_and_loses_nothing(
    alone: Serving, how: str
) -> None:
    alone.send(EVENTS[:300])
    worker = alone.worker(worker__drain_s=1.0, redis__timeout_s=0.5)
    try:
        alone.wait_saved([worker])
        alone.valkey.pause()
        alone.send(EVENTS[300:])
        alone.wait_until(
            lambda: "trying again" in worker.log.read_text(), "Redis to be missed", [worker]
        )
        getattr(alone.kafka, how)()
        assert ended_after_s(worker, 30) < 1.0 + 5.0 + 2.0  # drain_s, LEAVE_S, a busy machine
        log = worker.log.read_text()
        assert "Traceback" not in log
        assert log.splitlines()[-1].partition(": ")[2].startswith("stopped, ")
    finally:
        worker.kill()
        {"pause": alone.kafka.resume, "kill": alone.kafka.start}[how]()
        alone.valkey.resume()
    with alone.running() as again:
        alone.wait_saved([again])
    alone.verify_clean(len(EVENTS))


# -- a member that does not join again -------------------------------------------------------------


@pytest.fixture
def foreign(serving: Serving, real_kafka: KafkaService) -> Iterator[Consumer]:
    """Run a member of the group that has its partitions and polls no more."""
    consumer = Consumer(
        {
            "bootstrap.servers": real_kafka.address, "group.id": serving.group,
            "client.id": "somebody-elses", "partition.assignment.strategy": "roundrobin",
            "session.timeout.ms": 45_000,
        }
    )  # fmt: skip
    assigned: list[object] = []
    consumer.subscribe([serving.input], on_assign=lambda _, where: assigned.extend(where))
    serving.wait_until(lambda: consumer.poll(0.1) is None and bool(assigned), "its partitions")
    yield consumer
    consumer.close()


def test_a_group_behind_a_member_that_does_not_poll_is_named_and_left_promptly(
    serving: Serving, foreign: Consumer
) -> None:
    worker = serving.worker()
    try:
        begun = time.monotonic()
        said = f"kafka.group: {serving.group!r} has given out no partitions for "
        serving.wait_until(lambda: said in worker.log.read_text(), "the line", [worker])
        assert time.monotonic() - begun < 15
        (line,) = [line for line in worker.log.read_text().splitlines() if said in line]
        assert "waiting for client 'somebody-elses' at 127.0.0.1, no worker of keyfold" in line
        assert "stop that program or choose another kafka.group" in line
        assert ended_after_s(worker, 30) < PROMPT_S
        # It told the group, too: nothing is kept for a member that has gone.
        serving.wait_until(lambda: members(serving) == ["somebody-elses"], "it to be gone",
                           limit_s=3.0)  # fmt: skip
    finally:
        worker.kill()
