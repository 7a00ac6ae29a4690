"""What every test on secured services has: a tiny bundle, topics, and users of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from secured_serving import SecuredServing
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from local.services import SecuredKafka, SecuredValkey


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def mechanism() -> str:
    """Return the SASL mechanism of the test's user."""
    return "SCRAM-SHA-512"


@pytest.fixture
def secured(
    tmp_path: Path,
    secured_kafka: SecuredKafka,
    secured_valkey: SecuredValkey,
    bundle: Bundle,
    unique_name: Callable[[str], str],
    mechanism: str,
) -> Iterator[SecuredServing]:
    """Return topics and users without any right."""
    made = SecuredServing(tmp_path, secured_kafka, secured_valkey, bundle, unique_name, mechanism)
    yield made
    made.withdraw()
    made.serving.redis.close()
