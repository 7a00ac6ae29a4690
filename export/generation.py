"""Answers symbol by symbol: the settings, the seeded choice of each symbol, the text they spell.

Owns what must be the same wherever an answer is made: which symbol follows from probabilities,
which random numbers an event has, how symbols become a text again. It knows no graph, no loop and
no JSON. Called by worker/generation.py, which runs many answers together, and by outputs.py (the
manifest's form); keyfold-verify chooses by itself (worker/verify/offline_generation.py).

Random numbers: Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")
keyed with the first 16 bytes of SHA-256 over the bundle's and the event's ids. Its n-th raw word,
without its lowest 11 bits and times 2^-53, is the number that chooses the n-th symbol: a replay
chooses the same symbols, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import SpecError
from keyfold.export.text import END, END_NAME, FIRST, UNKNOWN, Text, spelt

MOST_ANSWERED = 512  # symbols of one answer
UNIT = 2.0**-53  # between two neighbouring random numbers


@dataclass(frozen=True, slots=True)
class Generate:
    """How an event is answered by symbols, each chosen by the model's probabilities."""

    most: int  # symbols of an answer, the one that ends it included
    temperature: float = 0.0  # 0: the likeliest symbol; 1: as likely as the model says
    top_k: int = 0  # only so many of the likeliest symbols are chosen from; 0: all
    until: str = END_NAME  # the symbol that ends an answer

    def __post_init__(self) -> None:
        most: object = self.most
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_ANSWERED:
            raise SpecError(f"outputs.generate.most: expected 1 to {MOST_ANSWERED}, got {most!r}")
        if not 0 <= self.temperature <= 100:
            raise SpecError(
                f"outputs.generate.temperature: expected 0 to 100, got {self.temperature}"
            )
        top: object = self.top_k
        if isinstance(top, bool) or not isinstance(top, int) or top < 0:
            raise SpecError(f"outputs.generate.top_k: expected at least 0, got {top!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        data: dict[str, Any] = {"most": self.most}
        for name, default in (("temperature", 0.0), ("top_k", 0), ("until", END_NAME)):
            if getattr(self, name) != default:
                data[name] = getattr(self, name)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Generate:
        """Read the manifest's form. Raises SpecError on what this version does not know."""
        if unknown := sorted(set(data) - {"most", "temperature", "top_k", "until"}):
            raise SpecError(f"outputs.generate: unknown {unknown}")
        return cls(**data)


def numbers_of(bundle_id: str, event: str, count: int) -> NDArray[np.float64]:
    """Return an event's random numbers (count,), from 0 to below 1; `event`: its id without index.

    The first ones are the same whatever `count` is.
    """
    digest = hashlib.sha256(f"keyfold-generate\0{bundle_id}\0{event}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * UNIT


class Chooser:
    """Chooses the next symbol of many answers from their probabilities."""

    def __init__(self, generate: Generate, names: Sequence[str]) -> None:
        self.generate = generate
        self.until = names.index(generate.until)  # number of the symbol that ends an answer

    def choose(
        self, y: NDArray[np.float32], numbers: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return each row's symbol and its probability, of y (B,O) and random numbers (B,).

        Rows do not know of each other. Of equal probabilities the first counts as larger. The
        unknown symbol is never chosen: it spells nothing. A row that is not finite ends its answer,
        with probability 0.
        """
        fine = np.asarray(np.isfinite(y).all(axis=1))
        y = np.where(fine[:, None], y, np.float32(0))
        y[~fine, self.until] = 1
        y[:, UNKNOWN] = 0
        symbols = y.argmax(axis=1) if not self.generate.temperature else self._drawn(y, numbers)
        symbols = np.where(y.max(axis=1) > 0, symbols, self.until)
        probabilities = y[np.arange(len(y)), symbols]
        return symbols.astype(np.int64), np.where(fine, probabilities, np.float32(0))

    def _drawn(self, y: NDArray[np.float32], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        largest = y.max(axis=1, keepdims=True).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.exp(
                (np.log(y.astype(np.float64)) - np.log(largest)) / self.generate.temperature
            )
        if 0 < self.generate.top_k < y.shape[1]:
            weights[~_largest(y, self.generate.top_k)] = 0
        # Summed from the first to the last, whoever stands beside: the same bits in any grouping.
        below = np.cumsum(weights, axis=1)
        chosen = (below <= (numbers * below[:, -1])[:, None]).sum(axis=1)
        return np.asarray(np.minimum(chosen, y.shape[1] - 1), np.int64)


def _largest(y: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Say which are the `count` largest of each row; of equal ones the first."""
    place = y.shape[1] - count
    least = np.partition(y, place, axis=1)[:, place, None]
    above, equal = y > least, y == least
    room = count - above.sum(axis=1, keepdims=True)
    return np.asarray(above | (equal & (np.cumsum(equal, axis=1) <= room)), np.bool_)


class Spelling:
    """Puts texts together again from the symbols of one tokenizer."""

    def __init__(self, text: Text) -> None:
        self._of_bytes = text.tokenizer in ("byte", "bpe")
        self._bytes = spelt(text.merges) if self._of_bytes else []
        self._symbols = text.symbols
        self._between = " " if text.tokenizer == "word" else ""

    def text(self, symbols: Sequence[int]) -> str:
        """Return the text that symbols spell, without end symbols and unknown ones.

        Bytes that are no UTF-8 become U+FFFD, as Python and browsers replace them. Words stand one
        blank apart.
        """
        spelling = [symbol - FIRST for symbol in symbols if symbol not in (END, UNKNOWN)]
        if self._of_bytes:
            return b"".join(map(self._bytes.__getitem__, spelling)).decode(errors="replace")
        return self._between.join(map(self._symbols.__getitem__, spelling))
