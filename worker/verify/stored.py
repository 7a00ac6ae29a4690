"""Reads what Redis holds for a partition.

Owns an own reading of layout 2, on purpose apart from worker/store.py, which wrote it: one hash
`{group:topic:partition}` with the meta fields below and, per key, `:` + key -> state. It reads
nothing but whole hashes and writes nothing; stored_states.py compares. Called by
verification.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.exceptions import RedisError

from keyfold.export.bundle import Bundle
from keyfold.worker.errors import Crash
from keyfold.worker.redis.client import Access, connect_sync
from keyfold.worker.redis.refusals import explain
from keyfold.worker.verify.lost import Lost

LAYOUT = "2"
META = frozenset(f"#{letter}" for letter in "WBEOMLVKSFGCR")
INHERITED = "#I"  # only beside inherited states, and counted in #K: formers.py
# Up to here a whole hash is read in one command (100,000 states of 512 B hold Redis for 0.1 s).
AT_ONCE = 100_000
TRIES = 3
TIMEOUT_S = 60.0  # of one command: a large hash takes its time


@dataclass(frozen=True, slots=True)
class Stored:
    """One partition's hash, all of it at one watermark."""

    name: str  # of the hash
    meta: Mapping[str, str]  # "#W" -> text
    states: Mapping[bytes, bytes]  # key -> stored state
    fields: int  # in the hash, of any kind

    def number(self, field: str) -> int:
        """Return a meta field that holds a number. Raises Crash when it does not."""
        text = self.meta.get(field, "")
        try:
            return int(text)
        except ValueError:
            raise Crash(f"{self.name} {field}: expected a number, got {text!r}") from None

    def number_or(self, field: str, none: int) -> int:
        """Return a meta field that may be empty or missing. Raises Crash when it is no number."""
        return self.number(field) if self.meta.get(field) else none

    @property
    def stream_ms(self) -> int | None:
        """The stream time; None: it is empty, missing or no number (which the check will say)."""
        try:
            return int(self.meta.get("#S", ""))
        except ValueError:
            return None

    @property
    def formers(self) -> tuple[tuple[str, int], ...]:
        """Which bundles folded what is below which offset, where states were inherited.

        Raises Crash when that cannot be read.
        """
        text = self.meta.get(INHERITED, "")
        try:
            return folded_below(text)
        except ValueError:
            raise Crash(f"{self.name} {INHERITED}: expected BUNDLE@OFFSET, got {text!r}") from None

    @property
    def lost(self) -> Lost:
        """The ranges that were given up as lost. Raises Crash when they cannot be read."""
        try:
            return Lost.parse(self.meta.get("#G", ""))
        except ValueError as error:
            raise Crash(f"{self.name} #G: {error}") from None


def folded_below(text: str) -> tuple[tuple[str, int], ...]:
    """Read #I: which bundles folded what is below which offset, in order. Raises ValueError."""
    pairs = (part.partition("@") for part in text.split(",") if part)
    return tuple((bundle, int(upto)) for bundle, _, upto in pairs)


class StoredGroup:
    """The states of one consumer group. Safe to use beside running workers."""

    def __init__(self, redis: Access | str, group: str) -> None:
        self._group = group
        self._access = Access.of(redis)
        try:
            self._redis = connect_sync(self._access, TIMEOUT_S)
            self._redis.ping()
        except RedisError as error:
            raise Crash(explain(error, self._access)) from error

    @property
    def redis(self) -> Any:
        """The client, for what lies beside the group's states."""
        return self._redis

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def knows(self, topic: str, partitions: int) -> bool:
        """Say whether there is a hash for any partition of a topic."""
        try:
            # One command each: in a cluster they may live on different nodes.
            names = (self._name(topic, partition) for partition in range(partitions))
            return any(self._redis.exists(name) for name in names)
        except RedisError as error:
            raise Crash(explain(error, self._access)) from error

    def inherited(self, topic: str, partitions: int) -> set[str]:
        """Return the bundles that folded some of any partition's states before their present one.

        Raises Crash when #I cannot be read.
        """
        found = set()
        for number in range(partitions):
            name = self._name(topic, number)
            try:
                text = cast("bytes | None", self._redis.hget(name, INHERITED)) or b""
            except RedisError as error:
                raise Crash(f"{name}: {explain(error, self._access)}") from error
            found |= {one for one, _ in Stored(name, {INHERITED: text.decode()}, {}, 0).formers}
        return found

    def read(self, topic: str, partition: int) -> Stored | None:
        """Return a partition's states and watermark of one instant; None: there is no such hash.

        Raises Crash when the hash is too large to be read at once and keeps changing.
        """
        name = self._name(topic, partition)
        try:
            fields = self._fields(name)
        except RedisError as error:
            raise Crash(f"{name}: {explain(error, self._access)}") from error
        if not fields:
            return None
        meta = {f.decode(): v.decode() for f, v in fields.items() if f.startswith(b"#")}
        states = {f[1:]: v for f, v in fields.items() if f.startswith(b":")}
        return Stored(name, meta, states, len(fields))

    def _name(self, topic: str, partition: int) -> str:
        return f"{{{self._group}:{topic}:{partition}}}"

    def _fields(self, name: str) -> dict[bytes, bytes]:
        redis = cast(Any, self._redis)
        if redis.hlen(name) <= AT_ONCE:
            return cast("dict[bytes, bytes]", redis.hgetall(name))
        for _ in range(TRIES):
            # The collector changes the number of keys, but not the watermark.
            before = redis.hmget(name, "#W", "#K", "#E")
            fields = dict(redis.hscan_iter(name, count=1000))
            scanned = [fields.get(field) for field in (b"#W", b"#K", b"#E")]
            if redis.hmget(name, "#W", "#K", "#E") == before == scanned:
                return fields
        raise Crash(f"{name}: a worker saves faster than its states can be read; stop it first")


def check_bundle(stored: Stored, bundle: Bundle, owner: str = "") -> None:
    """Refuse states of another layout or bundle: there is nothing to compare them with.

    `owner` is whose states they have to be where that is not the bundle alone.
    """
    for field, what, expected in (("#V", "layout", LAYOUT), ("#M", "bundle", owner or bundle.id)):
        got = stored.meta.get(field)
        if got != expected:
            more = " (behind the +: other [emit] settings)" * ("+" in f"{expected}{got}")
            raise Crash(f"{stored.name} {field}: expected {what} {expected}, got {got}{more}")
