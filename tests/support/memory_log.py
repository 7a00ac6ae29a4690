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

from keyfold.worker.emission import Emission, joined
from keyfold.worker.emit import Destination, Emitter, Outputs
from keyfold.worker.emit_settings import Emit
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.owner import Owner
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.pipeline import Pipeline, Shown
from keyfold.worker.protocol import GroupOffset, Phase, Topic
from keyfold.worker.slots import Slots
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import Store
from keyfold.worker.surroundings import Settings, Surroundings
from keyfold.worker.transactions import TransactionFailed

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


def events(first: int, end: int) -> list[Rec]:
    """Return events of three keys in turn at the offsets from `first` up to `end`."""
    return [event(i, b"k%d" % (i % 3), i / 7, -i / 5) for i in range(first, end)]


@dataclass
class MemoryLog:
    """One input topic and the group's offsets on it; implements surroundings.Log."""

    topic: str
    counts: dict[str, int]  # of every topic there is
    records: dict[int, list[Rec]] = field(default_factory=dict)  # by partition
    starts: dict[int, int] = field(default_factory=dict)  # first offset retained
    ends: dict[int, int] = field(default_factory=dict)  # where markers, no records, are at the end
    offsets: dict[int, GroupOffset] = field(default_factory=dict)  # C
    positions: dict[Owner, int] = field(default_factory=dict)  # next fetch
    seeks: list[tuple[Owner, int]] = field(default_factory=list)  # requested
    failures: list[Exception] = field(default_factory=list)  # raised by the next calls
    identity: str = "id-1"  # the topic's
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

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """Return the offset of the first record with this timestamp or a later one."""
        if time_ms < 0:
            raise ValueError("The target time cannot be negative.")  # as Kafka's client does
        self._fail()
        young = (r.offset for r in self.records.get(partition, []) if r.timestamp >= time_ms)
        return next(young, None)

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return each topic's number of partitions."""
        self._fail()
        self.counted += 1
        return {topic: self.counts.get(topic, 0) for topic in topics}

    async def identify(self, name: str, *, fresh: bool = True) -> Topic:
        """Return the topic's partitions and id."""
        return Topic((await self.partition_counts((name,)))[name], self.identity)

    def request_seek(self, owner: Owner, offset: int) -> None:
        """Note a seek for the next delivery."""
        self.seeks.append((owner, offset))


class RecordingEmitter(Emitter):
    """Remembers what is emitted; `gate` holds the acks back, `failures` are raised by sends."""

    def __init__(self) -> None:
        super().__init__(lambda: None, Destination("in", "out", "dead", "b"))
        self.sent: list[tuple[int, bytes, dict[str, Any]]] = []  # partition, key, prediction
        self.alerts: list[tuple[int, bytes, dict[str, Any]]] = []  # likewise, to the alert topic
        self.letters: list[tuple[int, int, str]] = []  # partition, offset, reason
        self.uptos: list[GroupOffset | None] = []  # of each send that ended well
        self.gate = asyncio.Event()
        self.gate.set()
        self.sending = 0  # sends whose acks are held back
        self.failures: list[BaseException] = []

    async def send(
        self, partition: int, outputs: Sequence[Outputs], upto: GroupOffset | None = None
    ) -> None:
        """Remember outputs; return when the gate is open."""
        if self.failures:
            raise self.failures.pop(0)
        self.sending += 1
        try:
            await self.gate.wait()
        finally:
            self.sending -= 1
        self._remember(partition, outputs, upto)

    def _remember(
        self, partition: int, outputs: Sequence[Outputs], upto: GroupOffset | None
    ) -> None:
        self.uptos.append(upto)
        for one in outputs:
            for key, payload in zip(one.keys, one.payloads, strict=True):
                self.sent.append((partition, key, json.loads(payload)))
            for key, payload in zip(one.alert_keys, one.alerts, strict=True):
                self.alerts.append((partition, key, json.loads(payload)))
            self.letters += [(partition, d.offset, d.reason) for d in one.dead_letters]

    def ids(self) -> list[str]:
        """Return the ids of all predictions in the order sent."""
        return [payload["id"] for _, _, payload in self.sent]

    def steps(self, key: bytes) -> list[int]:
        """Return the steps of one key's predictions."""
        return [payload["steps"] for _, k, payload in self.sent if k == key]


class RecordingTransactions(RecordingEmitter):
    """Transactions that only remember: outputs and the group offset together, or neither.

    `fail` says how the next sends fail: "lost" before anything is out, "unknown" after all of it.
    As with Kafka, a producer that failed needs `open` again.
    """

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self._log = log
        self._open: set[int] = set()
        self.opened = 0  # times that a producer was opened
        self.fail: list[str] = []

    async def open(self, partition: int) -> None:
        """Fence the producers opened before."""
        self._open.add(partition)
        self.opened += 1

    async def close(self, partition: int) -> None:
        """Let go of an input partition."""
        self._open.discard(partition)

    async def group_offset(self, partition: int) -> GroupOffset | None:
        """Return C."""
        assert partition in self._open, "C was read before the former producer was fenced"
        return self._log.offsets.get(partition)

    async def send(
        self, partition: int, outputs: Sequence[Outputs], upto: GroupOffset | None = None
    ) -> None:
        """Remember outputs and C when the gate is open. Raises TransactionFailed as told."""
        assert partition in self._open, "a transaction without a producer"
        assert upto is not None
        how = self.fail.pop(0) if self.fail else ""
        if how:
            self._open.discard(partition)
        if how != "lost":
            await super().send(partition, outputs, upto)
            self._log.offsets[partition] = upto
        if how:
            raise TransactionFailed(f"transaction: no end: {how}")


class Worker:
    """One worker without Kafka and Faust."""

    def __init__(self, model: Model, log: MemoryLog, url: str, **options: Any) -> None:
        self.model, self.log = model, log
        manifest = model.bundle.manifest
        self.group = options.pop("group", log.topic)
        self._rules: Rules = options.pop("rules", Rules())
        self.store: Store = options.pop("store_class", Store).connect(
            url, 5.0, self.group, self._rules.exactly_once
        )
        self.emit: Emit = options.pop("emit", Emit())
        rule = Emission.of(self.emit, manifest.outputs)
        more = () if rule is None else rule.states
        self.slots, self.metrics = Slots(manifest, more), Metrics()
        self.emitter: RecordingEmitter = (
            RecordingTransactions(log) if self._rules.exactly_once else RecordingEmitter()
        )
        self.codec = StateCodec(manifest, more)
        self.pipeline = Pipeline(
            model, self.slots, self.store, self.metrics,
            Shown(log.topic, options.pop("passthrough", ()), rule),
        )  # fmt: skip
        self.crashes: list[BaseException] = []
        self.owners: dict[int, Owner] = {}
        settings = Settings(
            output="out", dead_letter="dead",
            start=options.pop("start", "earliest"),
            save_every_s=options.pop("save_every_s", 0.0),
            nonce=options.pop("nonce", "me"),
            bundle=options.pop("bundle", joined(model.bundle, rule)),
            reset_after_ms=manifest.collects_after_ms,
            frozen_after_s=options.pop("frozen_after_s", 10.0),
            emit_from=options.pop("emit_from", ""),
            alert=self.emit.alert_topic,
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
            partition = Partition(self.log.topic, number, self.group, rules=self._rules)
            self.owners[number] = Owner(partition, self.shared)
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
                position = records[-1].offset + 1
                owner.offer(records)
            position = max(position, self.log.ends.get(number, 0))
            self.log.positions[owner] = position
            if owner.open:
                owner.passed(position)

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

    @property
    def transactions(self) -> RecordingTransactions:
        """Return the emitter of exactly-once outputs."""
        assert isinstance(self.emitter, RecordingTransactions)
        return self.emitter

    async def fields(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return all that Redis holds for a partition."""
        name = self.store.name(self.log.topic, partition)
        return cast("dict[bytes, bytes]", await self.store.redis.hgetall(name))

    async def stored(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return the stored states of a partition."""
        fields = await self.fields(partition)
        return {f[1:]: value for f, value in fields.items() if f.startswith(b":")}

    async def meta(self, partition: int = 0) -> dict[str, str]:
        """Return a partition's meta fields as meta_of() does."""
        return await meta_of(self.store, self.log.topic, partition)

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
        # A cancellation leaves Redis commands running (store.whole): no connection may be closed
        # under one that is just opening it.
        commands = [task for task in asyncio.all_tasks() if _is_of_redis(task)]
        if commands:
            await asyncio.wait(commands, timeout=DEADLINE_S)
        await self.store.close()


async def meta_of(store: Store, topic: str, partition: int) -> dict[str, str]:
    """Return a partition's meta fields and the number of its key states (as "keys"); {}: none."""
    fields = cast("dict[bytes, bytes]", await store.redis.hgetall(store.name(topic, partition)))
    meta = {f.decode(): v.decode() for f, v in fields.items() if not f.startswith(b":")}
    return meta | {"keys": str(len(fields) - len(meta))} if meta else {}


def _is_of_redis(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and "redis" in code.co_filename  # redis-py or worker/redis/client.py


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
