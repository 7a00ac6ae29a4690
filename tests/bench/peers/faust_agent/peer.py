"""Peer: a plain Faust agent, one event at a time, the key's state read and written in Redis.

Written as Faust's guide shows agents: `async for event in stream.events()`, one `send` per event;
with uvloop, orjson and hiredis, which its installation page recommends for speed. Faust's own
tables would keep the state in RocksDB and a changelog; Redis is what keyfold is compared on.

acks=all. The producer is not idempotent: Faust makes it so only in its exactly_once mode, whose
transactions do not work. At least once: an event that is served again is folded into its key's
state a second time.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import logging
from typing import Any

import faust
from peers.step import Settings, Step
from redis.asyncio import Redis

logging.disable(logging.DEBUG)  # aiokafka makes records of it that nobody reads

settings, step = Settings.read(), Step()
app = faust.App(
    settings.group,
    broker=f"kafka://{settings.brokers}",
    store="memory://",
    topic_disable_leader=True,
    web_enabled=False,
    producer_acks=-1,
    producer_linger=0.05,  # s; without it a request for every few predictions
    consumer_auto_offset_reset="earliest",
)
events = app.topic(settings.input, key_type=bytes, value_serializer="json")
predictions = app.topic(settings.output, key_type=bytes, value_serializer="json")
redis: Any = Redis.from_url(settings.redis)
prefix = f"{settings.group}:".encode()


@app.agent(events)
async def serve(stream: faust.StreamT) -> None:
    """Predict every event."""
    async for event in stream.events():
        name = prefix + event.key
        values = [event.value[feature] for feature in settings.features]
        y, state = step.one(values, await redis.get(name) or step.cold)
        await redis.set(name, state)
        message = event.message
        about = f"{message.topic}:{message.partition}:{message.offset}"
        prediction = {"about": about, "output": {settings.output_name: y}}
        await predictions.send(key=event.key, value=prediction)


if __name__ == "__main__":
    app.main()
