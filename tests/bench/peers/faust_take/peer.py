"""Peer: a Faust agent that takes many events at once, with waves, MGET and MSET.

`take_events` is Faust's way to micro-batches. The events of one take are folded in waves (the k-th
event of every key in one call of the model), with one MGET before and one MSET after. uvloop,
orjson and hiredis as in faust_agent. Settings were chosen by measurement.

acks=all, not idempotent (see faust_agent). A crash can lose events: take() marks a whole buffer as
done however it is left. What is served again is folded a second time.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import logging
from typing import Any

import faust
import numpy as np
from peers.step import Settings, Step
from peers.waves import fold
from redis.asyncio import Redis

TAKE, WITHIN_S = 2000, 0.05

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
    stream_buffer_maxsize=2 * TAKE,
)
events = app.topic(settings.input, key_type=bytes, value_serializer="json")
predictions = app.topic(settings.output, key_type=bytes, value_serializer="json")
redis: Any = Redis.from_url(settings.redis)
prefix = f"{settings.group}:".encode()


@app.agent(events)
async def serve(stream: faust.StreamT) -> None:
    """Predict every event, a buffer at a time."""
    async for taken in stream.take_events(TAKE, within=WITHIN_S):
        slot_of: dict[bytes, int] = {}
        slots = np.array([slot_of.setdefault(event.key, len(slot_of)) for event in taken])
        names = [prefix + key for key in slot_of]
        found = b"".join([state or step.cold for state in await redis.mget(names)])
        states = np.frombuffer(found, np.float32).reshape(len(names), step.width).copy()
        x = [[event.value[feature] for feature in settings.features] for event in taken]
        outputs = fold(step, np.array(x, np.float32), slots, states).tolist()
        width = 4 * step.width
        after = states.tobytes()
        kept = (after[at : at + width] for at in range(0, len(after), width))
        await redis.mset(dict(zip(names, kept, strict=True)))
        for event, y in zip(taken, outputs, strict=True):
            message = event.message
            about = f"{message.topic}:{message.partition}:{message.offset}"
            prediction = {"about": about, "output": {settings.output_name: y}}
            await predictions.send(key=event.key, value=prediction)


if __name__ == "__main__":
    app.main()
