"""Each kind of measurement once for real, tiny: it runs, and what it says is of the right kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from bench import SETTINGS, Bench, watch
from cases import DEFAULT, PURE, Traffic, servable
from latency import latency
from machine import Pinned
from memory import memory

from local.services import ApacheKafka, Valkey, missing_for_kafka, wanted_version

TINY = replace(DEFAULT, layers=(8,), traffic=Traffic(keys=50))
EVENTS = 5_000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Return a bench on services of its own; SETTINGS are a part of what is tested."""
    missing = missing_for_kafka(wanted_version())
    if missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("bench")
    with ApacheKafka(settings=SETTINGS) as kafka, Valkey() as valkey:
        yield Bench(folder, kafka, valkey, Pinned(False))


pytestmark = [pytest.mark.integration, pytest.mark.long]  # minutes: make long


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        replace(TINY, processes=2),
        replace(TINY, layers=(8, 8), outputs="exactly-once", save_every_ms=100),
        replace(TINY, traffic=Traffic(keys=50, form="packed")),
        replace(TINY, native=PURE.native),
    ],
    ids=["default", "2 processes", "two layers, exactly-once", "packed", "native off"],
)
def test_a_case_is_served_measured_and_verified(bench: Bench, case: object) -> None:
    assert isinstance(case, type(TINY))
    if not servable(case):
        pytest.skip("it is the default")
    serving = bench.filled(case, EVENTS)
    served = bench.serve(serving, case)
    assert served.rate >= 0  # so few may all be saved at the first look
    assert served.us_per_event.keys() >= {"decode", "step", "encode"}
    assert bench.verify(serving, case) == ""
    bench.forget(serving)


def test_a_lost_state_is_no_clean_case(bench: Bench) -> None:
    serving = bench.filled(TINY, EVENTS)
    bench.serve(serving, TINY)
    name = serving.hash_name(0)
    key = next(field for field in serving.fields(0) if not field.startswith(b"#"))
    serving.redis.hdel(name, key)
    assert bench.verify(serving, TINY).startswith("1: ")
    bench.forget(serving)


def test_a_worker_that_ends_is_told_with_its_log(bench: Bench) -> None:
    serving = bench.filled(TINY, EVENTS)
    worker = serving.worker(kafka__input="not-there")
    with pytest.raises(SystemExit, match=r"a worker ended: .*not-there"):
        watch(serving, [worker], EVENTS)


def test_latency_is_told_with_the_pace_that_was_kept(bench: Bench) -> None:
    found = latency(bench, TINY, 0.5, 500.0, 1.0)
    assert list(found.ms) == ["p50", "p99", "p99.9"]
    assert 0 < found.ms["p50"] <= found.ms["p99"] <= found.ms["p99.9"]
    assert 0 < found.sent < 550


def test_memory_grows_with_keys_and_a_new_worker_predicts(bench: Bench) -> None:
    found = memory(bench, TINY, 1_000, 21_000, 21_000)
    assert found.state_bytes == 64
    assert (found.keys, found.stored_keys) == (20_000, 21_000)
    assert 0 < found.first_prediction_s < 60
