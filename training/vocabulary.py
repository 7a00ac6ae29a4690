"""Vocabularies: which symbols the training part's texts teach.

Owns the counting of characters and words and the learning of byte pairs. The result is plain data
in the bundle (export/text.py reads with it); the library that learns byte pairs (`tokenizers`) is
needed here alone. Called by learned.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from keyfold.export.errors import Crash
from keyfold.export.text import BYTES, CHUNK_PATTERN, FIRST, MOST_BYTES, WORDS, Text
from keyfold.training.settings_text import Text as Settings


class VocabularyError(Crash):
    """No vocabulary can be learned."""


def fit(text: Text, settings: Settings, texts: Iterable[str]) -> Text:
    """Return the tokenizer with the vocabulary that these texts teach. Raises Crash.

    The same texts give the same vocabulary in any order: equal counts are told apart by the symbol.
    """
    texts = (one.lower() for one in texts) if text.lower else texts
    if text.tokenizer == "byte":
        return text
    if text.tokenizer == "bpe":
        return replace(text, merges=_merges(settings, texts))
    counts: Counter[str] = Counter()
    for one in texts:
        counts.update(one if text.tokenizer == "char" else WORDS.findall(one))
    known = [(symbol, n) for symbol, n in counts.items() if n >= settings.min_count]
    known.sort(key=lambda pair: (-pair[1], pair[0]))
    if not known:
        raise VocabularyError(
            f"text: expected symbols in the training part's texts (field {text.field!r}), got none"
        )
    return replace(text, symbols=tuple(symbol for symbol, _ in known[: settings.size - FIRST]))


def _merges(settings: Settings, texts: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Learn which bytes to merge, within the chunks that export/text.py cuts."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise VocabularyError(
            "text.tokenizer: 'bpe' needs the package tokenizers to learn: pip install "
            "'keyfold[text]'"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.size - FIRST, min_frequency=max(2, settings.min_count),
        show_progress=False, initial_alphabet=alphabet, max_token_length=MOST_BYTES,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    numbers = {letter: FIRST + byte for letter, byte in letters()}
    merges: list[tuple[int, int]] = []
    for one, other in map(_pair, model["merges"]):
        if one + other not in numbers:  # other pairs may have made the same bytes
            numbers[one + other] = FIRST + BYTES + len(merges)
            merges.append((numbers[one], numbers[other]))
    return tuple(merges)


def pre_tokenizer() -> Any:
    """Return the library's form of how texts are cut into chunks of bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CHUNK_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


def letters() -> Iterator[tuple[str, int]]:
    """Yield the letter that stands for each byte, as the library and GPT-2 (2019) write them."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from ((chr(byte), byte) for byte in shown)
    hidden = [byte for byte in range(BYTES) if byte not in shown]
    yield from ((chr(BYTES + number), byte) for number, byte in enumerate(hidden))
