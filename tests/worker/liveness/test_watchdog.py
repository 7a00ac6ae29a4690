"""The watchdog on a real Kafka and Valkey: it ends a worker that hangs, and no other one.

Workers run as child programs; those that hang are tests/support/hanging_worker.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from live_worker import Serving, make_events

from keyfold.export.connection import Connection
from keyfold.worker.liveness import log_probe, watchdog
from keyfold.worker.liveness.log_probe import LogProbe
from keyfold.worker.liveness.watchdog import Watchdog, Watched
from local.services import Child, KafkaService, free_ports

LIMIT_S = 4.0
HANGING = Path(__file__).parents[2] / "support" / "hanging_worker.py"


class Watching:
    """A worker with a short limit and a web port."""

    def __init__(self, serving: Serving, **settings: Any) -> None:
        self.serving, self.port = serving, free_ports(1)[0]
        self.started: list[Child] = []
        self.settings = {
            "worker__stuck_after_s": LIMIT_S,
            "worker__web_port": self.port,
            "redis__timeout_s": 0.5,
            **settings,
        }

    def start(self, **settings: Any) -> Child:
        """Start a worker as it is."""
        self.started.append(self.serving.worker(**{**self.settings, **settings}))
        return self.started[-1]

    def start_to_hang(self, place: str, **settings: Any) -> tuple[Child, Path]:
        """Start a worker that will hang in this place once the returned file exists."""
        file = self.serving.folder / "hang"
        env = {"HANG": place, "HANG_FILE": str(file)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.serving, "program", (str(HANGING),))
            self.started.append(self.serving.worker(env, **{**self.settings, **settings}))
        return self.started[-1], file

    def unmoved_s(self) -> float:
        """Return for how long no partition's W has moved, by the worker's own word."""
        body = self.serving.get(self.port, "/health")[1] or {}
        return min((p["unmoved_s"] or 0.0 for p in body.get("progress", {}).values()), default=0.0)

    def wait_unmoved(self, seconds: float, worker: Child) -> None:
        """Wait until nothing has moved for so long; fail when the worker ends meanwhile."""
        self.serving.wait_until(
            lambda: self.unmoved_s() > seconds, f"W to stand still for {seconds} s", [worker]
        )

    def statuses(self) -> tuple[int, int, int]:
        """Return the statuses of /live, /ready and /health."""
        get = self.serving.get
        live, ready, health = (get(self.port, page)[0] for page in ("/live", "/ready", "/health"))
        return live, ready, health


@pytest.fixture
def watching(serving: Serving) -> Iterator[Watching]:
    watching = Watching(serving)
    yield watching
    for worker in watching.started:
        worker.kill()


EVENTS = make_events(600, 50)


LONG = [
    pytest.param(place, marks=pytest.mark.long) for place in ("fetcher", "thread", "step", "emit")
]


@pytest.mark.parametrize("place", ["fetch", "loop", *LONG])
def test_a_worker_that_hangs_is_ended_and_another_one_takes_over(
    watching: Watching, place: str
) -> None:
    serving = watching.serving
    serving.send(EVENTS[:300])
    hanging, file = watching.start_to_hang(place)
    serving.wait_saved([hanging])
    file.touch()
    serving.send(EVENTS[300:])
    with serving.running():
        assert hanging.wait(60) == 70, hanging.log_tail()
        serving.wait_saved()
    serving.verify_clean(len(EVENTS))
    log = hanging.log.read_text()
    assert log.count("worker is stuck and leaves") == 1
    if place == "loop":
        assert "the event loop has not answered for" in log
        assert "hanging_worker.py" in log  # where it is
    else:
        assert re.search(r":\d in (run|seek): W \d+ has not moved for \d+ s though the log", log)


def test_without_the_watchdog_a_worker_that_hangs_stays(watching: Watching) -> None:
    serving = watching.serving
    serving.send(EVENTS[:300])
    hanging, file = watching.start_to_hang("fetch", worker__stuck_after_s=0)
    serving.wait_saved([hanging])
    file.touch()
    serving.send(EVENTS[300:])
    watching.wait_unmoved(2.5 * LIMIT_S, hanging)
    assert sum(serving.ends().values()) > sum(serving.watermarks().values())
    hanging.kill()


def test_an_idle_worker_stays_and_is_live_ready_and_healthy(watching: Watching) -> None:
    serving = watching.serving
    serving.send(EVENTS)
    with serving.running(**watching.settings) as worker:
        serving.wait_saved([worker])
        watching.wait_unmoved(2.5 * LIMIT_S, worker)
        assert watching.statuses() == (200, 200, 200)
        progress = serving.get(watching.port, "/health")[1]["progress"]
        assert {int(p): v["watermark"] for p, v in progress.items()} == serving.ends()
        assert {v["lag"] for v in progress.values()} == {0}
    serving.verify_clean(len(EVENTS))


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_worker_that_waits_for_redis_stays(watching: Watching, how: str) -> None:
    serving = watching.serving
    serving.send(EVENTS[:300])
    with serving.running(**watching.settings) as worker:
        serving.wait_saved([worker])
        getattr(serving.valkey, how)()
        serving.send(EVENTS[300:])
        watching.wait_unmoved(2.5 * LIMIT_S, worker)
        assert serving.get(watching.port, "/live")[0] == 200
        {"kill": serving.valkey.start, "pause": serving.valkey.resume}[how]()
        serving.wait_saved([worker])
    serving.verify_clean(len(EVENTS))


def test_a_worker_frozen_for_longer_than_the_limit_goes_on(watching: Watching) -> None:
    serving = watching.serving
    serving.send(EVENTS[:300])
    with serving.running(**watching.settings, kafka__session_timeout_s=30) as worker:
        serving.wait_saved([worker])
        watching.wait_unmoved(0.75 * LIMIT_S, worker)
        worker.signal(signal.SIGSTOP)
        serving.send(EVENTS[300:])
        wakes_s = time.monotonic() + 1.5 * LIMIT_S
        serving.wait_until(lambda: time.monotonic() > wakes_s, "the freeze to last")
        worker.signal(signal.SIGCONT)
        serving.wait_saved([worker])
    serving.verify_clean(len(EVENTS))


def test_markers_of_transactions_behind_the_last_record_are_no_lag(
    watching: Watching, real_kafka: KafkaService
) -> None:
    serving = watching.serving
    producer = Producer(
        {"bootstrap.servers": real_kafka.address, "transactional.id": serving.input}
    )
    producer.init_transactions(30)
    for events, end in (
        (EVENTS[:300], producer.commit_transaction), (EVENTS[300:], producer.abort_transaction)
    ):  # fmt: skip
        producer.begin_transaction()
        for key, value in events:
            producer.produce(serving.input, value, key)
        end(30)
    with serving.running(**watching.settings) as worker:
        serving.wait_until(
            lambda: (serving.get(watching.port, "/health")[1] or {})
            .get("totals", {}).get("events") == 300,
            "the committed events", [worker],
        )  # fmt: skip
        watching.wait_unmoved(3 * LIMIT_S, worker)


def test_what_no_reader_of_committed_records_sees_is_nothing_to_apply(
    serving: Serving, real_kafka: KafkaService
) -> None:
    probe = LogProbe(real_kafka.address, serving.input, serving.group)
    settings = {"bootstrap.servers": real_kafka.address, "transactional.id": serving.input}
    producer = Producer(settings)
    producer.init_transactions(30)

    def end() -> int:
        return probe.ends([0], 10.0)[0]

    try:
        serving.send([(b"k", b"v")], partition=0)
        assert end() == 1
        assert probe.has_record(0, 0) is True
        assert probe.has_record(0, 1) is False
        producer.begin_transaction()
        producer.produce(serving.input, b"v", b"k", partition=0)
        producer.flush(30)
        assert end() == 1  # the last stable offset, not the high watermark
        producer.abort_transaction(30)
        serving.wait_until(lambda: end() == 3, "the marker")
        assert probe.has_record(0, 1) is False
        serving.send([(b"k", b"v")], partition=0)
        assert probe.has_record(0, 1) is True
    finally:
        probe.close()


def test_a_kafka_that_is_away_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probe, "CONFIRM_TIMEOUT_S", 0.5)
    probe = LogProbe(f"127.0.0.1:{free_ports(1)[0]}", "t", "g")
    assert probe.ends([0, 1], 0.5) == {}
    assert probe.has_record(0, 5) is None
    probe.close()


# -- the pages -------------------------------------------------------------------------------------


def test_a_worker_is_not_ready_before_its_partitions_run_but_it_is_live(
    watching: Watching,
) -> None:
    serving = watching.serving
    serving.valkey.kill()
    worker = watching.start()
    serving.wait_until(
        # Nothing is served at all: that is for people and alerts, too.
        lambda: watching.statuses() == (200, 503, 503)
        and "waiting for Redis" in serving.get(watching.port, "/ready")[1]["why"]
        and "ConnectionError" in serving.get(watching.port, "/health")[1]["waiting_for"],
        "the pages", [worker],
    )  # fmt: skip
    serving.valkey.start()
    serving.wait_until(lambda: watching.statuses() == (200, 200, 200), "ready", [worker])
    worker.stop()
    assert worker.exit_code == 0, worker.log_tail()


@pytest.mark.parametrize("partitions", [1])
def test_a_worker_without_partitions_is_ready(serving: Serving) -> None:
    first, second = Watching(serving), Watching(serving)
    with serving.running(**first.settings) as one:
        two = second.start()
        both = [one, two]
        serving.wait_until(
            lambda: first.statuses() == second.statuses() == (200, 200, 200), "both", both
        )
        bodies = [serving.get(w.port, "/health")[1]["partitions"] for w in (first, second)]
        assert sorted(map(len, bodies)) == [0, 1]
        two.stop()


def test_a_halt_neither_restarts_the_worker_nor_starves_the_other_partitions(
    watching: Watching,
) -> None:
    serving = watching.serving
    serving.send(EVENTS[:300])
    with serving.running(**watching.settings) as worker:
        serving.wait_saved([worker])
        serving.redis.delete(serving.hash_name(0))
        serving.wait_until(lambda: watching.statuses()[2] == 503, "a HALT", [worker])
        assert list(serving.get(watching.port, "/health")[1]["halted"]) == ["0"]
        serving.send(EVENTS[300:])
        watching.wait_unmoved(2.5 * LIMIT_S, worker)  # lag behind a HALT is not stuck
        assert watching.statuses() == (200, 200, 503)
        serving.redis.flushall()
        serving.wait_until(
            lambda: watching.statuses() == (200, 503, 503)
            and "every partition" in serving.get(watching.port, "/ready")[1]["why"],
            "all partitions to halt", [worker],
        )  # fmt: skip


def test_a_port_in_use_is_named_before_anything_starts(watching: Watching) -> None:
    taken = watching.serving.valkey.port
    worker = watching.start(worker__web_port=taken)
    assert worker.wait(30) == 2, worker.log_tail()
    lines = worker.log.read_text().splitlines()
    assert len(lines) == 1, lines
    assert f"worker.web_port: expected a free port on 127.0.0.1, got {taken}" in lines[0]


# -- the thread ------------------------------------------------------------------------------------

NOWHERE = Watched(Connection("127.0.0.1:1"), "t", "g", limit_s=0.4)


def test_a_log_that_takes_no_line_any_more_does_not_keep_a_stuck_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, never = threading.Event(), threading.Event()
    monkeypatch.setattr(watchdog, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr(watchdog.log, "critical", lambda *_: never.wait(30))

    async def block() -> None:
        watching = asyncio.create_task(Watchdog(NOWHERE, list, left.set).run())
        await asyncio.sleep(0)
        assert left.wait(20)  # which blocks the event loop
        watching.cancel()

    asyncio.run(block())
    never.set()


def test_a_watchdog_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> list[Any]:
        return ["no reading"]

    async def watch() -> str:
        dog = Watchdog(NOWHERE, read, lambda: None)
        watching = asyncio.create_task(dog.run())
        async with asyncio.timeout(20):
            while not dog.failure:  # noqa: ASYNC110 - it is set by a thread
                await asyncio.sleep(0.01)
        watching.cancel()
        return dog.failure

    with caplog.at_level(logging.CRITICAL):
        assert "the watchdog failed: AttributeError" in asyncio.run(watch())
