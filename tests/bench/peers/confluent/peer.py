"""Peer: what an expert writes by hand on confluent-kafka, for speed, in one file.

Whole lots from `consume`, one msgspec decode of a lot, waves (the k-th event of every key in one
call of the model), states in one array while this consumer owns their partitions (MGET of keys
that are new in it, one MSET per lot, packed by hiredis), `produce_batch` with acks=all and
idempotence. While a lot's outputs are acked and its states saved by a second thread, the next lot
is decoded and stepped; offsets are committed after both, so nothing is lost.

What it does not do and keyfold does: a crash between MSET and saved offsets folds events twice,
and two owners of a partition may overwrite each other's states; what is no event ends it.
"""

from __future__ import annotations

import gc
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from numpy.typing import NDArray
from peers.step import Rows, Settings, Step
from peers.waves import fold
from redis import Redis

LOT, WAIT_S = 16_384, 0.05
MAX_KEYS = 1_000_000  # in memory; beyond it all are read from Redis again


class Cache:
    """States of the keys seen since the partitions were assigned."""

    def __init__(self, step: Step, redis: Any, prefix: str) -> None:
        self._step, self._redis, self._prefix = step, redis, prefix.encode() + b":"
        self.forget()

    def forget(self) -> None:
        """Start anew: somebody else may have changed the states in Redis."""
        self._slots: dict[bytes, int] = {}
        self._names: list[bytes] = []
        self.states: Rows = np.empty((4096, self._step.width), np.float32)

    @property
    def full(self) -> bool:
        """Tell whether it is time to forget."""
        return len(self._slots) > MAX_KEYS

    def slots(self, keys: list[bytes]) -> NDArray[np.intp]:
        """Return where the states of `keys` are, reading those that are not here yet."""
        slots, known = self._slots, len(self._slots)
        found = np.array([slots.setdefault(key, len(slots)) for key in keys], np.intp)
        if len(slots) > known:
            self._load(list(islice(slots, known, None)), known)
        return found

    def _load(self, keys: list[bytes], begin: int) -> None:
        end = begin + len(keys)
        while end > len(self.states):
            self.states = np.concatenate([self.states, np.empty_like(self.states)])
        names = [self._prefix + key for key in keys]
        self._names += names
        stored = b"".join([state or self._step.cold for state in self._redis.mget(names)])
        self.states[begin:end] = np.frombuffer(stored, np.float32).reshape(len(keys), -1)

    def changed(self, slots: NDArray[np.intp]) -> dict[bytes, bytes]:
        """Return the arguments of the MSET of these slots."""
        once = np.unique(slots)
        packed, width = self.states[once].tobytes(), 4 * self._step.width
        values = [packed[at : at + width] for at in range(0, len(packed), width)]
        return dict(zip([self._names[slot] for slot in once.tolist()], values, strict=True))


class Server:
    """The loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._step = settings, Step()
        self._redis: Any = Redis.from_url(settings.redis)
        self._cache = Cache(self._step, self._redis, settings.group)
        self._failed: list[KafkaError] = []
        fields = [(f"f{i}", float, msgspec.field(name=n)) for i, n in enumerate(settings.features)]
        event = msgspec.defstruct("Event", fields, gc=False)
        self._decoder = msgspec.json.Decoder(list[event])  # type: ignore[valid-type]
        self._values = attrgetter(*(name for name, _, _ in fields))
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        servers = {"bootstrap.servers": settings.brokers}
        self._producer = Producer(
            {
                **servers,
                "acks": "all",
                "enable.idempotence": True,
                "delivery.report.only.error": True,
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1_000_000,
            }
        )
        self._consumer = Consumer(
            {
                **servers,
                "group.id": settings.group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "check.crcs": True,  # as keyfold does; librdkafka's default is not to look
                "queued.min.messages": 4 * LOT,
                "fetch.max.bytes": 64_000_000,
                "max.partition.fetch.bytes": 8_000_000,
            }
        )

    def run(self) -> None:
        """Serve until something fails."""
        self._consumer.subscribe([self._settings.input], on_assign=self._new, on_revoke=self._gone)
        while True:
            messages = self._consumer.consume(LOT, WAIT_S)
            if messages:
                self._serve(messages)

    def _serve(self, messages: list[Any]) -> None:
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
        events = self._decoder.decode(b"[" + b",".join([m.value() for m in messages]) + b"]")
        flat = chain.from_iterable(map(self._values, events))
        x = np.fromiter(flat, np.float32).reshape(len(messages), -1)
        keys = [message.key() for message in messages]
        if self._cache.full:
            self._wait()  # what is forgotten must be readable again
            self._cache.forget()
        slots = self._cache.slots(keys)
        y = fold(self._step, x, slots, self._cache.states)
        changed = self._cache.changed(slots)
        self._wait()  # at most one lot is on its way, so that states are saved in order
        ends = self._produce(messages, keys, y)
        self._saving = self._saver.submit(self._save, changed, ends)

    def _produce(self, messages: list[Any], keys: list[bytes], y: Rows) -> dict[int, int]:
        """Hand over the predictions; return the offset behind the lot, by partition."""
        topic, output = self._settings.input, self._settings.output_name
        texts = orjson.dumps(y, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
        middle = f'","output":{{"{output}":'
        records: list[dict[str, Any]] = []
        ends: dict[int, int] = {}
        for message, key, text in zip(messages, keys, texts, strict=True):
            partition, offset = message.partition(), message.offset()
            ends[partition] = offset + 1
            value = f'{{"about":"{topic}:{partition}:{offset}{middle}{text}}}}}'
            records.append({"key": key, "value": value, "partition": partition})
        queued = self._producer.produce_batch(self._settings.output, records, on_delivery=self._no)
        if queued != len(records):
            raise BufferError(f"{len(records) - queued} predictions were not queued")
        return ends

    def _save(self, changed: dict[bytes, bytes], ends: dict[int, int]) -> None:
        self._redis.mset(changed)
        if self._producer.flush(30) or self._failed:
            raise RuntimeError(f"predictions were not acked: {self._failed[:1]}")
        topic = self._settings.input
        offsets = [TopicPartition(topic, number, end) for number, end in ends.items()]
        self._consumer.commit(offsets=offsets, asynchronous=True)

    def _no(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed.append(error)

    def _wait(self) -> None:
        if self._saving is not None:
            self._saving.result()

    def _new(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._cache.forget()

    def _gone(self, _consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._wait()
        self._cache.forget()


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles
    Server(Settings.read()).run()
