"""PURE: puts the records of several partitions in the order of their timestamps, as far as known.

Owns which record comes next. Records of one partition keep their order. A key whose events lie in
several partitions has no order in Kafka: that of the timestamps is the nearest to it. It waits for
a partition that has more records than have come, and for none that stands at its end. No I/O.
Called by cli.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Stamped(Protocol):
    """What is needed of a record."""

    def timestamp(self) -> tuple[int, int]:
        """Return the timestamp's kind and value in ms."""


R = TypeVar("R", bound=Stamped)


class Merge(Generic[R]):
    """The waiting records of the partitions that this program was given."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[R]] = {}
        self._at_end: set[int] = set()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def assign(self, partitions: Sequence[int]) -> None:
        """Begin anew with these partitions."""
        self._waiting = {number: deque() for number in partitions}
        self._at_end.clear()

    def add(self, partition: int, record: R) -> None:
        """Note a record; one of a partition that is not ours any more is dropped."""
        if partition in self._waiting:
            self._waiting[partition].append(record)
            self._at_end.discard(partition)

    def end(self, partition: int) -> None:
        """Note that a partition has no more records for now."""
        self._at_end.add(partition)

    def done(self) -> bool:
        """Return whether every partition stands at its end and nothing waits."""
        return not len(self) and all(number in self._at_end for number in self._waiting)

    def full(self, most: int) -> list[int]:
        """Return the partitions with at least `most` records waiting."""
        return [number for number, records in self._waiting.items() if len(records) >= most]

    def take(self, most: int) -> list[tuple[int, R]]:
        """Take up to `most` records, each with its partition, the earliest first."""
        taken: list[tuple[int, R]] = []
        if any(not rs and n not in self._at_end for n, rs in self._waiting.items()):
            return taken
        heads = [(rs[0].timestamp()[1], n) for n, rs in self._waiting.items() if rs]
        heapify(heads)
        while heads and len(taken) < most:
            _, number = heappop(heads)
            records = self._waiting[number]
            taken.append((number, records.popleft()))
            if records:
                heappush(heads, (records[0].timestamp()[1], number))
            elif number not in self._at_end:
                break
        return taken
