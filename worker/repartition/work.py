"""What becomes of a record that is repartitioned: its new key, or why it has none.

Owns the rule and the counts; it opens no connection. Headers and timestamps stay as they are. Used
by cli.py and session.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from confluent_kafka import Message

from keyfold.export.events import why_no_key
from keyfold.worker.emit import MAX_REQUEST_BYTES, TRUNCATED_BYTES
from keyfold.worker.key_field import KeyReader


class Again(Exception):
    """What was begun cannot be gone on with: begin anew behind the last transaction."""


OVERHEAD_BYTES = 200  # of a record as the only one of a request, beside key, value and headers

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Moved:
    """A record on its way."""

    topic: str  # where to
    key: bytes | None  # the new one; of a reject the one it had
    value: bytes | None  # as it was, unless it was cut to fit the dead-letter topic
    headers: Headers  # as they were; of a reject also why, and where from
    timestamp_ms: int  # the record's own
    key_is_new: bool  # whether it goes where its key belongs; else it is a reject

    @property
    def size(self) -> int:
        """Return about how many bytes it takes."""
        parts = sum(len(name) + len(text or b"") + 10 for name, text in self.headers)
        return OVERHEAD_BYTES + len(self.key or b"") + len(self.value or b"") + parts


@dataclass(slots=True)
class Work:
    """From where to where, by which field; and how many so far."""

    source: str  # topic of records under another key
    target: str  # topic that a worker serves
    dead_letter: str  # topic of what has no key
    group: str  # consumer group that holds the positions
    transactional_id: str  # this program's own
    bundle: str  # bundle id, for rejects' headers
    field: str  # whose text is the key
    reader: KeyReader  # of that field
    limits: Mapping[str, int]  # topic -> its max.message.bytes
    begin: Literal["", "start", "end"] = ""  # where, in partitions without a usable position
    done: int = 0  # records in transactions that ended well
    rejected: int = 0  # of these to the dead-letter topic

    def __str__(self) -> str:
        return (
            f"{self.done - self.rejected:,} records of {self.source} went to {self.target}, "
            f"{self.rejected:,} to {self.dead_letter}"
        )

    @property
    def most_bytes(self) -> int:
        """Return the size of the largest record that can be sent anywhere."""
        return max(self.limits.values())

    @property
    def request_bytes(self) -> int:
        """Return the size of several records together that each of the topics takes."""
        return max(min(*self.limits.values(), MAX_REQUEST_BYTES) - OVERHEAD_BYTES, 1)

    def moved(self, message: Message) -> Moved:
        """Say what becomes of a record."""
        old, value = as_bytes(message.key()), as_bytes(message.value())
        headers_there: Any = message.headers()
        given: Headers = [(name, as_bytes(text)) for name, text in headers_there or ()]
        stamp = message.timestamp()[1]
        key = self.reader.key(value)
        if key is None:
            said = "is null" if value is None else f"has no text or number {self.field!r}"
            why = f"no key: the record's value {said}"
        else:
            one = Moved(self.target, key, value, given, stamp, key_is_new=True)
            limit = self.limits[self.target]
            fits = one.size <= limit
            why = why_no_key(key) or ("" if fits else f"larger than {self.target} takes: {limit}")
            if not why:
                return one
        place = [("topic", message.topic()), ("partition", message.partition()),
                 ("offset", message.offset()), ("bundle", self.bundle)]  # fmt: skip
        told = [(f"keyfold-{name}", str(text).encode()) for name, text in place]
        headers = [("keyfold-reason", why.encode()), *told]
        return self._cut(Moved(self.dead_letter, old, value, headers, stamp, key_is_new=False))

    def count(self, moved: Iterable[Moved]) -> None:
        """Note that a transaction ended well."""
        for one in moved:
            self.done += 1
            self.rejected += not one.key_is_new

    def _cut(self, one: Moved) -> Moved:
        """Cut a reject that would not fit, as worker/emit.py does."""
        limit = self.limits[self.dead_letter]
        if one.size <= limit or not one.value:
            return one
        marked = [*one.headers, ("keyfold-truncated", str(len(one.value)).encode())]
        bare = replace(one, value=b"", headers=marked, key=(one.key or b"")[: limit // 4])
        room = max(limit - bare.size, 0)
        return replace(bare, value=one.value[: min(TRUNCATED_BYTES, room)])


def as_bytes(part: str | bytes | None) -> bytes | None:
    """Return what confluent-kafka types as text or bytes as bytes."""
    return part.encode() if isinstance(part, str) else part
