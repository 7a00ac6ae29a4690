"""Which of a log's events train, which choose, which only report; never mixed.

Owns the split, by key (a key is in one part only), or by time or order (a key's earlier events
train, its later ones are predicted after folding the earlier ones, and only they count). Pure:
sequences in, parts out, randomness from a seed. Called by the commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from keyfold.training.config import Split
from keyfold.training.data import DataError, Sequence
from keyfold.training.sources import parse_time


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences, and from where on each one counts."""

    sequences: tuple[Sequence, ...]  # from the key's first event on, so that states are right
    counts_from: tuple[int, ...]  # per sequence: events before it are folded but not judged
    origins: tuple[int, ...] = ()  # per sequence: which one of the log it is, or is the head of

    @property
    def events(self) -> int:
        """How many events count."""
        pairs = zip(self.sequences, self.counts_from, strict=True)
        return sum(sequence.events - sequence.events_before(start) for sequence, start in pairs)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, sorted."""
        return tuple(sorted({sequence.key for sequence in self.sequences}))


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts of a log."""

    train: Part  # weights and scaling are learned here
    validation: Part  # stopping and choices are made here
    test: Part  # reported only; may be empty


def split(sequences: Seq[Sequence], settings: Split) -> Parts:
    """Split a log. Raises DataError when nothing is left to train on or to validate with."""
    if settings.by == "key":
        parts = _by_key(sequences, settings)
    else:
        times = _times(sequences, settings) if settings.by == "time" else None
        found = _by_order(sequences, settings) if times is None else _by_time(sequences, times)
        parts = _by_bounds(sequences, list(found), times or (None, None))
    for name, part in (("train", parts.train), ("validation", parts.validation)):
        if not part.events:
            raise DataError(f"split: expected events to {name} with, got none")
    return parts


def whole(sequences: Seq[Sequence]) -> Part:
    """Return a part in which every event counts."""
    return Part(tuple(sequences), (0,) * len(sequences), tuple(range(len(sequences))))


def _by_key(sequences: Seq[Sequence], settings: Split) -> Parts:
    keys = sorted({sequence.key for sequence in sequences})
    validation = _matching(keys, settings.validation_keys, "validation_keys")
    test = _matching(keys, settings.test_keys, "test_keys")
    if both := sorted(validation & test):
        raise DataError(f"split: {both[0]!r} is in validation_keys and in test_keys")
    rest = np.array([key for key in keys if key not in validation | test])
    drawn = np.random.default_rng(settings.seed).permutation(rest).tolist()
    for_validation = round(settings.validation_share * len(drawn))
    for_test = round(settings.test_share * len(drawn))
    validation |= set(drawn[:for_validation])
    test |= set(drawn[for_validation : for_validation + for_test])
    return Parts(
        _chosen(sequences, lambda key: key not in validation | test),
        _chosen(sequences, lambda key: key in validation),
        _chosen(sequences, lambda key: key in test),
    )


def _chosen(sequences: Seq[Sequence], is_in: Callable[[str], bool]) -> Part:
    origins = tuple(number for number, s in enumerate(sequences) if is_in(s.key))
    return Part(tuple(sequences[number] for number in origins), (0,) * len(origins), origins)


def _matching(keys: Seq[str], patterns: Seq[str], name: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matches = {key for key in keys if fnmatchcase(key, pattern)}
        if not matches:
            raise DataError(f"split.{name}: expected a key like {pattern!r}, got none in the log")
        found |= matches
    return found


def _times(sequences: Seq[Sequence], settings: Split) -> tuple[int, int | None]:
    if settings.validation_share:
        every = np.concatenate([sequence.event_times_ms for sequence in sequences])
        kept = 1.0 - settings.test_share
        levels = (kept - settings.validation_share, kept)
        # A time that some event has: all events of that time are on one side.
        start, end = np.quantile(every, levels, method="higher").tolist()
        return int(start), int(end) if settings.test_share else None
    first = parse_time(settings.validation_from)
    second = parse_time(settings.test_from) if settings.test_from else None
    if second is not None and second <= first:
        raise DataError("split.test_from: expected a time later than split.validation_from")
    return first, second


def _by_order(sequences: Seq[Sequence], settings: Split) -> Iterator[tuple[int, int]]:
    """Yield where each sequence's validation and its test begin, by a key's count of events."""
    counts: Counter[str] = Counter()
    for sequence in sequences:
        counts[sequence.key] += sequence.events
    seen: Counter[str] = Counter()  # a key that started anew has several sequences
    kept = 1.0 - settings.test_share
    for sequence in sequences:
        count, before, most = counts[sequence.key], seen[sequence.key], sequence.events
        first, second = round(count * (kept - settings.validation_share)), round(count * kept)
        bounds = [min(max(bound - before, 0), most) for bound in (first, second)]
        yield sequence.row(bounds[0]), sequence.row(bounds[1])
        seen[sequence.key] += most


def _by_time(sequences: Seq[Sequence], times: tuple[int, int | None]) -> Iterator[tuple[int, int]]:
    """Yield where each sequence's validation and its test begin."""
    first, second = times
    for sequence in sequences:
        a = _first_at(sequence, first)
        yield a, len(sequence) if second is None else max(a, _first_at(sequence, second))


def _by_bounds(
    sequences: Seq[Sequence], bounds: Seq[tuple[int, int]], cuts: tuple[int | None, int | None]
) -> Parts:
    """Cut sequences into parts. `cuts`: when training and validation end; None: as events do."""
    parts: list[list[tuple[Sequence, int, int]]] = [[], [], []]
    for number, (sequence, (a, b)) in enumerate(zip(sequences, bounds, strict=True)):
        spans = zip(parts, (0, a, b), (a, b, len(sequence)), (*cuts, None), strict=True)
        for part, start, end, cut_ms in spans:
            if start < end:
                part.append((sequence.head(end, cut_ms), start, number))
    train, validation, test = (
        Part(tuple(s for s, _, _ in part), tuple(a for _, a, _ in part), tuple(n for *_, n in part))
        for part in parts
    )
    return Parts(train, validation, test)


def _first_at(sequence: Sequence, time_ms: int) -> int:
    """Return the place of the first event at or after a time; the order decides, not event time."""
    late = sequence.times_ms >= time_ms
    return int(np.argmax(late)) if late.any() else len(sequence)
