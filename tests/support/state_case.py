"""A group's states for keyfold-state to look after: a topic, records, and hashes written by hand.

Owns what the tests of keyfold-state repeat: planted states with a right fingerprint, the command
with its settings, and what Redis holds afterwards. No worker runs here. Imported as
`from state_case import StateCase`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import redis
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from confluent_kafka import Producer
from confluent_kafka import TopicPartition as Place
from live_worker import make_events

from keyfold.export.bundle import Bundle
from keyfold.worker.protocol import Fingerprint
from keyfold.worker.state import cli as state
from keyfold.worker.state_codec import StateCodec, States
from local.services import KafkaService, Valkey


@dataclass(slots=True)
class _Written:
    """A record as the broker took it."""

    offset: int  # in its partition
    key: bytes | None  # record key
    value: bytes | None  # payload
    timestamp: int  # ms


class StateCase:
    """One input topic and one group."""

    def __init__(
        self,
        kafka: KafkaService,
        valkey: Valkey,
        bundle: Bundle,
        names: Callable[[str], str],
        partitions: int = 2,
    ) -> None:
        self.kafka, self.valkey, self.bundle, self.partitions = kafka, valkey, bundle, partitions
        self.topic, self.group = names("in"), names("group")
        kafka.create_topic(self.topic, partitions, None)
        self.redis: redis.Redis = valkey.client()
        self.prints: dict[int, list[str]] = {}  # fingerprints of the records written, by partition

    def close(self) -> None:
        """Close the connection."""
        self.redis.close()

    def write(self, count: int, partition: int = 0, seed: int = 0) -> None:
        """Write events to a partition of the topic."""
        prints = self.prints.setdefault(partition, [])

        def note(error: object, message: Any) -> None:
            assert error is None
            record = _Written(
                message.offset(), message.key(), message.value(), message.timestamp()[1]
            )
            prints.append(str(Fingerprint.of(record)))

        producer = Producer({"bootstrap.servers": self.kafka.address, "on_delivery": note})
        for key, value in make_events(count, 5, seed=seed):
            producer.produce(self.topic, value, key, partition)
        assert producer.flush(30) == 0

    def plant(self, partition: int = 0, watermark: int = 10, keys: int = 3, **meta: str) -> None:
        """Write a right state of `keys` keys, but for `meta` (W="7" sets #W)."""
        prints = self.prints.get(partition, [])
        fields: dict[str, str | bytes] = {
            "#W": str(watermark), "#B": "0", "#E": "7", "#O": "worker", "#M": self.bundle.id,
            "#L": prints[watermark - 1] if 0 < watermark <= len(prints) else "", "#V": "2",
            "#K": str(keys), "#S": "1700000000000", "#F": "0", "#G": "", "#C": "", "#R": "0",
        }  # fmt: skip
        fields |= {f"#{name}": value for name, value in meta.items()}
        fields |= {":" + key.decode(): value for key, value in self.states(keys).items()}
        self.redis.delete(self.name(partition))
        self.redis.hset(self.name(partition), mapping=cast(Any, fields))

    def states(self, keys: int, first_offset: int = 0) -> dict[bytes, bytes]:
        """Return stored states of keys key-0, key-1, ..."""
        names = [f"key-{i}".encode() for i in range(keys)]
        places = np.arange(first_offset, first_offset + keys)
        tensors = {
            s.input: np.tile(np.array([-1.0, 0.5, 0.5, 1.0], np.float32), (keys, 1))
            for s in self.bundle.manifest.states
        }
        states = States(
            places.astype(np.uint64) + np.uint64(1), places.astype(np.int64),
            np.full(keys, 1_700_000_000_000, np.int64), np.full(keys, 1_700_000_000_500, np.int64),
            np.zeros(keys, np.bool_), tensors,
        )  # fmt: skip
        packed = StateCodec(self.bundle.manifest).pack(names, states)
        return dict(zip(names, packed, strict=True))

    def commit(self, offset: int, metadata: str = "", partition: int = 0) -> None:
        """Set the group's offset as a worker's transaction does, by aiokafka.

        confluent-kafka 2.16 sends a NUL behind the metadata, which then is not the worker's own.
        """

        async def set_offset() -> None:
            where = TopicPartition(self.topic, partition)
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.kafka.address, group_id=self.group, enable_auto_commit=False
            )
            consumer.assign([where])
            await consumer.start()
            try:
                await consumer.commit({where: OffsetAndMetadata(offset, metadata)})
            finally:
                await consumer.stop()

        asyncio.run(set_offset())

    def delete_records(self, upto: int, partition: int = 0) -> None:
        """Let the log of a partition begin at `upto`."""
        admin = self.kafka.admin()  # kept: the answer comes through it
        at = Place(self.topic, partition, upto)
        (done,) = admin.delete_records([at]).values()
        done.result(20)

    def name(self, partition: int = 0) -> str:
        """Return the name of a partition's hash, written out here a second time on purpose."""
        return f"{{{self.group}:{self.topic}:{partition}}}"

    def meta(self, partition: int = 0) -> dict[str, str]:
        """Return a partition's meta fields."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self.name(partition)))
        return {f.decode(): v.decode() for f, v in found.items() if f.startswith(b"#")}

    def stored(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return a partition's stored states by key."""
        found = cast("dict[bytes, bytes]", self.redis.hgetall(self.name(partition)))
        return {f[1:]: v for f, v in found.items() if f.startswith(b":")}

    def names(self) -> set[str]:
        """Return the names of everything that Redis holds of this group."""
        return {name.decode() for name in self.redis.scan_iter(match=f"*{self.group}*")}

    def run(self, *arguments: str, **settings: str) -> int:
        """Run keyfold-state; `settings` are section__name=value. Returns the exit status."""
        wanted = {
            "kafka__brokers": self.kafka.address, "kafka__input": self.topic,
            "kafka__output": "out", "kafka__group": self.group, "redis__url": self.valkey.url,
            "worker__bundle": str(self.bundle.path), **settings,
        }  # fmt: skip
        flags = [f"--set={name.replace('__', '.')}={value}" for name, value in wanted.items()]
        return state.main([*arguments, *flags])
