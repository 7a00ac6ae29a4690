"""Redis as keyfold-state needs it: whole partitions at once, looked at, copied and replaced.

Owns the scripts that put one partition's hash in another's place and the names beside it that they
use for it; layout and names of the hashes themselves are worker/store.py's. It decides nothing.
Works beside running workers: what it replaces takes the fence, so that a present owner stops.
Called by every command of keyfold-state.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keyfold.worker.errors import Crash
from keyfold.worker.protocol import Topic
from keyfold.worker.redis.client import Access, connect_sync
from keyfold.worker.store import LAYOUT, META, STATE_PREFIX, partition_name, topic_name

OWNER = "keyfold-state"  # who holds the fence until a worker acquires
PIECE_FIELDS = 1000  # Lua's unpack and one command's length; see worker/store.py
PIECE_BYTES = 4 << 20
SCAN = 1000  # fields of one HSCAN, roughly
ASIDE_MS = 3_600_000  # a copy beside a partition goes by itself when its maker died
# A field that only inherited states have, among them so that both come and go together: who folded
# what is below which offset, "BUNDLE@OFFSET,...". #K counts it, since a worker counts the fields
# that are no META; so no layout changes, and no worker can lose it without a HALT.
INHERITED = "#I"

_LOOK = "return {redis.call('HLEN', KEYS[1]), redis.call('HMGET', KEYS[1], unpack(ARGV))}"

# KEYS: a partition's hash, a free name of the same slot. ARGV: ms until the copy goes by itself.
_COPY = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE')
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return redis.call('HLEN', KEYS[2])
"""

# KEYS: a free name. ARGV: ms until the hash goes by itself, its first fields and values.
_ASIDE = """
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""

# KEYS: a partition's hash, the one to put in its place (same slot).
# ARGV: owner, fields that the new one must have, floor ("" = the larger of both), "1" = nor below
# the replaced watermark, "1" = outputs begin anew, least number of resets.
# Offsets are exact as Lua numbers up to 2^53, but must not be written as 1e+15.
_INSTALL = """
local found = redis.call('HLEN', KEYS[2])
if found ~= tonumber(ARGV[2]) then return {'fields', found} end
local fields = {'#W', '#E', '#F', '#C', '#R'}
local old = redis.call('HMGET', KEYS[1], unpack(fields))
local new = redis.call('HMGET', KEYS[2], unpack(fields))
local function number(value) return tonumber(value or '') or 0 end
local function text(value) return string.format('%.0f', value) end
local floor = math.max(number(old[3]), number(new[3]))
if ARGV[4] == '1' then floor = math.max(floor, number(old[1])) end
if ARGV[3] ~= '' then floor = tonumber(ARGV[3]) end
local resets = math.max(number(old[5]), number(new[5]), tonumber(ARGV[6]))
local committed = ''
for _, one in ipairs({old, new}) do
  if number(one[5]) == resets and (one[4] or '') ~= '' and number(one[4]) >= number(committed) then
    committed = one[4]
  end
end
if ARGV[5] == '1' then resets, committed = resets + 1, '' end
redis.call('HSET', KEYS[2], '#O', ARGV[1], '#E', text(math.max(number(old[2]), number(new[2])) + 1),
           '#F', text(floor), '#R', text(resets), '#C', committed)
redis.call('PERSIST', KEYS[2])
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
return {'ok', found}
"""

# ARGV: owner, layout, bundle that it must hold, bundle that it shall hold, least number of resets.
_ADOPT = """
local held = redis.call('HMGET', KEYS[1], '#V', '#M', '#R')
if held[1] ~= ARGV[2] or held[2] ~= ARGV[3] then return 0 end
local resets = math.max(tonumber(held[3]) or 0, tonumber(ARGV[5]))
redis.call('HINCRBY', KEYS[1], '#E', 1)
redis.call('HSET', KEYS[1], '#O', ARGV[1], '#M', ARGV[4], '#L', '', '#C', '', '#R', resets)
return 1
"""


@dataclass(frozen=True, slots=True)
class Hash:
    """A partition's hash, without its states."""

    meta: Mapping[str, str]  # "#W" -> text; only what is there
    fields: int  # of the hash, meta and states

    @property
    def watermark(self) -> int | None:
        """Return W, None when it is no number."""
        text = self.meta.get("#W", "")
        return int(text) if text.isdigit() else None

    @property
    def states(self) -> int:
        """Return how many key states there are."""
        return self.fields - len(self.meta)

    @property
    def counted(self) -> int:
        """Return what #K has to say: the key states, and #I where there is one."""
        return self.states + (INHERITED in self.meta)

    @property
    def inherited(self) -> str:
        """Return which bundles folded what is below which offset, "" where none did."""
        return self.meta.get(INHERITED, "")


@dataclass(frozen=True, slots=True)
class Emission:
    """What becomes of the outputs when a partition's state is replaced."""

    floor: int | None = None  # exactly this emit floor; None: the larger of both states'
    not_again: bool = False  # nor below the replaced watermark
    anew: bool = False  # exactly-once: what is out already does not count
    resets: int = 0  # at least so many resets of the outputs, known from elsewhere


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a partition at one instant, while it exists in Redis."""

    held: Hash  # meta and number of fields
    entries: Iterator[tuple[bytes, bytes]]  # (key, stored state), each key once


def new_meta(begin: int, bundle: str) -> dict[str, str]:
    """Return the meta fields of a partition that begins at an offset, without any state."""
    at = str(begin)
    return {
        "#W": at, "#B": at, "#E": "0", "#O": OWNER, "#M": bundle, "#L": "", "#V": LAYOUT,
        "#K": "0", "#S": "", "#F": "0", "#G": "", "#C": "", "#R": "0",
    }  # fmt: skip


class Admin:
    """The states of one consumer group, for an operator. Not to be shared between threads."""

    def __init__(self, redis: Any, group: str) -> None:
        self.redis, self.group = redis, group

    @classmethod
    def connect(cls, redis: Access | str, timeout_s: float, group: str) -> Admin:
        """Prepare to talk to Redis; a connection opens on first use."""
        return cls(connect_sync(redis, timeout_s), group)

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.close()

    def name(self, topic: str, partition: int) -> str:
        """Return the name of a partition's hash."""
        return partition_name(self.group, topic, partition)

    # -- a topic -----------------------------------------------------------------------------------

    def topic(self, topic: str) -> Topic | None:
        """Return what the group's states were folded under, None: nothing was noted."""
        count, identity = self.redis.hmget(topic_name(self.group, topic), ["#N", "#T"])
        return None if count is None else Topic(int(count), (identity or b"").decode())

    def set_topic(self, topic: str, now: Topic) -> None:
        """Take the topic as it is now for the one that the states were folded under."""
        name = topic_name(self.group, topic)
        self.redis.hset(name, "#N", str(now.partitions))
        if now.identity:
            self.redis.hset(name, "#T", now.identity)
        else:
            self.redis.hdel(name, "#T")  # the next ACQUIRE that is told one notes it

    def forget_topic(self, topic: str) -> None:
        """Let the next ACQUIRE note what the topic is."""
        self.redis.delete(topic_name(self.group, topic))

    # -- looking -----------------------------------------------------------------------------------

    def look(self, topic: str, partition: int) -> Hash | None:
        """Return a partition's meta fields of one instant, None when it has no hash."""
        return self._look(self.name(topic, partition))

    def _look(self, name: str) -> Hash | None:
        names = (*META, INHERITED)
        fields, values = self.redis.eval(_LOOK, 1, name, *names)
        found = {f: v.decode() for f, v in zip(names, values, strict=True) if v is not None}
        return Hash(found, fields) if fields else None

    def state(self, topic: str, partition: int, key: bytes) -> tuple[int | None, bytes | None]:
        """Return a partition's watermark and a key's stored state, both of one instant."""
        fields = ["#W", STATE_PREFIX + key]
        watermark, value = self.redis.hmget(self.name(topic, partition), fields)
        return None if watermark is None else int(watermark), value

    def sample(self, topic: str, partition: int) -> list[tuple[bytes, bytes]]:
        """Return some of a partition's keys with their stored states."""
        _, found = self.redis.hscan(self.name(topic, partition), 0, count=SCAN)
        return [(f[1:], value) for f, value in found.items() if f.startswith(STATE_PREFIX)]

    # -- copying and replacing ---------------------------------------------------------------------

    @contextmanager
    def copy(self, topic: str, partition: int) -> Iterator[Copy | None]:
        """Copy a partition inside Redis at one instant, to be read at leisure; None: no hash."""
        aside = self.aside(topic, partition, "snapshot")
        try:
            made = self.redis.eval(_COPY, 2, self.name(topic, partition), aside, ASIDE_MS)
            held = None if made is None else self._look(aside)
            yield None if held is None else Copy(held, self._entries(aside))
        finally:
            self.redis.unlink(aside)

    def _entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        seen: set[bytes] = set()  # HSCAN may return a field twice while Redis rehashes
        cursor = 0
        while True:
            cursor, found = self.redis.hscan(name, cursor, count=SCAN)
            for field, value in found.items():
                if field.startswith(STATE_PREFIX) and field not in seen:
                    seen.add(field)
                    yield field[len(STATE_PREFIX) :], value
            if not cursor:
                return

    def install(
        self,
        topic: str,
        partition: int,
        meta: Mapping[str, str],
        emission: Emission,
        entries: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Put a state in the place of a partition's: all of it at one instant, or nothing.

        Fence number, emit floor and the output fields follow from both states and `emission`.
        """
        name, aside = self.name(topic, partition), self.aside(topic, partition, "restore")
        try:
            count = self.fill(aside, meta, entries)
            floor = "" if emission.floor is None else emission.floor
            status, found = self.redis.eval(
                _INSTALL, 2, name, aside, OWNER, count, floor,
                int(emission.not_again), int(emission.anew), emission.resets,
            )  # fmt: skip
            check_fields(aside, status, (count, found))
        finally:
            self.redis.unlink(aside)

    def fill(
        self, aside: str, meta: Mapping[str, str], entries: Iterable[tuple[bytes, bytes]]
    ) -> int:
        """Write a hash beside a partition's; return how many fields it must have."""
        flat = [part for field in meta.items() for part in field]
        self.redis.eval(_ASIDE, 1, aside, ASIDE_MS, *flat)
        count = len(meta)
        for piece in _pieces(entries):
            self.redis.hset(aside, mapping={STATE_PREFIX + key: value for key, value in piece})
            count += len(piece)
        return count

    def adopt(self, topic: str, place: int, before: str, bundle: str, resets: int) -> bool:
        """Take a partition's states over from bundle `before`; False: they changed meanwhile.

        `resets` is how often the outputs began anew as the group offset tells: Redis may have
        forgotten a reset.
        """
        arguments = (OWNER, LAYOUT, before, bundle, resets)
        return bool(self.redis.eval(_ADOPT, 1, self.name(topic, place), *arguments))

    def aside(self, topic: str, partition: int, purpose: str) -> str:
        """Return a free name for a hash that is to be put in a partition's place."""
        # The hash tag keeps it in the partition's slot; the rest keeps two operators apart.
        return f"{self.name(topic, partition)}:{purpose}:{uuid.uuid4().hex}"


def check_fields(aside: str, status: bytes, fields: tuple[int, int]) -> None:
    """Refuse a hash that did not hold what was written, (expected, found) fields. Raises Crash."""
    if status != b"ok":
        raise Crash(
            f"{aside}: expected {fields[0]} fields, got {fields[1]}; a lost reply looks like this "
            "too: see with keyfold-state list before asking again"
        )


def _pieces(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    piece: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in entries:
        piece.append((key, value))
        size += len(key) + len(value)
        if len(piece) == PIECE_FIELDS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
