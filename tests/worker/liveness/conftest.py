"""Services of one test's own, which it may pause and kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_worker import Serving

from keyfold.export.bundle import Bundle
from local.service_fixtures import in_ci
from local.services import KafkaService, Valkey, apache_or_embedded, wanted_version


@pytest.fixture
def own_kafka() -> Iterator[KafkaService]:
    """Run a broker for this test alone, to be paused."""
    broker, _ = apache_or_embedded(wanted_version(), required=in_ci())
    if not broker.real:
        pytest.skip("needs a real Apache Kafka: Java 17, and Maven once")
    with broker:
        yield broker


@pytest.fixture
def alone(
    tmp_path: Path, own_kafka: KafkaService, own_valkey: Valkey, bundle: Bundle,
    unique_name: Callable[[str], str],
) -> Iterator[Serving]:  # fmt: skip
    """Return topics on services that nobody else uses."""
    serving = Serving(tmp_path, own_kafka, own_valkey, bundle, unique_name)
    yield serving
    serving.redis.close()
