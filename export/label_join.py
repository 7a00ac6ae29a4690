"""How many of a log's labels found an event, in words: a label that fits nothing is not silent.

Owns the count's three parts and their wording, which training and `keyfold-verify labels` share;
the joins themselves are theirs. Called by training/delayed.py and worker/score/labels.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

SHOWN = 3  # keys named


@dataclass(frozen=True, slots=True)
class LabelJoin:
    """What became of every label."""

    labels: int  # there are
    strange: int  # of keys that no event has
    keys: tuple[str, ...]  # the first of these keys
    idle: int  # of known keys, with no event that they could be of

    @classmethod
    def of(
        cls, times: Iterable[tuple[str, Collection[int]]], used: Mapping[str, set[int]]
    ) -> LabelJoin:
        """Count labels by key and time; `used`: times that joined, of every key with an event."""
        labels = strange = idle = 0
        keys: list[str] = []
        for key, own in times:
            labels += len(own)
            if key not in used:
                strange += len(own)
                keys.append(key)
            else:
                idle += sum(time not in used[key] for time in own)
        return cls(labels, strange, tuple(keys[:SHOWN]) + (("…",) if keys[SHOWN:] else ()), idle)

    def lines(self, within_s: float) -> Iterator[str]:
        """Say it, a line for each part that there is."""
        all_of_them = f"{self.labels:,} labels"
        yield f"{self.labels - self.strange - self.idle:,} of {all_of_them} joined events"
        if self.strange:
            yield f"{self.strange:,} of {all_of_them} belong to no key: {', '.join(self.keys)}"
        if self.idle:
            yield f"{self.idle:,} of {all_of_them} belong to no event within {within_s:g} s before"
