"""What several modules of these tests serve, look after or fold: fixtures, each of them once.

Owns no rule: the objects are tests/support's. A module that needs another `bundle` or number of
`partitions` has a fixture of that name; `serving` and `case` take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_worker import Serving
from memory_log import MemoryLog
from state_case import StateCase
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker import native
from keyfold.worker.model import Model
from local.services import KafkaService, Valkey


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle without resets."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Model:
    """Return the bundle as a worker runs it."""
    return Model(bundle)


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 4


@pytest.fixture
def serving(
    tmp_path: Path,
    kafka: KafkaService,
    own_valkey: Valkey,
    bundle: Bundle,
    unique_name: Callable[[str], str],
    partitions: int,
) -> Iterator[Serving]:
    """Make topics, a group and a Valkey of this test's own; the test starts the workers."""
    serving = Serving(tmp_path, kafka, own_valkey, bundle, unique_name, partitions)
    yield serving
    serving.redis.close()


@pytest.fixture
def empty_case(
    kafka: KafkaService, valkey: Valkey, bundle: Bundle, unique_name: Callable[[str], str]
) -> Iterator[StateCase]:
    """Make a topic without records, for keyfold-state."""
    case = StateCase(kafka, valkey, bundle, unique_name)
    yield case
    case.close()


@pytest.fixture
def case(empty_case: StateCase) -> StateCase:
    """Return a topic with 12 events in partition 0, for keyfold-state."""
    empty_case.write(12)
    return empty_case


@pytest.fixture
def log(unique_name: Callable[[str], str]) -> MemoryLog:
    """Return an empty log of one partition in memory."""
    topic = unique_name("in")
    return MemoryLog(topic, {topic: 1, "out": 1, "dead": 1})


@pytest.fixture(params=["on", "off"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve by the native module, and once more by Python alone."""
    if request.param == "on" and not native.available():
        pytest.skip("the native module is not there: no C++ compiler")
    monkeypatch.setenv("KEYFOLD_WORKER__NATIVE", request.param)
