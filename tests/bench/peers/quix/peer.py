"""Peer: Quix Streams, a stateful `apply` over its own RocksDB store.

Written as its documentation shows stateful processing: `dataframe.apply(f, stateful=True)`, the
key's state as bytes, one event per call (Quix has no call for many keys). Changelog topics and the
5 s between checkpoints are its defaults: the state is as durable as keyfold's.

acks=all, idempotent. At least once: what is served again since the last checkpoint starts from the
checkpoint's states, so it is folded right, and its predictions go out a second time.
"""

# Runs in an environment of its own, whose packages are not where the types are checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from peers.step import Settings, Step
from quixstreams import Application, State, message_context

settings, step = Settings.read(), Step()
app = Application(
    broker_address=settings.brokers,
    consumer_group=settings.group,
    auto_offset_reset="earliest",
    state_dir=settings.stores,
    producer_extra_config={"acks": "all", "enable.idempotence": True},
    loglevel="WARNING",
)
events = app.topic(settings.input, key_deserializer="bytes", value_deserializer="json")
predictions = app.topic(settings.output, key_serializer="bytes", value_serializer="json")


def predict(event: dict[str, Any], state: State) -> dict[str, Any]:
    """Fold one event into its key's state and return its prediction."""
    values = [event[feature] for feature in settings.features]
    y, after = step.one(values, state.get_bytes("state") or step.cold)
    state.set_bytes("state", after)
    at = message_context()
    about = f"{at.topic}:{at.partition}:{at.offset}"
    return {"about": about, "output": {settings.output_name: y}}


app.dataframe(events).apply(predict, stateful=True).to_topic(predictions)

if __name__ == "__main__":
    app.run()
