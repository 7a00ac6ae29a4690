"""Serve the same events with keyfold's peers, each in its own environment, and measure them.

Owns one measurement: a new output topic and group, the peer started and always ended by its pid,
events/s from the first output that is seen to the last, counted by the output topic's end offsets.
Every record there is acked by then. run.py calls `available`, `prepare` and `measure`; alone:

    PYTHONPATH=deploy:tests/support:tests/bench .venv/bin/python tests/bench/peers/driver.py \\
        --events 200000 --keys 10000 [--peer NAME ...] [--verify]

`--verify` serves a few events with each peer and compares the predictions with the offline fold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import redis
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic
from peers.catalogue import all_peers
from peers.check import mistakes, read
from peers.interface import Case, Peer, settings

from local.services import ApacheKafka, Child, ServiceError, Valkey

FIRST_OUTPUT_TIMEOUT_S = 120.0
STALL_TIMEOUT_S = 60.0  # without any new output
POLL_S = 0.02
CHECKED_EVENTS, CHECKED_KEYS = 2_000, 50
STILL_BEING_MADE = (  # what a broker says of a topic that it has just created
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._NOENT,
)
FEATURES = tuple(f"s{i}" for i in range(8))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement found, between the first and the last output."""

    rate: float  # events/s
    cpu_us: float  # of the peer's own threads per event: hardly moves when the machine is busy


@dataclass(frozen=True, slots=True)
class _Sight:
    """One look at the output topic."""

    at_s: float  # when
    count: int  # records in it
    cpu_s: float  # computed by the peer so far


@dataclass(frozen=True, slots=True)
class _Run:
    """A peer at work."""

    child: Child  # the program
    output: str  # its topic
    partitions: int  # of it, told because metadata may lack those of a new topic for a moment


def available() -> tuple[str, ...]:
    """Return the names of all peers."""
    return tuple(all_peers())


def prepare(name: str) -> Path:
    """Install what a peer needs, once per version of its lock; return where it is."""
    return _peer(name).prepare()


def events_for(name: str, case: Case) -> int:
    """Return how many of a case's events a peer serves: slow ones get about 20 s of work."""
    return min(case.events, _peer(name).events)


def measure(name: str, case: Case) -> float:
    """Serve `events_for(name, case)` events; return events/s from first to last output.

    Raises: ServiceError with the end of the peer's log when it ends or stalls.
    """
    return measure_closely(name, case).rate


def measure_closely(name: str, case: Case) -> Measured:
    """Do what `measure` does and tell more."""
    with _serving(_peer(name), case) as run:
        return _watch(name, case, run, events_for(name, case))


def verify(name: str, case: Case) -> list[str]:
    """Serve the whole input and return what is wrong with the predictions, in sentences."""
    with _serving(_peer(name), case) as run:
        _watch(name, case, run, case.events)
        events, predictions = read(case.brokers, case.input), read(case.brokers, run.output)
        return mistakes(case.bundle, case.input, events, predictions)


def _peer(name: str) -> Peer:
    peers = all_peers()
    if name not in peers:
        raise SystemExit(f"no peer {name!r}: expected one of {', '.join(peers)}")
    return peers[name]


@contextmanager
def _serving(peer: Peer, case: Case) -> Iterator[_Run]:
    """Run a peer on an output topic of its own; nothing of it is left afterwards."""
    peer.prepare()
    run_name = f"{case.input}-{peer.name}-{uuid.uuid4().hex[:8]}"
    folder = case.folder / run_name
    stores = folder / "stores"
    stores.mkdir(parents=True)
    case = replace(case, folder=folder)
    admin = _admin(case.brokers)
    partitions = len(admin.list_topics(case.input, timeout=30).topics[case.input].partitions)
    admin.create_topics([NewTopic(run_name, partitions, 1)])[run_name].result(30)
    env = {**settings(case, run_name, run_name, stores), **dict(peer.env)}
    child = Child(peer.command(case), folder / "peer.log", env)
    try:
        yield _Run(child, run_name, partitions)
    finally:
        child.kill()
        shutil.rmtree(stores, ignore_errors=True)
        # Its topics (a changelog, too) and states would burden those that are measured later.
        mine = {
            run_name,
            *(name for name in admin.list_topics(timeout=30).topics if run_name in name),
        }
        for done in admin.delete_topics(list(mine)).values():
            done.result(30)
        _forget(case.redis, run_name)


def _forget(url: str, prefix: str) -> None:
    with redis.Redis.from_url(url) as client:
        pipe = client.pipeline(transaction=False)
        for name in client.scan_iter(f"{prefix}*", count=10_000):
            pipe.unlink(name)
        pipe.execute()


class Counter:
    """How many records have been written to a new topic."""

    def __init__(self, brokers: str, topic: str, partitions: int) -> None:
        self._brokers = brokers
        self._admin = _admin(brokers)
        end = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        self._asked = {TopicPartition(topic, number): end for number in range(partitions)}

    def records(self) -> int:
        """Return the sum of the partitions' end offsets, 0 while the topic is being made."""
        try:
            answers = self._admin.list_offsets(self._asked, request_timeout=30)
            return sum(answer.result().offset for answer in answers.values())
        except KafkaException as error:
            if error.args[0].code() not in STILL_BEING_MADE:
                raise
            # Once told so, a client may believe it for ever, though the broker has made the topic.
            self._admin = _admin(self._brokers)
            return 0


def _watch(name: str, case: Case, run: _Run, total: int) -> Measured:
    """Wait until `total` predictions are in the output; count from the first ones seen on."""
    counter = Counter(case.brokers, run.output, run.partitions)
    first: _Sight | None = None
    last = _Sight(time.perf_counter(), 0, 0.0)
    while True:
        count = counter.records()
        if count > last.count:
            last = _Sight(time.perf_counter(), count, _cpu_s(run.child.pid))
            first = first or last
        if first is not None and count >= total:
            done = max(last.count - first.count, 1)
            took_s, cpu_s = last.at_s - first.at_s, last.cpu_s - first.cpu_s
            return Measured(done / max(took_s, 1e-9), 1e6 * cpu_s / done)
        limit = FIRST_OUTPUT_TIMEOUT_S if first is None else STALL_TIMEOUT_S
        if run.child.exit_code is not None or time.perf_counter() - last.at_s > limit:
            ended = run.child.exit_code
            why = f"ended with {ended}" if ended is not None else f"stood still for {limit:g} s"
            raise ServiceError(
                f"peer {name} {why} after {count} of {total} predictions:\n{run.child.log_tail()}"
            )
        time.sleep(POLL_S)


def _cpu_s(pid: int) -> float:
    """Return the seconds that all threads of a program have computed; 0 where it is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _admin(brokers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": brokers, "log_level": 0})


def main() -> int:
    """Measure or verify peers on services of our own."""
    parser = argparse.ArgumentParser(prog="driver.py")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--peer", action="append", choices=available())
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    names = options.peer or list(available())
    for name in names:
        prepare(name)
    if options.verify:
        options.events, options.keys = CHECKED_EVENTS, CHECKED_KEYS
    with (
        tempfile.TemporaryDirectory(prefix="keyfold-peers-") as folder,
        ApacheKafka(jvm=()) as kafka,
        Valkey() as valkey,
    ):
        case = _case(options, Path(folder), kafka, valkey)
        return _verify_all(names, case) if options.verify else _measure_all(names, case)


def _case(options: argparse.Namespace, folder: Path, kafka: ApacheKafka, valkey: Valkey) -> Case:
    """Fill an input topic."""
    from live_worker import Serving, make_events
    from tiny_bundle import make_tiny_bundle

    bundle = make_tiny_bundle(folder, features=FEATURES, hidden=options.units)
    serving = Serving(
        folder, kafka, valkey, bundle, lambda kind: f"peers-{kind}", options.partitions
    )
    for begin in range(0, options.events, 100_000):
        count = min(100_000, options.events - begin)
        serving.send(make_events(count, options.keys, FEATURES, seed=begin, begin=begin))
    return Case(kafka.address, serving.input, valkey.url, bundle, folder, options.events)


def _measure_all(names: list[str], case: Case) -> int:
    print(f"{'peer':<14}{'events/s':>10}{'cpu us':>8}{'events':>10}  how")
    failed = 0
    for name in names:
        try:
            found = measure_closely(name, case)
            figures = f"{found.rate:>10,.0f}{found.cpu_us:>8.1f}"
        except ServiceError as error:
            failed, figures = failed + 1, f"{'failed':>18}"
            print(error, file=sys.stderr)
        row = f"{name:<14}{figures}{events_for(name, case):>10,}  {_peer(name).note}"
        print(row[:80], flush=True)
    return 1 if failed else 0


def _verify_all(names: list[str], case: Case) -> int:
    failed = 0
    for name in names:
        try:
            wrong = verify(name, case)
        except ServiceError as error:
            wrong = [str(error)]
        failed += bool(wrong)
        print(f"{name:<14}{'; '.join(wrong) or 'every prediction is the offline one'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
