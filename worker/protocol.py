"""PURE: the values that pass between a partition's decisions, Redis and the log.

Owns what the state protocol's nouns are (fence, fingerprint, group offset, replies, save plan); the
decisions about them are in worker/partition.py and worker/phases.py. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from struct import pack
from typing import Literal, Protocol
from zlib import crc32

# Metadata of the group offset committed before a partition's first save: nothing was folded yet
# beyond what a replay from that very offset folds again, so starting there anew is no loss.
INIT_METADATA = "keyfold:init"
_FLOOR = ":f"  # behind it, where there is one: the emit floor that was decided with it


class Phase(Enum):
    """Where a partition is in the protocol."""

    UNASSIGNED = "unassigned"
    ACQUIRE = "acquire"  # reading Kafka's and Redis's word, taking the fence
    SEEK = "seek"  # waiting for the position, then for the record at the fingerprint
    RUN = "run"
    REWIND = "rewind"  # Redis lost writes: drop everything in memory and acquire again
    DRAIN = "drain"
    HALT = "halt"


class Record(Protocol):
    """What the protocol needs of a Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells one record of a log from another one at the same offset of another log."""

    offset: int  # of the last applied record
    timestamp_ms: int  # the record's own
    crc: int  # of key and value, each with its length before it (-1: null)

    @classmethod
    def of(cls, record: Record) -> Fingerprint:
        """Take a record's fingerprint."""
        crc = 0
        for part in (record.key, record.value):
            crc = crc32(part or b"", crc32(pack("<i", -1 if part is None else len(part)), crc))
        return cls(record.offset, record.timestamp, crc)

    def __str__(self) -> str:
        return f"{self.offset}:{self.timestamp_ms}:{self.crc}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """Read back str(); the empty text means that nothing was applied yet."""
        return cls(*map(int, text.split(":"))) if text else None


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of ownership that every save must match."""

    number: int  # increased by each ACQUIRE
    nonce: str  # this worker's
    bundle: str  # bundle id


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """C: what the consumer group has committed; with exactly-once outputs: by transactions."""

    offset: int  # next offset
    metadata: str  # INIT_METADATA before the first save; outputs_metadata() in a transaction


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a new group's fold of a partition begins, decided once."""

    offset: int  # of the first event to fold
    floor: int = 0  # outputs about offsets below it are not emitted

    def noted(self) -> GroupOffset:
        """Return the group offset that remembers it in Kafka."""
        floor = f"{_FLOOR}{self.floor}" if self.floor else ""
        return GroupOffset(self.offset, INIT_METADATA + floor)

    @classmethod
    def read(cls, at: GroupOffset) -> Beginning | None:
        """Read noted() back; None: something was saved since."""
        if at.metadata == INIT_METADATA:
            return cls(at.offset)
        floor = at.metadata.removeprefix(INIT_METADATA + _FLOOR)
        if floor == at.metadata or not floor.isdigit():
            return None
        return cls(at.offset, int(floor))


_OUTPUTS = "keyfold:r"


def outputs_metadata(resets: int) -> str:
    """Return the metadata of group offsets set by transactions since a partition's last reset."""
    return f"{_OUTPUTS}{resets}"


def resets_of(metadata: str) -> int | None:
    """Read outputs_metadata() back; None: no transaction set that group offset."""
    number = metadata.removeprefix(_OUTPUTS)
    return int(number) if metadata.startswith(_OUTPUTS) and number.isdigit() else None


@dataclass(frozen=True, slots=True)
class Topic:
    """What tells a topic from another one of the same name."""

    partitions: int  # how many
    identity: str  # Kafka's topic id, "" where the broker tells none


@dataclass(frozen=True, slots=True)
class Acquired:
    """Redis's word after the fence was taken."""

    fence: Fence  # now mine
    watermark: int  # W
    fingerprint: Fingerprint | None  # of the last applied record; None: none was
    stream_ms: int | None = None  # stream time at W; None: no event yet
    floor: int = 0  # outputs about offsets below it are not emitted
    lost: tuple[tuple[int, int], ...] = ()  # ranges [from, to) that retention took unseen
    committed: int | None = None  # group offset known to be set by a transaction; None: none
    resets: int = 0  # times the outputs began anew

    @property
    def lost_upto(self) -> int:
        """Return the end of the last lost range, 0 when nothing was lost."""
        return self.lost[-1][1] if self.lost else 0


@dataclass(frozen=True, slots=True)
class Refused:
    """Redis holds a state that this worker must not use, or none where there should be one."""

    # which check failed
    what: Literal["missing", "partitions", "topic", "bundle", "layout", "states"]
    expected: str  # by this worker
    got: str  # in Redis
    watermark: int = 0  # of the refused state, where there is one
    base: int = 0  # where its fold began


@dataclass(frozen=True, slots=True)
class SavePlan:
    """One compare-and-set to send once every output below w1 is acked."""

    w0: int  # the watermark it expects
    w1: int  # the watermark it sets
    fingerprint: Fingerprint | None  # of the last applied record below w1
    stream_ms: int | None = None  # stream time at w1


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis says of a partition's watermark and owner at one instant."""

    watermark: int | None  # None: the partition's hash is gone
    number: int  # fence number
    nonce: str  # owner
    bundle: str  # bundle id
    keys: int = 0  # key states that should be there
    found: int = 0  # key states that are there
