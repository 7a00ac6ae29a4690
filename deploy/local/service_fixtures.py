"""Pytest plugin: a Kafka broker and a Valkey for the tests that need them, started when needed.

tests/conftest.py loads it: `pytest_plugins = ["local.service_fixtures"]` (`deploy` is on pytest's
path). A test that uses one of SERVICE_FIXTURES gets the marker `integration` by itself. Without
Java or Maven the embedded broker takes the real one's place and the summary says so; with CI set
that is an error instead.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import pytest

from local.services import (
    EMBEDDED,
    KafkaService,
    SecuredKafka,
    SecuredValkey,
    Valkey,
    apache_or_embedded,
    missing_for_certificates,
    missing_for_kafka,
    wanted_version,
)

SERVICE_FIXTURES = frozenset(
    {"kafka", "real_kafka", "make_topic", "valkey", "own_valkey", "secured_kafka", "secured_valkey"}
)

_notes = pytest.StashKey[list[str]]()


class MakeTopic(Protocol):
    """Create a topic with a unique name and return the name."""

    def __call__(
        self, kind: str = ..., partitions: int = ..., config: Mapping[str, str] | None = ...
    ) -> str:
        """Create `PREFIX-kind` with this many partitions."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "integration: needs Kafka, Valkey or other child programs")
    config.stash[_notes] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a service."""
    for item in items:
        if SERVICE_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the notes of a session beside others (pytest -n) to the one that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["notes"] = session.config.stash[_notes]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the notes of a session that ran beside others."""
    node.config.stash[_notes] += getattr(node, "workeroutput", {}).get("notes", [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which broker the tests ran on."""
    for note in config.stash[_notes]:
        terminalreporter.write_line(note)


def in_ci() -> bool:
    """Tell whether a missing real broker is a failure."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[KafkaService]:
    """Run one broker for the session: Apache Kafka, or the embedded one where that cannot run."""
    broker, reason = apache_or_embedded(wanted_version(), required=in_ci())
    begun = time.monotonic()
    with broker:
        took_s = time.monotonic() - begun
        note = f"broker: {broker.description}, started in {took_s:.1f} s"
        request.config.stash[_notes].append(f"{note} ({reason})" if reason else note)
        yield broker


@pytest.fixture(scope="session")
def real_kafka(kafka: KafkaService) -> KafkaService:
    """Return the session's broker, skipping the test where it is the embedded one."""
    if not kafka.real:
        pytest.skip("needs a real Apache Kafka: Java 17, and Maven once")
    return kafka


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """Run one Valkey for the session; tests share it, so they use names of their own."""
    with Valkey() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """Run a Valkey for this test alone, to be emptied, killed or paused."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def secured_kafka() -> Iterator[SecuredKafka]:
    """Run a real Kafka with TLS, SASL and ACLs for the session."""
    missing = [*missing_for_kafka(wanted_version()), missing_for_certificates()]
    if wanted_version() == EMBEDDED or any(missing):
        if in_ci():
            pytest.fail(f"a secured Kafka is missing {', '.join(filter(None, missing))}")
        pytest.skip("needs a real Apache Kafka (Java 17, and Maven once) and openssl")
    with SecuredKafka() as broker:
        yield broker


@pytest.fixture(scope="session")
def secured_valkey() -> Iterator[SecuredValkey]:
    """Run a Valkey with TLS and ACL users for the session."""
    if missing_for_certificates() and not in_ci():
        pytest.skip("needs openssl")
    with SecuredValkey() as server:
        yield server


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a function that makes names for topics and groups: `TEST-SUFFIX-kind`.

    The same kind gives the same name within one test.
    """
    test = re.sub(r"[^a-zA-Z0-9_-]+", "-", request.node.name)[:60].strip("-")
    suffix = uuid.uuid4().hex[:8]
    return lambda kind: f"{test}-{suffix}-{kind}"


@pytest.fixture
def make_topic(kafka: KafkaService, unique_name: Callable[[str], str]) -> MakeTopic:
    """Return a function that creates a topic of this test's own and returns its name."""

    def make(kind: str = "in", partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        topic = unique_name(kind)
        kafka.create_topic(topic, partitions, config)
        return topic

    return make
