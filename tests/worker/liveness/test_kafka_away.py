"""Kafka is away: the worker says so, once, on its pages and in its log; aiokafka does not."""

from __future__ import annotations

import logging
import time

import pytest
from live_worker import Serving, make_events

from keyfold.export.connection import Connection
from keyfold.worker.liveness import kafka_away
from local.services import KafkaService, free_ports

EVENTS = make_events(600, 50)


@pytest.mark.integration
def test_a_kafka_that_is_killed_is_told_once_and_on_the_pages_until_it_is_back(
    alone: Serving,
) -> None:
    alone.send(EVENTS[:300])
    port = free_ports(1)[0]
    with alone.running(worker__web_port=port) as worker:
        alone.wait_saved([worker])
        assert alone.get(port, "/ready") == (200, {"ready": True})
        killed_s = time.monotonic()
        alone.kafka.kill()
        try:
            alone.wait_until(
                lambda: alone.get(port, "/ready")[0] == 503, "/ready to tell", [worker], 10.0
            )
            away = (
                f"Kafka at {alone.kafka.address} does not answer (nobody answers "
                f"({alone.kafka.address}: Connection refused))"
            )
            assert alone.get(port, "/ready")[1]["why"] == f"waiting for {away}"
            assert alone.get(port, "/live") == (200, {"live": True})
            status, health = alone.get(port, "/health")
            assert (status, health["waiting_for"]) == (200, away)
        finally:
            alone.kafka.start()
        alone.wait_until(
            lambda: "Kafka answers again" in worker.log.read_text(), "its return", [worker]
        )
        away_s = time.monotonic() - killed_s
        alone.send(EVENTS[300:])
        alone.wait_saved([worker])
        alone.wait_until(
            lambda: alone.get(port, "/ready") == (200, {"ready": True}), "/ready", [worker]
        )
        assert alone.get(port, "/health")[1]["waiting_for"] == ""
    lines = worker.log.read_text().splitlines()
    told = [line for line in lines if "does not answer" in line]
    assert len(told) <= 1 + away_s // kafka_away.SAY_EVERY_S, told
    assert told[0].endswith(f"{away}; trying again")
    raw = [line for line in lines if " aiokafka" in line]
    assert len(raw) <= len(kafka_away.OF_CONNECTIONS), raw  # each kind once
    alone.verify_clean(len(EVENTS))


@pytest.mark.integration
def test_a_worker_that_finds_no_kafka_at_its_start_ends_to_be_started_again(
    serving: Serving, kafka: KafkaService
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    worker = serving.worker(
        kafka__brokers=address, kafka__session_timeout_s=3.0, kafka__request_timeout_s=5.0
    )
    assert worker.wait(60) == 70, worker.log_tail()
    said = [line for line in worker.log.read_text().splitlines() if address in line]
    assert len(said) == 2, said  # one while it waits, and the last
    assert said[0].endswith("Connection refused); trying again")
    assert said[1].startswith(f"keyfold-worker: kafka.brokers: no answer from {address}: ")
    # What a person has to set right has the other status, also when it is the broker that tells.
    missing = serving.worker(kafka__input="not-there")
    assert missing.wait(60) == 2, missing.log_tail()


@pytest.fixture
def nowhere() -> Connection:
    """Return the address of no broker."""
    return Connection(f"127.0.0.1:{free_ports(1)[0]}")


def test_what_lasts_is_said_again_in_time_and_a_return_once(
    nowhere: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    kafka_away.note_silence(nowhere)
    kafka_away.note_silence(nowhere)
    assert len(caplog.messages) == 1
    monkeypatch.setattr(kafka_away, "SAY_EVERY_S", 0.0)
    kafka_away.note_silence(nowhere)
    assert len(caplog.messages) == 2
    assert kafka_away.waiting_for_kafka().startswith(f"Kafka at {nowhere} does not answer (")
    kafka_away.note_answer()
    kafka_away.note_answer()
    assert kafka_away.waiting_for_kafka() == ""
    assert caplog.messages[2:] == ["Kafka answers again, after 0 s"]


@pytest.mark.integration
def test_a_client_without_an_answer_is_no_kafka_that_is_away(kafka: KafkaService) -> None:
    # A client that is stuck while Kafka is there is the watchdog's.
    kafka_away.note_silence(Connection(kafka.address))
    assert kafka_away.waiting_for_kafka() == ""


def record(name: str, message: str) -> logging.LogRecord:
    """Return what a log line is made of."""
    return logging.LogRecord(name, logging.ERROR, "", 0, message, (), None)


def test_only_repeated_lines_about_connections_are_kept_back(nowhere: Connection) -> None:
    quiet = kafka_away.Quiet()
    lost = record("aiokafka.conn", "Unable connect to node with id %s: %s")
    others = [
        record("aiokafka.consumer.fetcher", "Not authorized to read from topic %s."),
        record("keyfold.worker.intake", "Unable connect to"),
    ]
    assert [quiet.filter(lost), quiet.filter(lost)] == [True, False]
    try:
        kafka_away.note_silence(nowhere)
        assert not kafka_away.Quiet().filter(lost)
        assert all(quiet.filter(one) for one in others * 2)
    finally:
        kafka_away.note_answer()
