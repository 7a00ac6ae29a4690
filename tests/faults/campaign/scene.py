"""Where one schedule plays: its topics, group, hashes, bundle and folder on the shared services.

Owns the names and every look from outside at Kafka and Redis that faults and the judge take.
Decides nothing. Made by run.py, one per schedule.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from campaign.bundles import Bundles
from campaign.schedule import Schedule
from campaign.services import Services
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state import cli as state

META = "WBEOMLVKSFGCR"


class Scene:
    """One schedule's own things."""

    def __init__(
        self, schedule: Schedule, services: Services, bundles: Bundles, folder: Path
    ) -> None:
        """Create the topics."""
        self.schedule, self.folder = schedule, folder
        self.kafka, self.store = services.kafka, services.store(schedule.store)
        self.bundle = bundles.get(schedule.tombstone, schedule.reset_after_ms)
        self.foreign_bundle = bundles.get(schedule.tombstone, schedule.reset_after_ms, seed=1)
        self.partitions = schedule.partitions
        prefix = f"s{schedule.seed}-{uuid.uuid4().hex[:6]}"
        self.input, self.output, self.group = f"{prefix}-in", f"{prefix}-out", f"{prefix}-group"
        self.dead_letter = f"{self.input}.rejects"
        self.create_input()
        self.create_outputs()
        self.redis: Any = self.store.client()
        self._last: dict[tuple[int, int], int] = {}  # (partition, end) -> behind the last record

    def create_input(self) -> None:
        """Create the input topic, in many small segments where compaction will want some."""
        compacted = any(fault.kind == "compacted" for fault in self.schedule.faults)
        config = {"segment.ms": "100"} if compacted else {}
        self.kafka.create_topic(self.input, self.schedule.partitions, config)

    def create_outputs(self) -> None:
        """Create the topics of predictions and dead letters."""
        large = {"max.message.bytes": "2000000"}
        self.kafka.create_topic(self.output, self.schedule.partitions, large)
        self.kafka.create_topic(self.dead_letter, 1, large)

    def close(self) -> None:
        """Remove the topics and hashes: later schedules need the room."""
        admin = self.kafka.admin()  # must outlive the requests
        for done in admin.delete_topics([self.input, self.output, self.dead_letter]).values():
            done.exception(20)
        for number in range(self.partitions):
            self.redis.delete(self.hash_name(number))
        self.redis.delete(f"{{{self.group}:{self.input}}}")
        self.redis.close()

    # -- settings ----------------------------------------------------------------------------------

    def settings(self) -> Mapping[str, Any]:
        """Return the worker's settings."""
        plan = self.schedule
        brokers = self.kafka.proxied_address if plan.proxied else self.kafka.address
        url = self.store.proxied_url if plan.proxied else self.store.url
        return {
            "kafka.brokers": brokers,
            "kafka.input": self.input,
            "kafka.output": self.output,
            "kafka.group": self.group,
            "kafka.session_timeout_s": plan.session_timeout_s,
            "kafka.request_timeout_s": 10.0,
            "redis.url": url,
            "redis.timeout_s": 2.0,
            "worker.bundle": self.bundle.path,
            "worker.start": "earliest",
            "worker.max_events": plan.max_events,
            "worker.save_every_ms": plan.save_every_ms,
            "worker.metrics_every_s": 5,
            "worker.drain_s": 5.0,
            "worker.outputs": plan.outputs,
            "worker.on_lost_range": plan.on_lost_range,
            "kafka.transaction_timeout_s": 8.0,
        }

    def operate(self, command: str) -> tuple[int, str]:
        """Run keyfold-state; return its exit status and what it said."""
        wanted = {**self.settings(), "kafka.brokers": self.kafka.address}
        wanted["redis.url"] = self.store.url
        flags = [f"--set={name}={value}" for name, value in wanted.items()]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = state.main([*command.split(), *flags])
        return status, said.getvalue()

    # -- Redis, from outside -----------------------------------------------------------------------

    def hash_name(self, partition: int) -> str:
        """Return the name of a partition's hash."""
        return f"{{{self.group}:{self.input}:{partition}}}"

    def watermarks(self) -> dict[int, int]:
        """Return each partition's W, -1 where there is none."""
        found = {n: self.redis.hget(self.hash_name(n), "#W") for n in range(self.partitions)}
        return {number: -1 if w is None else int(w) for number, w in found.items()}

    def owners(self) -> dict[int, str]:
        """Return each partition's owner nonce, "" where there is none."""
        found = {n: self.redis.hget(self.hash_name(n), "#O") for n in range(self.partitions)}
        return {number: (nonce or b"").decode() for number, nonce in found.items()}

    def all_of_its_bundle(self) -> bool:
        """Whether every partition's states are of the bundle that is to be served."""
        found = {self.redis.hget(self.hash_name(n), "#M") for n in range(self.partitions)}
        return found == {self.bundle.id.encode()}

    def fields(self, partition: int) -> list[bytes]:
        """Return the names of a partition's state fields."""
        names = self.redis.hkeys(self.hash_name(partition))
        return sorted(name for name in names if name.startswith(b":"))

    def all_saved(self) -> bool:
        """Whether every record is below W."""
        saved = self.watermarks()
        extents = self.kafka.extents(self.input, self.partitions)
        return all(
            saved[number] >= (end if saved[number] >= end else self._due(number, start, end))
            for number, (start, end) in enumerate(extents)
        )

    def _due(self, partition: int, start: int, end: int) -> int:
        """Return the offset behind the last record: markers and aborted records may follow it."""
        wanted = partition, end
        if wanted not in self._last:
            back, found = 16, start
            with KafkaLog(self.kafka.address) as log:
                while found == start and end - back // 2 > start:
                    begin = max(start, end - back)
                    for message in log.read(self.input, partition, begin, end):
                        found = (message.offset() or 0) + 1
                    back *= 8
            self._last[wanted] = found
        return self._last[wanted]
