"""A worker's surroundings in one process: a log in memory, a producer that only remembers.

Owns what stands in for Kafka in the tests of saver, owner and pipeline: positions, group offsets,
seeks and acks that a test can hold back. Redis is real: tests hand over its URL. The intake is
imitated by `Worker.deliver`, with the same rules (a seek never overlaps a fetch).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from keyfold.worker.emit import Destination, Emitter, Outputs
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.partition import GroupOffset, Partition, Phase
from keyfold.worker.pipeline import Pipeline
from keyfold.worker.slots import Slots
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import Store
from keyfold.worker.surroundings import Settings, Surroundings

DEADLINE_S = 10.0


@dataclass(slots=True)
class Rec:
    """A record."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 1000


def event(offset: int, key: bytes | None, a: float = 0.5, b: float = -1.0) -> Rec:
    """Return an event of the tiny bundle."""
    return Rec(offset, key, json.dumps({"a": a, "b": b, "time": offset * 10}).encode())


@dataclass
class MemoryLog:
    """One input topic and the group's offsets on it; implements surroundings.Log."""

    topic: str
    counts: dict[str, int]  # of every topic there is
    records: dict[int, list[Rec]] = field(default_factory=dict)  # by partition
    starts: dict[int, int] = field(default_factory=dict)  # first offset retained
    ends: dict[int, int] = field(default_factory=dict)  # where there is no record at the end
    offsets: dict[int, GroupOffset] = field(default_factory=dict)  # C
    positions: dict[Owner, int] = field(default_factory=dict)  # next fetch
    seeks: list[tuple[Owner, int]] = field(default_factory=list)  # requested
    failures: list[Exception] = field(default_factory=list)  # raised by the next calls
    counted: int = 0  # times that somebody asked for partition counts
    asked: int = 0  # times that somebody asked for the log's bounds: once per ACQUIRE

    def append(self, *records: Rec, partition: int = 0) -> None:
        """Write records."""
        self.records.setdefault(partition, []).extend(records)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def group_offset(self, topic: str, partition: int) -> GroupOffset | None:
        """Return C."""
        self._fail()
        return self.offsets.get(partition)

    async def set_group_offset(self, topic: str, partition: int, at: GroupOffset) -> None:
        """Set C."""
        self._fail()
        self.offsets[partition] = at

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the log's start and end."""
        self._fail()
        self.asked += 1
        records = self.records.get(partition, [])
        end = records[-1].offset + 1 if records else 0
        return self.starts.get(partition, 0), max(end, self.ends.get(partition, 0))

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return each topic's number of partitions."""
        self._fail()
        self.counted += 1
        return {topic: self.counts.get(topic, 0) for topic in topics}

    def request_seek(self, owner: Owner, offset: int) -> None:
        """Note a seek for the next delivery."""
        self.seeks.append((owner, offset))


class RecordingEmitter(Emitter):
    """Remembers what is emitted; `gate` holds the acks back, `failures` are raised by sends."""

    def __init__(self) -> None:
        super().__init__(lambda: None, Destination("in", "out", "dead", "b"))
        self.sent: list[tuple[int, bytes, dict[str, Any]]] = []  # partition, key, prediction
        self.letters: list[tuple[int, int, str]] = []  # partition, offset, reason
        self.gate = asyncio.Event()
        self.gate.set()
        self.sending = 0  # sends whose acks are held back
        self.failures: list[BaseException] = []

    async def send(self, partition: int, outputs: Sequence[Outputs]) -> None:
        """Remember outputs; return when the gate is open."""
        if self.failures:
            raise self.failures.pop(0)
        self.sending += 1
        try:
            await self.gate.wait()
        finally:
            self.sending -= 1
        for one in outputs:
            for key, payload in zip(one.keys, one.payloads, strict=True):
                self.sent.append((partition, key, json.loads(payload)))
            self.letters += [(partition, d.offset, d.reason) for d in one.dead_letters]

    def ids(self) -> list[str]:
        """Return the ids of all predictions in the order sent."""
        return [payload["id"] for _, _, payload in self.sent]

    def steps(self, key: bytes) -> list[int]:
        """Return the steps of one key's predictions."""
        return [payload["steps"] for _, k, payload in self.sent if k == key]


class Worker:
    """One worker without Kafka and Faust."""

    def __init__(self, model: Model, log: MemoryLog, url: str, **options: Any) -> None:
        self.model, self.log = model, log
        manifest = model.bundle.manifest
        self.group = options.pop("group", log.topic)
        self.store: Store = options.pop("store_class", Store).connect(url, 5.0, self.group)
        self.slots, self.metrics, self.emitter = Slots(manifest), Metrics(), RecordingEmitter()
        self.codec = StateCodec(manifest)
        self.pipeline = Pipeline(model, self.slots, self.store, self.metrics, log.topic)
        self.crashes: list[BaseException] = []
        self.owners: dict[int, Owner] = {}
        settings = Settings(
            output="out", dead_letter="dead",
            start=options.pop("start", "earliest"),
            save_every_s=options.pop("save_every_s", 0.0),
            nonce=options.pop("nonce", "me"),
            bundle=options.pop("bundle", model.bundle.id),
        )  # fmt: skip
        self.shared = Surroundings(
            self.store, self.slots, self.codec, self.emitter, log, self.metrics, settings,
            self.pipeline.wake, self.crashes.append,
        )  # fmt: skip
        self._max_events = options.pop("max_events", 8192)
        self._max_keys = options.pop("max_keys", 1_000_000)
        self.fetching = options.pop("fetching", True)
        assert not options, options
        self._tasks: list[asyncio.Task[None]] = []

    def assign(self, *numbers: int) -> Owner:
        """Start owners of partitions; return the last one's."""
        for number in numbers:
            self.owners[number] = Owner(Partition(self.log.topic, number, self.group), self.shared)
            self.owners[number].start()
        return self.owners[numbers[-1]]

    async def revoke(self, *numbers: int, deadline_s: float = DEADLINE_S) -> None:
        """Drain owners as the intake does."""
        drained = [self.owners.pop(number) for number in numbers]
        await asyncio.gather(*(owner.drain(deadline_s) for owner in drained))

    def deliver(self) -> None:
        """Seek as requested, then fetch once."""
        for owner, offset in self.log.seeks.copy():
            number = owner.partition.number
            if self.owners.get(number) is owner:
                self.log.seeks.remove((owner, offset))
                self.log.positions[owner] = offset
                owner.sought()
        for number, owner in self.owners.items():
            if not owner.open:
                continue
            position = self.log.positions[owner]
            records = [r for r in self.log.records.get(number, []) if r.offset >= position]
            if records:
                self.log.positions[owner] = records[-1].offset + 1
                owner.offer(records)

    async def _intake(self) -> None:
        while True:
            if self.fetching:
                self.deliver()
            await asyncio.sleep(0.002)

    async def start(self) -> None:
        """Start the pipeline and the intake."""
        self._tasks = [
            asyncio.create_task(
                self.pipeline.run(
                    lambda: list(self.owners.values()), self._max_events, self._max_keys
                )
            ),
            asyncio.create_task(self._intake()),
        ]

    async def until(self, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
        """Wait for a condition. Raises what the pipeline raised, or AssertionError when late."""
        loop = asyncio.get_running_loop()
        due = loop.time() + deadline_s
        while not condition():
            for task in self._tasks:
                if task.done():
                    task.result()
            assert loop.time() < due, self.describe()
            await asyncio.sleep(0.002)

    async def until_saved(self, watermark: int, partition: int = 0) -> None:
        """Wait until W is here."""
        owner = self.owners[partition]
        await self.until(lambda: owner.partition.saved >= watermark)

    async def until_rewound(self, watermark: int, partition: int = 0) -> None:
        """Wait until a loss was seen and W is here again."""
        owner = self.owners[partition]
        await self.until(
            lambda: (
                self.metrics.rewinds == 1
                and owner.partition.phase is Phase.RUN
                and owner.partition.saved >= watermark
            )
        )

    async def until_phase(self, phase: Phase, partition: int = 0) -> None:
        """Wait for a phase."""
        owner = self.owners[partition]
        await self.until(lambda: owner.partition.phase is phase)

    def describe(self) -> str:
        """Say where everything is, for a failing test."""
        owners = {
            n: (o.partition.phase.value, o.partition.saved, o.partition.acked, o.partition.applied,
                len(o.waiting), o.room(), o.partition.halted)
            for n, o in self.owners.items()
        }  # fmt: skip
        return f"late: {owners}, crashes {self.crashes}"

    async def fields(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return all that Redis holds for a partition."""
        name = self.store.name(self.log.topic, partition)
        return cast("dict[bytes, bytes]", await self.store.redis.hgetall(name))

    async def stored(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return the stored states of a partition."""
        fields = await self.fields(partition)
        return {f[1:]: value for f, value in fields.items() if f.startswith(b":")}

    async def copy_of_redis(self, partition: int = 0) -> bytes:
        """Return what `roll_back` takes."""
        return await self.store.redis.dump(self.store.name(self.log.topic, partition)) or b""

    async def roll_back(self, copy: bytes, partition: int = 0) -> None:
        """Let Redis hold again what it held before."""
        name = self.store.name(self.log.topic, partition)
        await self.store.redis.restore(name, 0, copy, replace=True)

    async def stop(self) -> None:
        """End all tasks, without a drain."""
        for owner in list(self.owners.values()):
            if owner._task is not None:
                self._tasks.append(owner._task)
        left = set(self._tasks)
        while left:  # again and again: a task may be between two awaits that swallow it
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=0.2)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()


@asynccontextmanager
async def running(
    model: Model, log: MemoryLog, url: str, *numbers: int, **options: Any
) -> AsyncIterator[Worker]:
    """Run a worker that owns these partitions."""
    worker = Worker(model, log, url, **options)
    await worker.start()
    try:
        if numbers:
            worker.assign(*numbers)
        yield worker
    finally:
        await worker.stop()
