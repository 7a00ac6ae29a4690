"""Redis: a partition's watermark, owner and key states, changed only together.

Owns the Redis names and the scripts of the worker. One hash per source partition,
`{group:topic:partition}` (the braces make it one slot of a Redis Cluster), holds the meta fields
(META) and one field `:<key>` per key, so that a watermark and its states vanish together. It
decides nothing: replies go to worker/partition.py. Called by worker/owner.py, the pipeline (load)
and keyfold-state.

All of the meta fields are always there: with the number of fields this tells a vanished key state.
Beside it `{group:topic}` holds N, the partition count the states were folded under, T, the topic's
id ("" where the broker tells none), and what relative times of the settings (-7d) first meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    TimeoutError,  # noqa: A004
)

from keyfold.worker.errors import NotOwner
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    Fence,
    Fingerprint,
    Held,
    Refused,
    SavePlan,
    Topic,
)
from keyfold.worker.redis.client import Access, Script, connect, primaries
from keyfold.worker.redis.packing import Written
from keyfold.worker.state_codec import TOUCHED_AT

LAYOUT = "2"
# Every meta field of the layout and what it says; keyfold-state shows these words.
META = {
    "#W": "watermark: the next offset to apply; the states are the fold below it",
    "#B": "base offset: where the fold began",
    "#E": "fence number: increased whenever somebody takes the partition",
    "#O": "owner: the worker (or keyfold-state) that took it last",
    "#M": "bundle whose states these are",
    "#L": "last applied record: offset:timestamp:crc",  # "": none
    "#V": "layout version",
    "#K": "key states in the hash",
    "#S": "stream time in ms: the largest event time seen",  # "": no event yet
    "#F": "emit floor: nothing about offsets below it is emitted",
    # "from-to,from-to"; "": none
    "#G": "ranges of offsets lost to retention before they were folded",
    "#C": "exactly-once outputs: group offset known to be set by a transaction",  # "": none
    "#R": "times that the outputs began anew",
}
STATE_PREFIX = b":"  # of a key's field; its value: worker/state_codec.py
# Lua's unpack fails at some 4,000 arguments; smaller pieces also keep the script interruptible.
PIECE = 1000
# A save blocks Redis while it runs: 100,000 states of 512 B take 150 ms.
MAX_SAVE_BYTES = 8 << 20
LOAD_PIECE = 2000  # keys of one load: Lua's unpack again

T = TypeVar("T")

# What a worker is told after ACQUIRE.
_TELL = """
local function tell()
  local f = redis.call('HMGET', KEYS[1], '#E', '#W', '#L', '#S', '#F', '#G', '#C', '#R')
  table.insert(f, 1, 'ok')
  return f
end
"""

# Every meta field of a partition that begins at `begin`; #E, #F, #C and #R are carried over.
_BEGIN = """
local function begin(at, number, bundle, layout, floor, committed, resets)
  redis.call('HSET', KEYS[1], '#W', at, '#B', at, '#E', number, '#O', '', '#M', bundle, '#L', '',
             '#V', layout, '#K', '0', '#S', '', '#F', floor, '#G', '', '#C', committed,
             '#R', resets)
end
"""

_TAKE = """
local function take(nonce, exactly_once)
  redis.call('HINCRBY', KEYS[1], '#E', 1)
  redis.call('HSET', KEYS[1], '#O', nonce)
  if exactly_once ~= '1' then redis.call('HSET', KEYS[1], '#C', '') end
  return tell()
end
"""

# ARGV: nonce, bundle, layout, offset to begin at ("" = must exist), exactly-once (0 or 1), emit
# floor to begin with.
# Checks all before it writes.
_ACQUIRE = f"""{_TELL}{_BEGIN}{_TAKE}
local held = redis.call('HMGET', KEYS[1], '#W', '#V', '#M', '#K', '#B')
if not held[1] then
  if ARGV[4] == '' then return {{'missing', 'a watermark', 'none'}} end
  redis.call('UNLINK', KEYS[1])
  begin(ARGV[4], '0', ARGV[2], ARGV[3], ARGV[6], '', '0')
else
  if held[2] ~= ARGV[3] then return {{'layout', ARGV[3], held[2] or 'none'}} end
  local found = tostring(redis.call('HLEN', KEYS[1]) - {len(META)})
  if found ~= held[4] then return {{'states', held[4] or 'none', found}} end
  if held[3] ~= ARGV[2] then return {{'bundle', ARGV[2], held[3] or 'none', held[1], held[5]}} end
end
return take(ARGV[1], ARGV[5])
"""

# ARGV: nonce, bundle, layout, exactly-once, begin, floor, expected bundle, expected watermark.
# What is out stays out: the emit floor never falls, and #C and #R stay as they were.
_BEGIN_ANEW = f"""{_TELL}{_BEGIN}{_TAKE}
local held = redis.call('HMGET', KEYS[1], '#M', '#W', '#E', '#F', '#C', '#R')
if held[1] ~= ARGV[7] or held[2] ~= ARGV[8] then
  return {{'bundle', ARGV[2], held[1] or 'none', held[2] or '0', '0'}}
end
redis.call('UNLINK', KEYS[1])
local floor = string.format('%.0f', math.max(tonumber(ARGV[6]), tonumber(held[4])))
begin(ARGV[5], held[3], ARGV[2], ARGV[3], floor, held[5], held[6])
return take(ARGV[1], ARGV[4])
"""

# ARGV: number, nonce, bundle, w0, first offset retained
_SKIP_LOST = f"""{_TELL}
local held = redis.call('HMGET', KEYS[1], '#W', '#E', '#O', '#M', '#G')
if held[1] ~= ARGV[4] or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] or held[4] ~= ARGV[3] then
  return {{'owner', ARGV[1] .. '/' .. ARGV[2], (held[2] or '0') .. '/' .. (held[3] or '')}}
end
local lost = held[1] .. '-' .. ARGV[5]
if held[5] ~= '' then lost = held[5] .. ',' .. lost end
redis.call('HSET', KEYS[1], '#W', ARGV[5], '#L', '', '#G', lost)
return tell()
"""

# ARGV: number, nonce, bundle, w0, w1, fingerprint, stream time, exactly-once,
#       oldest stream time kept ("" = all), scan cursor, fields to scan,
#       n of cleared fields, cleared field, ..., field, value, ...
# Scripts do not roll back: everything is checked before the first write, the one command that a
# full memory refuses comes first, and the watermark last, so that a state can be ahead of the
# watermark but never behind it; a state ahead is found out when it is loaded.
# Returns what is held afterwards, the number of states found, and the next scan cursor.
_SAVE = f"""
local key = KEYS[1]
local held = redis.call('HMGET', key, '#W', '#E', '#O', '#M', '#K')
held[6] = redis.call('HLEN', key) - {len(META)}
held[7] = ARGV[10]
if held[1] == ARGV[4] and held[2] == ARGV[1] and held[3] == ARGV[2] and held[4] == ARGV[3]
   and tonumber(held[5]) == held[6] then
  local last = 12 + tonumber(ARGV[12])
  local count = held[6]
  for i = last + 1, #ARGV, {PIECE} do
    count = count + redis.call('HSET', key, unpack(ARGV, i, math.min(i + {PIECE - 1}, #ARGV)))
  end
  for i = 13, last, {PIECE} do
    count = count - redis.call('HDEL', key, unpack(ARGV, i, math.min(i + {PIECE - 1}, last)))
  end
  if ARGV[9] ~= '' then
    local oldest = tonumber(ARGV[9])
    local scan = redis.call('HSCAN', key, ARGV[10], 'COUNT', ARGV[11])
    held[7] = scan[1]
    for i = 1, #scan[2], 2 do
      local field, value = scan[2][i], scan[2][i + 1]
      if string.byte(field) == 58 and #value >= {TOUCHED_AT + 8}
         and struct.unpack('<i8', value, {TOUCHED_AT + 1}) < oldest then
        count = count - redis.call('HDEL', key, field)
      end
    end
  end
  if ARGV[8] == '1' then redis.call('HSET', key, '#C', ARGV[5]) end
  redis.call('HSET', key, '#W', ARGV[5], '#L', ARGV[6], '#S', ARGV[7], '#K', count)
  held[1], held[5], held[6] = ARGV[5], tostring(count), count
end
return held
"""

# ARGV: fields of states
_LOAD = f"""
local held = redis.call('HMGET', KEYS[1], '#W', '#E', '#O', '#M', '#K')
held[6] = redis.call('HLEN', KEYS[1]) - {len(META)}
if #ARGV == 0 then return {{held}} end
return {{held, redis.call('HMGET', KEYS[1], unpack(ARGV))}}
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The stored states of some keys, and what Redis held at that very instant."""

    held: Held  # watermark and owner
    values: list[bytes | None]  # one per key asked for; None: no state, the key is cold


@dataclass(frozen=True, slots=True)
class Expired:
    """Which states a save collects on its way."""

    oldest_ms: int  # stream time below which a state's last event makes it expired
    cursor: int  # where the scan of the hash goes on; 0: at its beginning
    fields: int  # about how many fields to look at


@dataclass(frozen=True, slots=True)
class Payload:
    """What one save writes."""

    cleared: Sequence[bytes]  # keys reset and not stepped since
    keys: Sequence[bytes]  # keys with a new state
    values: Sequence[bytes]  # their stored states
    expired: Expired | None = None  # None: keys never expire
    written: Written | None = None  # names and states of `keys` as they are sent; no values then


def partition_name(group: str, topic: str, partition: int) -> str:
    """Return the name of a partition's hash."""
    return f"{{{group}:{topic}:{partition}}}"


def topic_name(group: str, topic: str) -> str:
    """Return the name of the hash that tells which topic the states were folded from."""
    return f"{{{group}:{topic}}}"


class Store:
    """The state of one consumer group in one Redis. Safe to share between tasks."""

    def __init__(self, redis: Redis, group: str, exactly_once: bool = False) -> None:
        self.redis, self._group = redis, group
        self._exactly_once = "1" if exactly_once else "0"
        self._acquire = Script(redis, _ACQUIRE)
        self._begin_anew = Script(redis, _BEGIN_ANEW)
        self._skip_lost = Script(redis, _SKIP_LOST)
        self._save = Script(redis, _SAVE)
        self._load = Script(redis, _LOAD)

    @classmethod
    def connect(
        cls, redis: Access | str, timeout_s: float, group: str, exactly_once: bool = False
    ) -> Store:
        """Prepare a store; connections open on first use."""
        return cls(connect(redis, timeout_s), group, exactly_once)

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    def name(self, topic: str, partition: int) -> str:
        """Return the name of a partition's hash."""
        return partition_name(self._group, topic, partition)

    # -- the topic ---------------------------------------------------------------------------------

    async def check_topic(self, name: str, topic: Topic) -> Refused | None:
        """Keep the first partition count and id ever seen for this topic; refuse others."""
        noted = topic_name(self._group, name)
        await whole(self.redis.hsetnx(noted, "#N", str(topic.partitions)))
        if topic.identity:
            await whole(self.redis.hsetnx(noted, "#T", topic.identity))
        first = await self.topic(name)
        if first is None or first.partitions != topic.partitions:
            got = "none" if first is None else str(first.partitions)
            return Refused("partitions", str(topic.partitions), got)
        if first.identity and topic.identity and first.identity != topic.identity:
            return Refused("topic", f"topic id {topic.identity}", first.identity)
        return None

    async def topic(self, name: str) -> Topic | None:
        """Return the topic that the states were folded from, None: there are none."""
        noted = topic_name(self._group, name)
        count, identity = await whole(cast(Any, self.redis.hmget(noted, ["#N", "#T"])))
        return None if count is None else Topic(int(count), (identity or b"").decode())

    async def note_moment(self, name: str, text: str, time_ms: int) -> int:
        """Keep what a relative time of the settings first meant to this group; return it, in ms.

        It stands beside N and T, and is forgotten with them.
        """
        noted, field = topic_name(self._group, name), f"#A {text}"
        await whole(self.redis.hsetnx(noted, field, str(time_ms)))
        found = await whole(cast(Any, self.redis.hget(noted, field)))
        return time_ms if found is None else int(found)

    # -- ACQUIRE -----------------------------------------------------------------------------------

    async def acquire(
        self, topic: str, partition: int, nonce: str, bundle: str, begin: Beginning | None
    ) -> Acquired | Refused:
        """Take the fence; where there is no state, begin there unless it is None."""
        at, floor = ("", 0) if begin is None else (str(begin.offset), begin.floor)
        arguments = [nonce, bundle, LAYOUT, at, self._exactly_once, floor]
        reply = await whole(self._acquire(keys=[self.name(topic, partition)], args=arguments))
        return _acquired(reply, nonce, bundle)

    async def begin_anew(
        self, topic: str, partition: int, fence: Fence, refused: Refused, begin: int
    ) -> Acquired | Refused:
        """Drop the states that were refused for their bundle, begin at `begin`, take the fence.

        Nothing below the refused watermark will be emitted again. `fence.number` is not looked at.
        """
        arguments = [
            fence.nonce, fence.bundle, LAYOUT, self._exactly_once, begin, refused.watermark,
            refused.got, refused.watermark,
        ]  # fmt: skip
        reply = await whole(self._begin_anew(keys=[self.name(topic, partition)], args=arguments))
        return _acquired(reply, fence.nonce, fence.bundle)

    async def skip_lost(
        self, topic: str, partition: int, acquired: Acquired, upto: int
    ) -> Acquired | Refused:
        """Move W over events that retention took, to `upto`, and remember the range.

        Raises NotOwner when the fence was taken meanwhile.
        """
        fence = acquired.fence
        arguments = [fence.number, fence.nonce, fence.bundle, acquired.watermark, upto]
        reply = await whole(self._skip_lost(keys=[self.name(topic, partition)], args=arguments))
        return _acquired(reply, fence.nonce, fence.bundle)

    # -- RUN ---------------------------------------------------------------------------------------

    async def load(self, topic: str, partition: int, keys: Sequence[bytes]) -> Loaded:
        """Read keys' states and, in the same instant, the watermark and owner."""
        fields = [STATE_PREFIX + key for key in keys]
        held, *values = await whole(self._load(keys=[self.name(topic, partition)], args=fields))
        return Loaded(_held(held), values[0] if values else [])

    async def hold(self, topic: str, partition: int) -> Held:
        """Read a partition's watermark and owner."""
        return (await self.load(topic, partition, ())).held

    async def save(
        self, topic: str, partition: int, fence: Fence, plan: SavePlan, payload: Payload
    ) -> tuple[Held, int]:
        """Compare and set: all of the payload and the watermark, or nothing.

        Returns what Redis holds afterwards, and where the scan for expired states goes on. May be
        repeated after a lost reply.
        """
        expired = payload.expired
        arguments: list[str | int | bytes | Written] = [
            fence.number, fence.nonce, fence.bundle, plan.w0, plan.w1,
            str(plan.fingerprint or ""), "" if plan.stream_ms is None else plan.stream_ms,
            self._exactly_once,
            *(("", 0, 0) if expired is None
              else (expired.oldest_ms, expired.cursor, expired.fields)),
            len(payload.cleared),
        ]  # fmt: skip
        arguments += (STATE_PREFIX + key for key in payload.cleared)
        if payload.written is not None:
            arguments.append(payload.written)
        else:
            for key, value in zip(payload.keys, payload.values, strict=True):
                arguments += (STATE_PREFIX + key, value)
        reply = await whole(self._save(keys=[self.name(topic, partition)], args=arguments))
        return _held(reply), int(reply[6])

    # -- for operators -----------------------------------------------------------------------------

    async def policy_problems(self) -> list[str]:
        """Return what in Redis's own settings can lose states; empty when nothing can be seen.

        Raises what they raise only where no server answers, or one refuses us: a cluster serves
        all other slots while a node is away.
        """
        servers = await whole(primaries(self.redis))
        questions = (whole(cast(Any, server.info("memory"))) for server in servers)
        replies = await asyncio.gather(*questions, return_exceptions=True)
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        refusals = [error for error in errors if not _is_away(error)]
        if refusals or len(errors) == len(replies):
            raise (refusals or errors)[0]
        policies = [
            cast(dict[str, Any], reply).get("maxmemory_policy", "noeviction")
            for reply in replies
            if not isinstance(reply, BaseException)
        ]
        return [
            "Redis may evict states: expected maxmemory-policy noeviction, got " + policy
            for policy in policies
            if policy != "noeviction"
        ]


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


def _is_away(error: BaseException) -> bool:
    away = isinstance(error, (ConnectionError, TimeoutError, OSError))
    return away and not isinstance(error, AuthenticationError)


def _acquired(reply: Sequence[bytes], nonce: str, bundle: str) -> Acquired | Refused:
    status, *rest = (item.decode() for item in reply)
    if status != "ok":
        expected, got, *at = rest
        if status == "owner":
            raise NotOwner(f"expected owner {expected}, got {got}: another worker owns it")
        return Refused(cast(Any, status), expected, got, *map(int, at))
    number, watermark, fingerprint, stream, floor, lost, committed, resets = rest
    return Acquired(
        Fence(int(number), nonce, bundle),
        int(watermark),
        Fingerprint.parse(fingerprint),
        int(stream) if stream else None,
        int(floor),
        lost_ranges(lost),
        int(committed) if committed else None,
        int(resets),
    )


def lost_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Read the field #G: ranges [from, to)."""
    pairs = (item.split("-") for item in text.split(",") if item)
    return tuple((int(start), int(end)) for start, end in pairs)


def _held(reply: Sequence[Any]) -> Held:
    watermark, number, nonce, bundle, keys, found = reply[:6]
    return Held(
        None if watermark is None else int(watermark),
        int(number or 0),
        (nonce or b"").decode(),
        (bundle or b"").decode(),
        int(keys or 0),
        found,
    )
