"""PURE: in which partition a key belongs, by the partitioners that producers use.

Owns Java's murmur2 and librdkafka's CRC32 as they choose partitions, and what a sample of keys says
about the producers of a topic. A key in two partitions has two histories. No I/O. Called by
records.py; worker/repartition/cli.py's producer uses librdkafka's own murmur2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from aiokafka.partitioner import murmur2

MURMUR2 = "murmur2 (Java clients, keyfold-send, librdkafka's murmur2_random)"
CRC32 = "CRC32 (librdkafka's default, consistent_random)"


def java_partition(key: bytes, partitions: int) -> int:
    """Return where Java clients put a key: org.apache.kafka.clients.producer's partitioner."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def librdkafka_partition(key: bytes, partitions: int) -> int:
    """Return where librdkafka puts a key unless its `partitioner` is set."""
    return crc32(key) % partitions


PARTITIONERS: Mapping[str, Callable[[bytes, int], int]] = {
    MURMUR2: java_partition,
    CRC32: librdkafka_partition,
}


@dataclass(frozen=True, slots=True)
class Keys:
    """What a sample of keys says."""

    records: int  # looked at
    null: int  # of these without a key
    keys: int  # different ones
    split: Mapping[bytes, Sequence[int]]  # keys seen in several partitions, and in which
    fits: Mapping[str, int]  # partitioner -> keys that are where it puts them
    neither: int  # keys that no partitioner above puts where they are


def survey_keys(seen: Mapping[int, Iterable[bytes | None]], partitions: int) -> Keys:
    """Judge the keys of records by partition; `partitions` is how many the topic has."""
    where: dict[bytes, set[int]] = {}
    records = null = 0
    for number, keys in seen.items():
        for key in keys:
            records += 1
            if key is None:
                null += 1
            else:
                where.setdefault(key, set()).add(number)
    fits = dict.fromkeys(PARTITIONERS, 0)
    neither = 0
    for key, places in where.items():
        fitting = [name for name, of in PARTITIONERS.items() if places == {of(key, partitions)}]
        for name in fitting:
            fits[name] += 1
        neither += not fitting
    split = {key: sorted(places) for key, places in where.items() if len(places) > 1}
    return Keys(records, null, len(where), split, fits, neither)
