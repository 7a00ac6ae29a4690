"""Who a worker says it waits for, when its group gives out no partitions."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException

from keyfold.export.connection import Connection
from keyfold.worker.kafka import group_wait
from keyfold.worker.kafka.group_wait import GroupWait

REBALANCING = ConsumerGroupState.PREPARING_REBALANCING
OWN = "faust"


def member(number: int, client: str = OWN) -> Any:
    return SimpleNamespace(member_id=f"m{number}", client_id=client, host="/10.0.0.7")


def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, answer: Any, looks: int = 1
) -> list[str]:
    """Return what member m0 says when the brokers answer so, looking several times."""
    monkeypatch.setattr(group_wait, "LONG_S", 0.0)
    asked: Future[Any] = Future()
    if isinstance(answer, Exception):
        asked.set_exception(answer)
    else:
        asked.set_result(answer)
    wait = GroupWait(Connection("127.0.0.1:1"), "g", OWN)
    admin: Any = SimpleNamespace(describe_consumer_groups=lambda *_, **__: {"g": asked})
    wait._admin = admin

    async def main() -> None:
        for _ in range(looks):
            await wait.look(joined=False, member="m0")

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    return [line.partition("for 0 s: ")[2] for line in caplog.messages]


def group(*members: Any, state: ConsumerGroupState = REBALANCING) -> Any:
    return SimpleNamespace(members=[member(0), *members], state=state)


def test_a_foreign_member_is_named_without_those_that_are_workers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = group(member(1), member(2, "reports"), member(3, "reports"))
    (line,) = said(caplog, monkeypatch, found, looks=5)  # not at every look
    assert line == (
        "waiting for 2 times client 'reports' at 10.0.0.7, no worker of keyfold, which does not "
        "join again; stop that program or choose another kafka.group (Kafka goes on without it "
        "when its max.poll.interval.ms is over)"
    )


def test_other_workers_are_named_when_there_is_nobody_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(caplog, monkeypatch, group(member(1))) == []  # they may be draining
    monkeypatch.setattr(group_wait, "WORKERS_S", 0.0)
    (line,) = said(caplog, monkeypatch, group(member(1)))
    assert line.startswith("waiting until client 'faust' at 10.0.0.7, workers like this one, have")


@pytest.mark.parametrize("code", [
    KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR,
])  # fmt: skip
def test_a_coordinator_that_does_not_answer_is_told(
    code: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = KafkaException(KafkaError(code, "its words"))
    (line,) = said(caplog, monkeypatch, away)
    assert line == "its coordinator does not answer (its words); waiting for Kafka"


def test_a_right_that_is_missing_is_named_and_not_waited_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED, "denied"))
    (line,) = said(caplog, monkeypatch, denied)
    assert line == (
        "group 'g': the brokers' ACLs lack Read for User:NAME; an administrator adds it: "
        "kafka-acls.sh --bootstrap-server 127.0.0.1:1 --add --allow-principal User:NAME "
        "--operation Read --group g"
    )


def test_another_error_is_told_in_its_own_words(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = KafkaException(KafkaError(KafkaError.UNSUPPORTED_VERSION, "too old a broker"))
    (line,) = said(caplog, monkeypatch, odd)
    assert line == "the brokers do not say for whom it waits: too old a broker"


@pytest.mark.parametrize("found", [
    group(), group(member(1), state=ConsumerGroupState.STABLE),
])  # fmt: skip
def test_a_group_that_waits_for_nobody_is_no_line(
    found: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(caplog, monkeypatch, found) == []


def test_a_short_wait_is_no_line_and_a_new_one_is_reckoned_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = GroupWait(Connection("127.0.0.1:1"), "g", OWN)

    async def main() -> None:
        await wait.look(joined=False, member="m0")
        monkeypatch.setattr(group_wait, "LONG_S", 0.0)
        await wait.look(joined=True, member="m0")
        monkeypatch.setattr(group_wait, "LONG_S", 60.0)
        await wait.look(joined=False, member="m0")

    asyncio.run(main())
    assert caplog.messages == []
    assert wait._admin is None  # nobody was asked
