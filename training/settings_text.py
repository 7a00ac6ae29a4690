"""The settings of section [text]: how the field data.text becomes symbols.

Owns their names, defaults and meaning. What is learned from the training part, the vocabulary, is
vocabulary.py's. Read through config.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from keyfold.export.errors import SpecError
from keyfold.export.text import BYTES, FIRST, MAX_SYMBOLS, Keep, Tokenizer
from keyfold.export.text import Text as TextSpec


@dataclass(frozen=True, slots=True)
class Text:
    """The tokenizer of texts."""

    tokenizer: Tokenizer = "char"  # what a symbol is: byte, char, word, bpe (merged bytes)
    size: int = 8000  # most symbols; char, word: the most frequent; bpe: bytes and their merges
    min_count: int = 1  # char, word: rarer ones in the training part are unknown
    lower: bool = False  # texts are put into lower case first
    max_symbols: int = MAX_SYMBOLS  # of an event; more are a reject
    # An event is one step: so many symbols of its text beside data.features, for model.encoders to
    width: int = 0  # read; 0: the text stands alone, and each symbol is a step
    keep: Keep = "first"  # of a text with more symbols than `width`: the first or the last of them

    def __post_init__(self) -> None:
        try:
            self.spec("text")
        except SpecError as error:
            raise ValueError(str(error).removeprefix("features.text.")) from error
        for item in fields(self):
            # The vocabulary of bytes is all there are.
            ignored = self.tokenizer == "byte" and item.name in ("size", "min_count")
            if ignored and getattr(self, item.name) != item.default:
                raise ValueError(
                    f"{item.name}: expected another tokenizer than 'byte' with it, got "
                    f"{getattr(self, item.name)}"
                )
        least = FIRST + (BYTES if self.tokenizer == "bpe" else 1)
        if self.tokenizer != "byte" and self.size < least:
            raise ValueError(f"size: expected at least {least} with {self.tokenizer!r}, "
                             f"got {self.size}")  # fmt: skip
        if self.min_count < 1:
            raise ValueError(f"min_count: expected at least 1, got {self.min_count}")

    def spec(self, field: str) -> TextSpec:
        """Return the tokenizer of a field before anything is learned."""
        return TextSpec(
            field, self.tokenizer, lower=self.lower, max_symbols=self.max_symbols,
            width=self.width, keep=self.keep,
        )  # fmt: skip
