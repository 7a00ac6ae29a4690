"""A real worker under test: topics, settings, `keyfold-worker` children, waiting, verifying.

Owns what every test of the serving path repeats. It watches from outside only: Kafka's topics,
Redis's hashes, the child's exit status and log. Imported as `from live_worker import Serving`.
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from keyfold.export.bundle import Bundle
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state import cli as state
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.verification import Target, verify
from local.services import Child, KafkaService, Valkey

Key = bytes | None
Value = bytes | None


class Serving:
    """One input topic with its outputs, group and settings; starts workers on it."""

    def __init__(
        self,
        folder: Path,
        kafka: KafkaService,
        valkey: Valkey,
        bundle: Bundle,
        names: Callable[[str], str],
        partitions: int = 4,
    ) -> None:
        self.folder, self.kafka, self.valkey, self.bundle = folder, kafka, valkey, bundle
        self.partitions = partitions
        self.input, self.output, self.group = names("in"), names("out"), names("group")
        self.dead_letter = f"{self.input}.rejects"
        kafka.create_topic(self.input, partitions, None)
        kafka.create_topic(self.output, partitions, None)
        kafka.create_topic(self.dead_letter, 1, None)
        self.redis: redis.Redis = valkey.client()
        self.program: tuple[str, ...] = ("-m", "keyfold.worker.cli")  # what a worker runs
        self._workers = 0

    # -- worker ------------------------------------------------------------------------------------

    def worker(self, env: Mapping[str, str] | None = None, /, **settings: Any) -> Child:
        """Start a worker; `settings` are section__name=value, `env` is added to ours."""
        wanted = {
            "kafka__brokers": self.kafka.address,
            "kafka__input": self.input,
            "kafka__output": self.output,
            "kafka__group": self.group,
            "kafka__session_timeout_s": 6.0,
            "redis__url": self.valkey.url,
            "worker__bundle": self.bundle.path,
            "worker__start": "earliest",
            "worker__metrics_every_s": 1,
            **settings,
        }
        flags = [f"--set={name.replace('__', '.')}={value}" for name, value in wanted.items()]
        self._workers += 1
        log = self.folder / f"worker-{self._workers}.log"
        command = [sys.executable, *self.program, *flags]
        return Child(command, log, env)

    @contextmanager
    def running(self, env: Mapping[str, str] | None = None, /, **settings: Any) -> Iterator[Child]:
        """Run a worker; stop it by SIGTERM at the end and expect a drained, clean exit."""
        child = self.worker(env, **settings)
        try:
            # Before that SIGTERM would meet a program that has not begun to listen for it.
            self.wait_until(
                lambda: any(word in child.log.read_text() for word in ("acquired at", "HALT")),
                "the worker to get its partitions", [child],
            )  # fmt: skip
            yield child
        except BaseException:
            child.kill()
            raise
        child.stop()
        assert child.exit_code == 0, child.log_tail()

    def serve_all(self, **settings: Any) -> None:
        """Run a worker until all that was sent is saved."""
        with self.running(**settings) as worker:
            self.wait_saved([worker])

    def kill_after(self, events: int, times: int = 1, /, **settings: Any) -> None:
        """Start a worker, kill it (-9) when it saved more than `events` events; `times` times."""
        for _ in range(times):
            worker = self.worker(**settings)
            begin = sum(self.watermarks().values())
            self.wait_until(
                lambda begin=begin: sum(self.watermarks().values()) > begin + events,  # type: ignore[misc]
                "some saves", [worker],
            )  # fmt: skip
            worker.kill()

    # -- Kafka -------------------------------------------------------------------------------------

    def send(
        self,
        records: Sequence[tuple[Key, Value]],
        compression: str = "none",
        partition: int | None = None,
    ) -> None:
        """Send records to the input topic and wait for their acks."""
        self.send_to(self.input, records, partition, compression)

    def send_to(
        self,
        topic: str,
        records: Sequence[tuple[Key, Value]],
        partition: int | None = None,
        compression: str = "none",
    ) -> None:
        """Send records to any topic and wait for their acks."""
        producer = Producer(
            {
                "bootstrap.servers": self.kafka.address,
                "partitioner": "murmur2_random",
                "compression.type": compression,
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        where: dict[str, Any] = {} if partition is None else {"partition": partition}
        for key, value in records:
            producer.produce(topic, value, key, **where)
            producer.poll(0)
        assert producer.flush(30) == 0

    def send_past_the_worker(self, records: Sequence[tuple[Key, Value]], partition: int) -> int:
        """Send records and move W over them, as if a worker had saved without emitting."""
        self.send(records, partition=partition)
        self.redis.hset(self.hash_name(partition), "#W", str(self.ends()[partition]))
        return len(records)

    def records(self, topic: str) -> list[Any]:
        """Read a topic's committed records from its start to its present end, by partition."""
        found: list[Any] = []
        with KafkaLog(self.kafka.address) as log:
            for number in range(log.partitions(topic)):
                extent = log.extent(topic, number)
                found += log.read(topic, number, extent.start, extent.end)
        return found

    def ends(self) -> dict[int, int]:
        """Return the end offset of each input partition."""
        consumer = Consumer({"bootstrap.servers": self.kafka.address, "group.id": "reader"})
        try:
            return {
                number: consumer.get_watermark_offsets(TopicPartition(self.input, number))[1]
                for number in range(self.partitions)
            }
        finally:
            consumer.close()

    # -- Redis -------------------------------------------------------------------------------------

    def hash_name(self, partition: int) -> str:
        """Return the name of a partition's hash, written out here a second time on purpose."""
        return f"{{{self.group}:{self.input}:{partition}}}"

    def fields(self, partition: int) -> list[bytes]:
        """Return the names of a partition's fields: meta fields, and keys after a colon."""
        return cast("list[bytes]", self.redis.hkeys(self.hash_name(partition)))

    def watermarks(self) -> dict[int, int]:
        """Return each partition's W, 0 where there is none."""
        return {
            number: int(self.redis.hget(self.hash_name(number), "#W") or 0)
            for number in range(self.partitions)
        }

    def state(self, *arguments: str) -> int:
        """Run keyfold-state with this group's settings; return its exit status."""
        settings = [
            f"kafka.brokers={self.kafka.address}", f"kafka.input={self.input}",
            f"kafka.output={self.output}", f"kafka.group={self.group}",
            f"redis.url={self.valkey.url}", f"worker.bundle={self.bundle.path}",
        ]  # fmt: skip
        return state.main([*arguments, *(f"--set={setting}" for setting in settings)])

    def get(self, port: int, path: str) -> tuple[int, Any]:
        """Ask a worker's web server; return the status and the JSON body, 0 when it is not up."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else None
        except OSError:
            return 0, None

    # -- waiting and verifying ---------------------------------------------------------------------

    def wait_saved(self, children: Sequence[Child] = (), limit_s: float = 60.0) -> None:
        """Wait until every input record is below W."""
        ends = self.ends()
        self.wait_until(
            lambda: all(self.watermarks()[p] >= end for p, end in ends.items()),
            f"W to reach {ends}", children, limit_s,
        )  # fmt: skip

    def wait_until(
        self,
        reached: Callable[[], bool],
        what: str,
        children: Sequence[Child] = (),
        limit_s: float = 60.0,
    ) -> None:
        """Wait for a condition; fail with the workers' logs when it does not come."""
        deadline = time.monotonic() + limit_s
        while not reached():
            logs = "\n".join(child.log_tail() for child in children)
            for child in children:
                assert child.exit_code is None, f"worker ended while waiting for {what}\n{logs}"
            assert time.monotonic() < deadline, (
                f"waited {limit_s:.0f} s for {what}; W is {self.watermarks()}\n{logs}"
            )
            time.sleep(0.05)

    def verify(self, **options: Any) -> Findings:
        """Refold everything below W and compare; `options` are added to the Target."""
        return verify(
            Target(
                bundle=self.bundle.path,
                kafka=self.kafka.address,
                input=self.input,
                output=self.output,
                dead_letter=self.dead_letter,
                group=self.group,
                redis=self.valkey.url,
                **options,
            )
        )

    def verify_clean(self, events: int, **options: Any) -> Findings:
        """Expect `events` events folded, each predicted, nothing wrong."""
        findings = self.verify(**options)
        report = findings.to_json()
        assert report["clean"], report
        assert findings.events == events, report
        return findings


def make_events(
    count: int,
    keys: int,
    features: Sequence[str] = ("a", "b"),
    *,
    seed: int = 0,
    skew: Literal["uniform", "zipf"] = "uniform",
    begin: int = 0,
) -> list[tuple[Key, Value]]:
    """Make records of JSON events with keys key-0, key-1, ..."""
    rng = random.Random(seed)
    weights = [1.0 / (1 + k) if skew == "zipf" else 1.0 for k in range(keys)]
    chosen = rng.choices(range(keys), weights, k=count)
    return [
        (
            f"key-{key}".encode(),
            json.dumps(
                {
                    "time": 1_700_000_000_000 + begin + i,
                    **{name: round(rng.gauss(0, 1), 4) for name in features},
                }
            ).encode(),
        )
        for i, key in enumerate(chosen)
    ]
