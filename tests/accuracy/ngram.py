"""A model of n symbols at a time, to be beaten: what needs no network to say how likely a text is.

Owns the counts and the smoothing, interpolated Witten-Bell (Witten and Bell 1991, method C): each
order's counts give way to the order below by how many symbols it has seen behind a history. Pure.
Called by the tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Symbol = TypeVar("Symbol", str, int)


class Ngram(Generic[Symbol]):
    """How likely a symbol is behind those before it."""

    def __init__(self, order: int, size: int) -> None:
        """`order`: symbols looked at, the judged one included; `size`: how many there are."""
        self._order, self._size = order, size
        self._counts: Counter[tuple[Symbol, ...]] = Counter()
        self._totals: Counter[tuple[Symbol, ...]] = Counter()  # by history
        self._kinds: Counter[tuple[Symbol, ...]] = Counter()  # different symbols behind it

    def learn(self, sequences: Iterable[Sequence[Symbol]]) -> None:
        """Count what is in sequences."""
        for symbols in sequences:
            for place in range(len(symbols)):
                for length in range(min(self._order, place + 1)):
                    self._counts[tuple(symbols[place - length : place + 1])] += 1
        for gram, count in self._counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1

    def surprises(self, symbols: Sequence[Symbol]) -> list[float]:
        """Return the negative logarithm of each symbol's probability, in nats."""
        return [
            -math.log(
                self._probability(tuple(symbols[max(0, place - self._order + 1) : place + 1]))
            )
            for place in range(len(symbols))
        ]

    def _probability(self, gram: tuple[Symbol, ...]) -> float:
        found = 1.0 / self._size
        for start in range(len(gram) - 1, -1, -1):
            history = gram[start:-1]
            if (total := self._totals[history]) == 0:
                break
            kinds = self._kinds[history]
            found = (self._counts[gram[start:]] + kinds * found) / (total + kinds)
        return found
