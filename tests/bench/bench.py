"""The bench itself: services, topics filled once, and one measurement of keyfold at a time.

Owns serving a case: a new group and output topic, the worker's programs, events/s between the first
and the last save, processor time, the worker's own profile, `keyfold-verify`. An event counts when
its prediction is acked and its key's state is saved. Called by run.py, memory.py and latency.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import traffic
from cases import Case, Form, Traffic
from confluent_kafka import KafkaException
from live_worker import Serving
from machine import Pinned, cpu_s
from models import make_model

from keyfold.export.bundle import Bundle
from local.services import ApacheKafka, Child, Valkey

POLL_S = 0.02
WARM = 0.2  # share of the events after which processor time is counted
TOO_LATE = 0.5  # share of the events by which the last worker must have joined
VERIFY_TIMEOUT_S = 1800.0
ASK_S = 30.0
# Kafka's own default. The services of tests have none; two workers would share too late.
SETTINGS = {"group.initial.rebalance.delay.ms": "3000"}


@dataclass(frozen=True, slots=True)
class Served:
    """What one serving of a case has shown."""

    rate: float  # events/s between the first and the last save
    cpu_us: float  # of all the worker's threads per event, without the first 20 % of the events
    us_per_event: dict[str, float]  # by step, from the worker's own counters (of one process)


class Bench:
    """Services with a folder, and what was made in them."""

    def __init__(self, folder: Path, kafka: ApacheKafka, valkey: Valkey, pinned: Pinned) -> None:
        self.folder, self.kafka, self.valkey, self.pinned = folder, kafka, valkey, pinned
        self.partitions = 8
        self._numbers = count(1)
        self._filled: dict[tuple[Traffic, int], Serving] = {}
        self._bundles: dict[tuple[tuple[int, ...], Form], Bundle] = {}

    def _number(self) -> tuple[int, Path]:
        """Return a new number and a folder for the logs of what is called by it."""
        number = next(self._numbers)
        folder = self.folder / f"serving-{number}"
        folder.mkdir()
        return number, folder

    def bundle(self, case: Case) -> Bundle:
        """Return the case's model."""
        known = case.layers, case.traffic.form
        if known not in self._bundles:
            self._bundles[known] = make_model(self.folder, *known)
        return self._bundles[known]

    def serving(self, case: Case) -> Serving:
        """Return a new group on new topics."""
        number, folder = self._number()
        kafka, bundle = self.kafka, self.bundle(case)
        return Serving(
            folder, kafka, self.valkey, bundle, lambda kind: f"bench-{kind}-{number}",
            self.partitions,
        )  # fmt: skip

    def filled(self, case: Case, events: int) -> Serving:
        """Return a new group with an output topic of its own on one that holds the events."""
        known = case.traffic, events
        if known not in self._filled:
            self._filled[known] = self.serving(case)
            traffic.fill(self.kafka.address, self._filled[known].input, case.traffic, events)
        number, folder = self._number()
        serving = copy(self._filled[known])
        serving.folder, serving.bundle = folder, self.bundle(case)
        serving.output, serving.group = f"bench-served-{number}", f"bench-group-{number}"
        self.kafka.create_topic(serving.output, self.partitions)
        return serving

    def forget(self, serving: Serving) -> None:
        """Delete a group's predictions and states, which would burden what is measured later."""
        self.kafka.delete_topic(serving.output)
        for number in range(serving.partitions):
            serving.redis.unlink(serving.hash_name(number))

    @contextmanager
    def running(self, serving: Serving, case: Case) -> Iterator[list[Child]]:
        """Run the case's worker: one program, or as many as it has processes."""
        programs = case.processes
        if programs > 1 and has_processes():
            serving.program, programs = (*serving.program, f"--processes={programs}"), 1
        with ExitStack() as stack:
            with self.pinned.measured(case.processes):
                workers = [serving.worker(**case.settings) for _ in range(programs)]
            for worker in workers:
                stack.callback(worker.kill)
            yield workers
            for worker in workers:
                worker.stop(60)
                if worker.exit_code != 0:
                    raise SystemExit(f"a worker ended with {worker.exit_code}: {_said(workers)}")

    def serve(self, serving: Serving, case: Case) -> Served:
        """Serve the whole input topic once."""
        total = sum(serving.ends().values())
        with self.running(serving, case) as workers:
            joined = len(workers) == 1 and case.processes == 1
            rate, cpu_us = watch(
                serving, workers, total,
                lambda: joined or members(self.kafka, serving.group) >= case.processes,
            )  # fmt: skip
            return Served(rate, cpu_us, profile(serving, workers[0]))

    def verify(self, serving: Serving, case: Case) -> str:
        """Run keyfold-verify over what a serving has left; return "" or what it said."""
        command = [
            sys.executable, "-m", "keyfold.worker.verify.cli", f"--bundle={serving.bundle.path}",
            f"--brokers={self.kafka.address}", f"--input={serving.input}",
            f"--output={serving.output}", f"--dead-letter={serving.dead_letter}",
            f"--group={serving.group}", f"--redis={self.valkey.url}",
        ]  # fmt: skip
        if case.outputs == "exactly-once":
            command.append("--exactly-once")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
        )
        return "" if done.returncode == 0 else f"{done.returncode}: {done.stdout}{done.stderr}"


def watch(
    serving: Serving, workers: list[Child], total: int, joined: Callable[[], bool] = lambda: True
) -> tuple[float, float]:
    """Wait until `total` events are saved; return events/s and processor time per event, us.

    Counted from the first sight of a save with every worker `joined` on.
    """
    first: tuple[float, int] | None = None
    warm: tuple[float, int] | None = None
    while True:
        saved, now = sum(serving.watermarks().values()), time.perf_counter()
        if first is None and saved > TOO_LATE * total and not joined():
            raise SystemExit(
                f"{saved:,} events were saved before all workers joined: more --events"
            )
        if first is None and saved and joined():
            first = (now, saved)
        if first is not None and warm is None and saved >= WARM * total:
            warm = (_cpu_s(workers), saved)
        if saved >= total and first is not None and warm is not None:
            rate = (saved - first[1]) / max(now - first[0], 1e-9)
            return rate, 1e6 * (_cpu_s(workers) - warm[0]) / max(saved - warm[1], 1)
        if any(worker.exit_code is not None for worker in workers):
            raise SystemExit(f"a worker ended: {_said(workers)}")
        time.sleep(POLL_S)


def profile(serving: Serving, worker: Child) -> dict[str, float]:
    """Return microseconds per event by step from the worker's next log line."""

    def lines() -> list[str]:
        return [text for text in worker.log.read_text().splitlines() if "us/event:" in text]

    before = len(lines())
    serving.wait_until(lambda: len(lines()) > before, "the worker's next line", [worker])
    words = lines()[-1].partition("us/event:")[2].split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


def members(kafka: ApacheKafka, group: str) -> int:
    """Return how many members of a group have partitions."""
    admin = kafka.admin()  # must outlive the request
    try:
        found = admin.describe_consumer_groups([group])[group].result(ASK_S)
    except KafkaException:
        return 0  # no such group yet
    return sum(bool(member.assignment.topic_partitions) for member in found.members)


@cache
def has_processes() -> bool:
    """Say whether this worker can be told to run as several processes."""
    command = [sys.executable, "-m", "keyfold.worker.cli", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "--processes" in said


def _cpu_s(workers: list[Child]) -> float:
    return sum(cpu_s(worker.pid) for worker in workers)


def _said(workers: list[Child]) -> str:
    return "\n".join(worker.log_tail() for worker in workers)
