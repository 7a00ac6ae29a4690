"""Redis: a partition's watermark, owner and key states, changed only together.

Owns every Redis name and script. One hash per source partition, `{group:topic:partition}` (the
braces make it one slot of a Redis Cluster), holds the meta fields below and one field per key, so
that a watermark and its states vanish together. It decides nothing: replies go to
worker/partition.py. Called by worker/owner.py, the pipeline (load) and keyfold-state.

    #W watermark   #B base offset   #E fence number   #O owner nonce
    #M bundle id   #L fingerprint of the last applied record   #V layout version
    :<key> state (worker/state_codec.py)

Beside it `{group:topic}` holds N, the partition count the states were folded under.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis

from keyfold.worker.partition import Acquired, Fence, Fingerprint, Held, Refused, SavePlan

LAYOUT = "1"
META = ("#W", "#E", "#O", "#M")
STATE_PREFIX = b":"
# Lua's unpack fails at some 4,000 arguments; smaller pieces also keep the script interruptible.
PIECE = 1000
# A save blocks Redis while it runs: 100,000 states of 512 B take 150 ms.
MAX_SAVE_BYTES = 8 << 20
LOAD_PIECE = 4096  # keys of one HMGET
MAX_CONNECTIONS = 32

T = TypeVar("T")

# ARGV: nonce, bundle, layout, offset to begin at ("" = must exist). Checks all before it writes.
_ACQUIRE = """
local held = redis.call('HMGET', KEYS[1], '#W', '#V', '#M')
if not held[1] then
  if ARGV[4] == '' then return {'missing', 'a watermark', 'none'} end
  redis.call('HSET', KEYS[1], '#W', ARGV[4], '#B', ARGV[4], '#E', '0', '#M', ARGV[2],
             '#L', '', '#V', ARGV[3])
else
  if held[2] ~= ARGV[3] then return {'layout', ARGV[3], held[2] or 'none'} end
  if held[3] ~= ARGV[2] then return {'bundle', ARGV[2], held[3] or 'none'} end
end
local number = redis.call('HINCRBY', KEYS[1], '#E', 1)
redis.call('HSET', KEYS[1], '#O', ARGV[1])
local now = redis.call('HMGET', KEYS[1], '#W', '#L')
return {'ok', tostring(number), now[1], now[2]}
"""

# ARGV: number, nonce, bundle, w0, w1, fingerprint, n of cleared keys, cleared..., field, value...
# Scripts do not roll back: everything is checked before the first write, and the watermark is
# written last, so that a state can be ahead of the watermark but never behind it; a state ahead is
# found out when it is loaded.
_SAVE = """
local held = redis.call('HMGET', KEYS[1], '#W', '#E', '#O', '#M')
if held[1] == ARGV[4] and held[2] == ARGV[1] and held[3] == ARGV[2] and held[4] == ARGV[3] then
  local first = 8 + tonumber(ARGV[7])
  for i = 8, first - 1, PIECE do
    redis.call('HDEL', KEYS[1], unpack(ARGV, i, math.min(i + PIECE - 1, first - 1)))
  end
  for i = first, #ARGV, PIECE do
    redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + PIECE - 1, #ARGV)))
  end
  redis.call('HSET', KEYS[1], '#W', ARGV[5], '#L', ARGV[6])
  held[1] = ARGV[5]
end
return held
""".replace("PIECE", str(PIECE))


@dataclass(frozen=True, slots=True)
class Loaded:
    """The stored states of some keys, and what Redis held at that very instant."""

    held: Held  # watermark and owner
    values: list[bytes | None]  # one per key asked for; None: no state, the key is cold


@dataclass(frozen=True, slots=True)
class Payload:
    """What one save writes."""

    cleared: Sequence[bytes]  # keys reset by a tombstone and not stepped since
    keys: Sequence[bytes]  # keys with a new state
    values: Sequence[bytes]  # their stored states


def partition_name(group: str, topic: str, partition: int) -> str:
    """Return the name of a partition's hash."""
    return f"{{{group}:{topic}:{partition}}}"


class Store:
    """The state of one consumer group in one Redis. Safe to share between tasks."""

    def __init__(self, redis: Redis, group: str) -> None:
        self.redis, self._group = redis, group
        self._acquire = redis.register_script(_ACQUIRE)
        self._save = redis.register_script(_SAVE)

    @classmethod
    def connect(cls, url: str, timeout_s: float, group: str) -> Store:
        """Prepare a store; connections open on first use."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,  # a command waits for a connection
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            protocol=2,
        )
        return cls(Redis.from_pool(pool), group)

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    def name(self, topic: str, partition: int) -> str:
        """Return the name of a partition's hash."""
        return partition_name(self._group, topic, partition)

    async def check_partition_count(self, topic: str, count: int) -> Refused | None:
        """Keep the first partition count ever seen for this group and topic; refuse another."""
        await whole(self.redis.hsetnx(self._topic_name(topic), "#N", str(count)))
        first = await self.partition_count(topic)
        return None if first == count else Refused("partitions", str(count), str(first))

    async def partition_count(self, topic: str) -> int | None:
        """Return the partition count the states were folded under, None: there are none."""
        count = await whole(self.redis.hget(self._topic_name(topic), "#N"))
        return None if count is None else int(count)

    async def forget_partition_count(self, topic: str) -> None:
        """Let the next ACQUIRE set the partition count anew."""
        await whole(self.redis.delete(self._topic_name(topic)))

    def _topic_name(self, topic: str) -> str:
        return f"{{{self._group}:{topic}}}"

    async def acquire(
        self, topic: str, partition: int, nonce: str, bundle: str, begin: int | None
    ) -> Acquired | Refused:
        """Take the fence; where there is no state, begin at offset `begin` unless it is None."""
        arguments = [nonce, bundle, LAYOUT, "" if begin is None else str(begin)]
        reply = await whole(self._acquire(keys=[self.name(topic, partition)], args=arguments))
        status, *rest = (item.decode() for item in reply)
        if status != "ok":
            return Refused(cast(Any, status), expected=rest[0], got=rest[1])
        number, watermark, fingerprint = rest
        fence = Fence(int(number), nonce, bundle)
        return Acquired(fence, int(watermark), Fingerprint.parse(fingerprint))

    async def load(self, topic: str, partition: int, keys: Sequence[bytes]) -> Loaded:
        """Read keys' states and, in the same instant, the watermark and owner."""
        fields: list[str | bytes] = [*META, *(STATE_PREFIX + key for key in keys)]
        reply = await self._get(topic, partition, fields)
        return Loaded(_held(reply), reply[len(META) :])

    async def hold(self, topic: str, partition: int) -> Held:
        """Read a partition's watermark and owner."""
        return _held(await self._get(topic, partition, META))

    async def save(
        self, topic: str, partition: int, fence: Fence, plan: SavePlan, payload: Payload
    ) -> Held:
        """Compare and set: all of the payload and the watermark, or nothing.

        Returns what Redis holds afterwards. May be repeated after a lost reply.
        """
        arguments: list[str | int | bytes] = [
            fence.number,
            fence.nonce,
            fence.bundle,
            plan.w0,
            plan.w1,
            str(plan.fingerprint or ""),
            len(payload.cleared),
            *(STATE_PREFIX + key for key in payload.cleared),
        ]
        for key, value in zip(payload.keys, payload.values, strict=True):
            arguments += (STATE_PREFIX + key, value)
        return _held(await whole(self._save(keys=[self.name(topic, partition)], args=arguments)))

    async def reset(self, topic: str, partition: int, nonce: str, bundle: str, begin: int) -> None:
        """Drop a partition's states and begin anew at `begin`; stops whoever owns it now."""
        name = self.name(topic, partition)
        number = int(await whole(self.redis.hget(name, "#E")) or 0)
        meta: Mapping[str, str | int] = {
            "#W": begin, "#B": begin, "#E": number + 1, "#O": nonce,
            "#M": bundle, "#L": "", "#V": LAYOUT,
        }  # fmt: skip
        transaction = self.redis.pipeline(transaction=True)
        transaction.delete(name)
        transaction.hset(name, mapping=cast(Any, meta))
        await whole(transaction.execute())

    async def meta(self, topic: str, partition: int) -> dict[str, str]:
        """Return a partition's meta fields and the number of its keys (as "keys")."""
        fields = ("#W", "#B", "#E", "#O", "#M", "#L", "#V")
        values = await self._get(topic, partition, fields)
        found = {f: v.decode() for f, v in zip(fields, values, strict=True) if v is not None}
        if found:
            fields_held = await whole(self.redis.hlen(self.name(topic, partition)))
            found["keys"] = str(fields_held - len(found))
        return found

    async def _get(
        self, topic: str, partition: int, fields: Sequence[str | bytes]
    ) -> list[bytes | None]:
        reply = await whole(self.redis.hmget(self.name(topic, partition), list(fields)))
        return cast("list[bytes | None]", reply)

    async def policy_problems(self) -> list[str]:
        """Return what in Redis's own settings can lose states; empty when nothing can be seen."""
        info: dict[str, Any] = await whole(self.redis.info("memory"))
        policy = info.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            return []
        return [f"Redis may evict states: expected maxmemory-policy noeviction, got {policy}"]


def pieces(keys: Sequence[T], size: int = LOAD_PIECE) -> Iterable[Sequence[T]]:
    """Cut a list into pieces of at most `size`."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


async def whole(command: Awaitable[T]) -> T:
    """Await a Redis command that a cancellation of the caller must not cut in two.

    A cancelled command once left its reply for the next one on the connection (CVE-2023-28859):
    the command runs on by itself and its reply is thrown away.
    """
    running = asyncio.ensure_future(command)
    running.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(running)


def _held(reply: Sequence[bytes | None]) -> Held:
    watermark, number, nonce, bundle = reply[: len(META)]
    return Held(
        None if watermark is None else int(watermark),
        int(number or 0),
        (nonce or b"").decode(),
        (bundle or b"").decode(),
    )
