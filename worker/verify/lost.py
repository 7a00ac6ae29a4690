"""Offsets that a partition's log has lost, as the oracle reads them from Redis (#G).

Owns the text form "from-to,from-to" ("to" exclusive) and what follows from a range for the keys of
the partition: whether a prediction's history may miss events. Pure. Called by refold.py,
compare.py and verification.py; shares nothing with the worker's own reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

Range = tuple[int, int]  # first offset, end (exclusive)


class Gap(IntEnum):
    """Whether a prediction must say that its key's history may miss lost events."""

    NEVER = 0  # nothing was lost before the event, or the key was seen to start anew since
    ALWAYS = 1  # the last loss may have taken events of the key
    MAYBE = 2  # the rules leave it open (steps that were not finite, parts of the log gone)


@dataclass(frozen=True, slots=True)
class Lost:
    """Ranges of lost offsets, in order, apart from each other."""

    ranges: tuple[Range, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Lost:
        """Read the text form. Raises ValueError."""
        ranges: list[Range] = []
        for part in text.split(",") if text else ():
            start, dash, end = part.partition("-")
            if not (dash and start.isdecimal() and end.isdecimal()):
                raise ValueError(f"expected FROM-TO, got {part!r}")
            ranges.append((int(start), int(end)))
            if int(start) >= int(end) or (len(ranges) > 1 and int(start) < ranges[-2][1]):
                raise ValueError(f"expected ranges that increase, got {text!r}")
        return cls(tuple(ranges))

    @property
    def end(self) -> int:
        """The end of the last range; -1: nothing was lost."""
        return self.ranges[-1][1] if self.ranges else -1

    def holds(self, offset: int) -> bool:
        """Say whether an offset is lost."""
        return any(start <= offset < end for start, end in self.ranges)

    def following(self, offset: int) -> int:
        """Return the end of the range that holds an offset."""
        return next(end for start, end in self.ranges if start <= offset < end)

    def before(self, offset: int) -> int:
        """Return the end of the last range that lies before an offset; -1: there is none."""
        return max((end for _, end in self.ranges if end <= offset), default=-1)


def covered(start: int, end: int, ranges: Iterable[Range]) -> bool:
    """Say whether ranges in any order cover all of [start, end)."""
    for first, behind in sorted(ranges):
        if first > start:
            break
        start = max(start, behind)
    return start >= end
