"""A part of the log that cannot be read: its partition stands still there, and no other does.

Owns how a fetch tells of it: the records before it are given away, then one Unreadable, and the
position stays. aiokafka alone would raise, and forget what it had taken from other partitions.
Knows no owners. Used by worker/fetched.py, which makes it, and worker/intake.py, which reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import CorruptRecordException


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in a fetch for all that was to come."""

    offset: int  # up to here the log was read
    why: str  # with topic and partition


class Telling:
    """A reader of one partition's fetch that does not raise where the log is damaged."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._ended = False

    @property
    def next_fetch_offset(self) -> int:
        """Return where the next fetch begins; read by aiokafka."""
        return int(self._reader.next_fetch_offset)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next of what the reader gives, last of all perhaps an Unreadable."""
        if self._ended:
            raise StopIteration
        try:
            return next(self._reader)
        except CorruptRecordException as error:
            self._ended = True
            return Unreadable(self.next_fetch_offset, str(error.args[0]))


def divided(fetched: list[Any]) -> tuple[list[Any], Unreadable | None]:
    """Return what a fetch brought of one partition, and what ended it."""
    last = fetched[-1]
    return (fetched[:-1], last) if isinstance(last, Unreadable) else (fetched, None)
