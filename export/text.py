"""Texts become symbols: the tokenizers that training fits and a bundle carries.

Owns which symbols a text is cut into, their numbers, and what of a text cannot be an event. The
same few lines tokenize in training, in the worker and in keyfold-verify, so no tokenizer library
is needed to serve (training/vocabulary.py uses one to learn merges). Knows no records, files or
models. Called by decode.py, by training/learned.py and by whoever shows a bundle.

Numbers: 0 is the end symbol that closes every event, 1 the unknown symbol, the vocabulary follows.
A text of a `width` is one step: a row of so many symbols, with the end symbol in places left over.
Texts are tokenized over fixed character classes, not over Unicode's tables, which differ between
versions of Python; only `lower` uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Reject, SpecError

Tokenizer = Literal["byte", "char", "word", "bpe"]
Keep = Literal["first", "last"]
END, UNKNOWN, FIRST = 0, 1, 2  # the end symbol, the unknown one, the first of the vocabulary
END_NAME, UNKNOWN_NAME = "<end>", "<unknown>"
BYTES = 256
MAX_SYMBOLS = 16_384  # of an event, unless the bundle says otherwise: 64 pages of a book
MOST_SYMBOLS = 1 << 24  # of a vocabulary: float32 holds no larger number exactly
MOST_WIDTH = 1024  # symbols of an event that is one step: that many columns
_BLANKS, _MARKS = r" \t\n\r\f\v", r"!-/:-@\[-`{-~"  # ASCII's white space and punctuation
# A word is a run of anything but blanks and marks; each mark is a word too.
WORDS = re.compile(rf"[^{_BLANKS}{_MARKS}]+|[{_MARKS}]")
# What bytes are merged within: a word or a run of marks with the one blank before it, or a blank.
# Nothing is left out, so a text can be put together again.
CHUNK_PATTERN = rf" ?[^{_BLANKS}{_MARKS}]+| ?[{_MARKS}]+|[{_BLANKS}]"
CHUNKS = re.compile(CHUNK_PATTERN)
MOST_BYTES = 64  # of a chunk that is merged as a whole: merging is quadratic
REMEMBERED = 1 << 16  # short chunks whose symbols are kept: the same words come again and again

_TOO_LONG = "expected at most {most:,} symbols (features.text.max_symbols), got"

Symbols = NDArray[np.float32]  # (S,) numbers of symbols, as the graph takes them


@dataclass(frozen=True, slots=True)
class Text:
    """The field of an event that is a text, and how it becomes symbols."""

    field: str  # path of the member
    tokenizer: Tokenizer = "byte"  # what a symbol is
    symbols: tuple[str, ...] = ()  # char, word: the vocabulary, the most frequent first
    merges: tuple[tuple[int, int], ...] = ()  # bpe: pairs of symbols; the n-th becomes 258 + n
    lower: bool = False  # texts are put into lower case first
    max_symbols: int = MAX_SYMBOLS  # of an event, the end symbol not counted; more: a reject
    width: int = 0  # an event is one step, its text so many columns; 0: a step for each symbol
    keep: Keep = "first"  # of a text longer than `width`: its first or its last symbols

    def __post_init__(self) -> None:
        if not self.field:
            raise SpecError("features.text.field: expected the name of a member, got none")
        if self.tokenizer not in get_args(Tokenizer):
            raise SpecError(
                f"features.text.tokenizer: expected one of {', '.join(get_args(Tokenizer))}, "
                f"got {self.tokenizer!r}"
            )
        if self.symbols and self.tokenizer not in ("char", "word"):
            raise SpecError(f"features.text.symbols: expected none with {self.tokenizer!r}")
        if self.merges and self.tokenizer != "bpe":
            raise SpecError(f"features.text.merges: expected none with {self.tokenizer!r}")
        if not all(isinstance(symbol, str) and symbol for symbol in self.symbols):
            raise SpecError("features.text.symbols: expected texts that are not empty")
        if len(set(self.symbols)) != len(self.symbols):
            raise SpecError("features.text.symbols: expected distinct symbols")
        if self.tokenizer == "char" and any(len(symbol) > 1 for symbol in self.symbols):
            raise SpecError("features.text.symbols: expected single characters with 'char'")
        self._check_merges()
        most: object = self.max_symbols
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise SpecError(f"features.text.max_symbols: expected at least 1, got {most!r}")
        self._check_width()
        if self.size > MOST_SYMBOLS:
            raise SpecError(
                f"features.text: expected at most {MOST_SYMBOLS:,} symbols, got {self.size:,}"
            )

    def _check_merges(self) -> None:
        known = FIRST + BYTES
        for number, pair in enumerate(self.merges):
            if len(pair) != 2 or not all(FIRST <= one < known + number for one in pair):
                raise SpecError(
                    f"features.text.merges: number {number}: expected two earlier symbols "
                    f"({FIRST} to {known + number - 1}), got {list(pair)}"
                )

    def _check_width(self) -> None:
        width: object = self.width
        whole = isinstance(width, int) and not isinstance(width, bool)
        if not (whole and (width == 0 or 2 <= self.width <= MOST_WIDTH)):
            raise SpecError(f"features.text.width: expected 0, or 2 to {MOST_WIDTH}, got {width!r}")
        if self.keep not in get_args(Keep) or (self.keep != "first" and not self.width):
            raise SpecError(
                "features.text.keep: expected 'first', or with a width 'first' or 'last', got "
                f"{self.keep!r}"
            )
        if self.width and self.max_symbols != MAX_SYMBOLS:
            raise SpecError(
                f"features.text.max_symbols: expected {MAX_SYMBOLS}, as without it, where the "
                f"width says what is kept of a text, got {self.max_symbols}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns: one for a symbol at a time, or one for each place of the row."""
        if not self.width:
            return (self.field,)
        return tuple(f"{self.field}[{place}]" for place in range(self.width))

    @property
    def size(self) -> int:
        """How many symbols there are, the end and the unknown one included."""
        if self.tokenizer in ("byte", "bpe"):
            return FIRST + BYTES + len(self.merges)
        return FIRST + len(self.symbols)

    @property
    def names(self) -> tuple[str, ...]:
        """Return a name for each symbol, all distinct: where symbols are what is predicted."""
        if self.tokenizer in ("char", "word"):
            return (END_NAME, UNKNOWN_NAME, *map(_safe, self.symbols))
        return (END_NAME, UNKNOWN_NAME, *_byte_names(self.merges))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        data: dict[str, Any] = {"field": self.field, "tokenizer": self.tokenizer}
        if self.symbols:
            data["symbols"] = list(self.symbols)
        if self.merges:
            data["merges"] = [list(pair) for pair in self.merges]
        if self.lower:
            data["lower"] = True
        if not self.width:
            return {**data, "max_symbols": self.max_symbols}
        data["width"] = self.width
        if self.keep != "first":
            data["keep"] = self.keep
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Text:
        """Read the manifest's form. Raises SpecError on what this version does not know."""
        known = {"field", "tokenizer", "symbols", "merges", "lower", "max_symbols", "width", "keep"}
        if unknown := sorted(set(data) - known):
            raise SpecError(f"features.text: unknown {unknown}")
        merges = tuple((int(one), int(other)) for one, other in data.get("merges", ()))
        return cls(**{**data, "symbols": tuple(data.get("symbols", ())), "merges": merges})


class Reader:
    """Turns texts into symbols."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._numbers = {name: FIRST + n for n, name in enumerate(text.symbols)}
        self._ranks = {pair: FIRST + BYTES + n for n, pair in enumerate(text.merges)}
        self._remembered = lru_cache(REMEMBERED)(lambda chunk: merged(chunk, self._ranks))
        self._longest = max(map(len, spelt(text.merges)))  # bytes of a symbol
        self._cut: Callable[[str], Symbols] = {
            "byte": self._bytes, "char": self._chars, "word": self._words, "bpe": self._pairs,
        }[text.tokenizer]  # fmt: skip

    def read(self, text: str) -> Symbols:
        """Return a text's symbols and the end symbol (S,). Raises Reject.

        Empty text is the end symbol alone. A text with half a surrogate pair is a reject: it has no
        form as bytes, and no file could hold it.
        """
        size = _bytes_of(text)
        most = self._text.max_symbols
        if self._text.tokenizer == "bpe" and size > most * self._longest:
            raise Reject(f"{_TOO_LONG.format(most=most)} more")  # without merging it all
        symbols = self._cut(text.lower() if self._text.lower else text)
        if len(symbols) > most:
            raise Reject(f"{_TOO_LONG.format(most=most)} {len(symbols):,}")
        return np.append(symbols, np.float32(END))

    def row(self, text: str) -> Symbols:
        """Return a text's first or last symbols (width,), with END in places left over.

        Empty text is END everywhere. Raises Reject as `read` does, but for no length.
        """
        _bytes_of(text)
        width, last = self._text.width, self._text.keep == "last"
        text = text.lower() if self._text.lower else text
        if self._text.tokenizer in ("byte", "char"):  # a symbol is at most one character
            text = text[-width:] if last else text[:width]
        symbols = self._some_pairs(text) if self._text.tokenizer == "bpe" else self._cut(text)
        symbols = symbols[-width:] if last else symbols[:width]
        return np.concatenate([symbols, np.full(width - len(symbols), END, np.float32)])

    def _some_pairs(self, text: str) -> Symbols:
        """Return symbols of byte pairs, no more than the row needs of either end."""
        chunks, last, found = CHUNKS.findall(text), self._text.keep == "last", list[int]()
        for chunk in reversed(chunks) if last else chunks:
            if len(found) >= self._text.width:
                break
            more = self._merged(chunk)
            found = [*more, *found] if last else [*found, *more]
        return np.array(found, np.float32)

    def _bytes(self, text: str) -> Symbols:
        return np.frombuffer(text.encode(), np.uint8).astype(np.float32) + np.float32(FIRST)

    def _chars(self, text: str) -> Symbols:
        return self._known(text, len(text))

    def _words(self, text: str) -> Symbols:
        words = WORDS.findall(text)
        return self._known(words, len(words))

    def _known(self, found: Any, count: int) -> Symbols:
        numbers = self._numbers
        return np.fromiter((numbers.get(one, UNKNOWN) for one in found), np.float32, count)

    def _pairs(self, text: str) -> Symbols:
        found: list[int] = []
        for chunk in CHUNKS.findall(text):
            found += self._merged(chunk)
        return np.array(found, np.float32)

    def _merged(self, chunk: str) -> tuple[int, ...]:
        short = len(chunk) <= MOST_BYTES
        return self._remembered(chunk) if short else merged(chunk, self._ranks)


def _bytes_of(text: str) -> int:
    """Return how many bytes a text has. Raises Reject: it has no form as bytes."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise Reject("expected a text, got half a surrogate pair in it") from error


def texts_of(symbols: Symbols, lengths: NDArray[np.int64], wanted: NDArray[np.bool_]) -> list[str]:
    """Return the texts that were read as bytes: `wanted` of those of `lengths` symbols each."""
    ends = np.cumsum(lengths)
    every = (symbols - FIRST).astype(np.int64).astype(np.uint8)  # end symbols are left out below
    spans = zip((ends - lengths)[wanted].tolist(), ends[wanted].tolist(), strict=True)
    return [every[start : end - 1].tobytes().decode() for start, end in spans]


def merged(chunk: str, ranks: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    """Merge a chunk's bytes, the pair that was learned first before all others.

    Byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over bytes. `ranks`: pair -> the
    symbol it becomes; a lower number was learned earlier. Of a chunk beyond MOST_BYTES each part
    of so many bytes is merged by itself.
    """
    pieces = [FIRST + byte for byte in chunk.encode()]
    found: list[int] = []
    for start in range(0, len(pieces), MOST_BYTES):
        found += _merge(pieces[start : start + MOST_BYTES], ranks)
    return tuple(found)


def _merge(pieces: list[int], ranks: Mapping[tuple[int, int], int]) -> list[int]:
    while len(pieces) > 1:
        pairs = pairwise(pieces)
        best = min((ranks[pair] for pair in pairs if pair in ranks), default=None)
        if best is None:
            break
        joined: list[int] = []
        at = 0
        while at < len(pieces):
            if at + 1 < len(pieces) and ranks.get((pieces[at], pieces[at + 1])) == best:
                joined.append(best)
                at += 2
            else:
                joined.append(pieces[at])
                at += 1
        pieces = joined
    return pieces


def spelt(merges: tuple[tuple[int, int], ...]) -> list[bytes]:
    """Return the bytes that each symbol of the vocabulary stands for, of bytes and their merges."""
    found = [bytes([byte]) for byte in range(BYTES)]
    for one, other in merges:
        found.append(found[one - FIRST] + found[other - FIRST])
    return found


def _byte_names(merges: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """Return names of bytes and merged bytes: what they spell, else in hexadecimal."""
    names: dict[str, None] = {}
    for number, what in enumerate(spelt(merges)):
        try:
            name = _safe(what.decode())
        except UnicodeDecodeError:
            name = f"0x{what.hex()}"
        # A text may spell the name of another symbol.
        names[f"{name}<{FIRST + number}>" if name in names else name] = None
    return tuple(names)


def _safe(symbol: str) -> str:
    return f"{symbol}<symbol>" if symbol in (END_NAME, UNKNOWN_NAME) else symbol
