"""Peer: Bytewax, a keyed stateful step with recovery.

Written with its Kafka connector and `stateful_batch`, which its documentation names for control
over what is emitted and which does without three layers that `stateful_map` adds: events of one
key that arrive together are stepped in one call of the model. Recovery (SQLite) is on with the
default of a snapshot every 10 s, so that the state survives as keyfold's does.

acks=all, idempotent. Bytewax's sink waits for all acks after each of its lots. At least once after
a crash: predictions since the last snapshot go out again, states are the snapshot's.
"""

# Runs in an environment of its own, whose packages are not where the types are checked.
# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

from typing import TypeAlias

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from peers.step import Settings, Step

Event: TypeAlias = KafkaSourceMessage[bytes, bytes]
Prediction: TypeAlias = KafkaSinkMessage[bytes, bytes]

settings, step = Settings.read(), Step()


class Fold(op.StatefulBatchLogic[Event, Prediction, bytes]):
    """One key's state."""

    def __init__(self, state: bytes | None) -> None:
        """Begin cold, or where the last snapshot was."""
        self.state = state or step.cold

    def on_batch(self, values: list[Event]) -> tuple[list[Prediction], bool]:
        """Predict events of this key."""
        loaded = [orjson.loads(event.value) for event in values]
        x = [[one[feature] for feature in settings.features] for one in loaded]
        outputs, self.state = step.several(x, self.state)
        predictions = [predict(event, y) for event, y in zip(values, outputs, strict=True)]
        return predictions, op.StatefulBatchLogic.RETAIN

    def snapshot(self) -> bytes:
        """Return what recovery keeps."""
        return self.state


def predict(event: Event, y: float) -> Prediction:
    """Return the record of one prediction."""
    about = f"{event.topic}:{event.partition}:{event.offset}"
    payload = orjson.dumps({"about": about, "output": {settings.output_name: y}})
    return KafkaSinkMessage(event.key, payload)


flow = Dataflow("peer")
source = KafkaSource([settings.brokers], [settings.input])
produced = {"acks": "all", "enable.idempotence": "true", "partitioner": "murmur2_random"}
events = op.input("events", flow, source)
keyed = op.key_on("by-key", events, lambda event: event.key.decode())
predictions = op.stateful_batch("fold", keyed, Fold)
records = op.map("records", predictions, lambda pair: pair[1])
op.output("predictions", records, KafkaSink([settings.brokers], settings.output, produced))
