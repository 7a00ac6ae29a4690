"""Sends a schedule's traffic, beside the faults, and waits for every ack.

Owns a thread with its producer. Records go to the brokers directly, never through the proxies: the
traffic itself must arrive. Used by run.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from confluent_kafka import KafkaException, Producer

from campaign.traffic import Chunk, Record

FLUSH_S = 40.0  # a killed broker must be back within this
STUCK_S = 10.0  # of a transaction's records; see _send_transaction


class Sender(threading.Thread):
    """Sends chunks at their times; `hurry` sends what is left at once."""

    def __init__(
        self, brokers: str, topic: str, chunks: Sequence[Chunk], duration_s: float, plain: bool
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self._chunks, self._duration_s, self._topic = chunks, duration_s, topic
        self._transactional = not plain
        self._hurry = threading.Event()
        self.paused = threading.Event()  # set: nothing is sent, not even in a hurry
        self.error: BaseException | None = None  # what stopped it
        self.sent = 0  # records acked, those of aborted transactions too
        self._settings: dict[str, str | int | float | bool] = {
            "bootstrap.servers": brokers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 5,
            "message.timeout.ms": int(FLUSH_S * 1000),
            "transaction.timeout.ms": int(FLUSH_S * 1000),
            "log_level": 2,
        }
        if self._transactional:
            self._settings["transactional.id"] = f"{topic}-sender"
            self._settings["message.timeout.ms"] = int(STUCK_S * 1000)
        self._producer = Producer(self._settings)

    def run(self) -> None:
        """Send everything."""
        begun = time.monotonic()
        try:
            if self._transactional:
                self._producer.init_transactions(FLUSH_S)
            for chunk in self._chunks:
                self._hurry.wait(max(0.0, begun + chunk.at * self._duration_s - time.monotonic()))
                while self.paused.is_set():
                    time.sleep(0.02)
                self._send(chunk)
                self.sent += len(chunk.records)
        except BaseException as error:  # noqa: BLE001 - told by finish(), in the main thread
            self.error = error

    def finish(self) -> None:
        """Send what is left now; return when all is acked. Raises what went wrong."""
        self.paused.clear()
        self._hurry.set()
        self.join(2 * FLUSH_S)
        if self.error is not None:
            raise self.error
        if self.is_alive():
            raise RuntimeError(f"the traffic could not be sent within {2 * FLUSH_S:.0f} s")

    def _send(self, chunk: Chunk) -> None:
        if self._transactional:
            self._send_transaction(chunk)
        else:
            self._hand_over(chunk.records)
            left = self._producer.flush(FLUSH_S)
            if left:
                raise RuntimeError(f"{left} records of the traffic were not acked")

    def _hand_over(self, records: Sequence[Record]) -> None:
        for key, value in records:
            while True:
                try:
                    self._producer.produce(self._topic, value, key)
                    break
                except BufferError:  # large records: room comes with the acks
                    self._producer.poll(0.1)
            self._producer.poll(0)

    def _send_transaction(self, chunk: Chunk) -> None:
        """Send a chunk as one transaction, again when the brokers took it back."""
        deadline = time.monotonic() + FLUSH_S
        while True:
            try:
                self._producer.begin_transaction()
                self._hand_over(chunk.records)
                self._producer.flush(FLUSH_S)
                end = self._producer.abort_transaction if chunk.aborted else self._end
                end()
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                # A new one ends the open transaction, and forgets the leader epochs of a topic
                # that was deleted: librdkafka holds them above those of its successor.
                self._producer = Producer(self._settings)
                self._producer.init_transactions(FLUSH_S)

    def _end(self) -> None:
        while True:
            try:
                self._producer.commit_transaction(FLUSH_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
