"""Redis: what is written where a fine-tuned bundle goes on with its parent's states.

Owns the two scripts, and what then stands in a partition's #I; whether it may be done, and what is
said of it, is adopt.py's and inherit.py's. The states themselves stay byte for byte what the
parent's worker saved.
"""

from __future__ import annotations

from collections.abc import Iterable

from keyfold.worker.state.store_admin import INHERITED, OWNER, Admin, Hash, check_fields
from keyfold.worker.store import LAYOUT

# ARGV: owner, layout, bundle and watermark that it must hold, bundle that it shall hold, #I.
# The last applied record stays known: it is the same log.
_GO_ON = """
local held = redis.call('HMGET', KEYS[1], '#V', '#M', '#W', '#I')
if held[1] ~= ARGV[2] or held[2] ~= ARGV[3] or held[3] ~= ARGV[4] then return 0 end
redis.call('HINCRBY', KEYS[1], '#E', 1)
if not held[4] then redis.call('HINCRBY', KEYS[1], '#K', 1) end
redis.call('HSET', KEYS[1], '#O', ARGV[1], '#M', ARGV[5], '#I', ARGV[6])
return 1
"""

# KEYS: a partition's hash, the one to be it (same slot). ARGV: fields that the new one must have.
_BEGIN = """
local found = redis.call('HLEN', KEYS[2])
if found ~= tonumber(ARGV[1]) then return {'fields', found} end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'there', found} end
redis.call('PERSIST', KEYS[2])
redis.call('RENAME', KEYS[2], KEYS[1])
return {'ok', found}
"""


def folded_by(held: Hash) -> str:
    """Return what #I says to whoever goes on with these states: who folded what is below where."""
    at = f"{held.meta['#M'].partition('+')[0]}@{held.meta['#W']}"
    return f"{held.inherited},{at}" if held.inherited else at


def go_on(admin: Admin, topic: str, partition: int, held: Hash, bundle: str) -> bool:
    """Give a group's states to another bundle, where they are; False: they changed since `held`.

    Like every operator's command it takes the fence: a present owner stops.
    """
    arguments = (OWNER, LAYOUT, held.meta["#M"], held.meta["#W"], bundle, folded_by(held))
    return bool(admin.redis.eval(_GO_ON, 1, admin.name(topic, partition), *arguments))


def begin(
    admin: Admin,
    place: tuple[str, int],
    held: Hash,
    entries: Iterable[tuple[bytes, bytes]],
    begins: tuple[str, int],
) -> bool:
    """Begin a partition of a new group with another group's states, copied at one instant.

    `place` is topic and partition, `begins` the new bundle and its emit floor. All of it is there
    at one instant, or nothing; False: the group has a state already. Of the outputs nothing is
    carried over: the other group's transactions and resets are its own.
    """
    topic, partition = place
    bundle, floor = begins
    meta = {
        **held.meta, "#E": "1", "#O": OWNER, "#M": bundle, "#F": str(floor), "#C": "", "#R": "0",
        INHERITED: folded_by(held), "#K": str(held.states + 1),
    }  # fmt: skip
    name, aside = admin.name(topic, partition), admin.aside(topic, partition, "inherit")
    try:
        count = admin.fill(aside, meta, entries)
        status, found = admin.redis.eval(_BEGIN, 2, name, aside, count)
        if status == b"there":
            return False
        check_fields(aside, status, (count, found))
        return True
    finally:
        admin.redis.unlink(aside)
