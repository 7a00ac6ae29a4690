"""Texts that are kept as they are until the training part has taught a vocabulary.

Owns how a log's texts are read before there are symbols: alone, or beside an event's fields; and
how a text that is read inside its event becomes columns once there are. It must not know files or
Keras. Called by data.py (reading) and learned.py (columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.decode import Decoded
from keyfold.export.errors import Reject
from keyfold.export.events import Decoder, EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.inner_text import InnerText
from keyfold.export.text import MOST_SYMBOLS, Text, texts_of
from keyfold.export.text import Reader as Tokenizer
from keyfold.training.sequence import Sequence as Events


@dataclass(frozen=True, slots=True)
class Read:
    """N records, their texts as they are."""

    rows: Decoded  # x (N,F) without what texts add; where nothing else is read, (N,0) or (N,1)
    texts: Decoded | None  # the bytes of the texts; None: events have none
    said: Decoded | None = None  # the bytes of the texts that answer them; None: there are none

    @property
    def unserved(self) -> dict[int, str]:
        """Why the worker rejects a row, too: the text that answers an event is no part of it."""
        return self.rows.rejects | ({} if self.texts is None else self.texts.rejects)

    @property
    def rejects(self) -> dict[int, str]:
        """Why a row cannot be an event."""
        of_texts = {} if self.texts is None else self.texts.rejects
        of_answers = {} if self.said is None else self.said.rejects
        return self.rows.rejects | of_answers | of_texts

    def documents(self, good: NDArray[np.bool_]) -> list[str]:
        """Return the texts of good rows."""
        if self.texts is None or self.texts.lengths is None:
            return []
        return texts_of(self.texts.x[:, 0], self.texts.lengths, good)

    def answers(self, good: NDArray[np.bool_]) -> list[str]:
        """Return the texts that answer good rows."""
        if self.said is None or self.said.lengths is None:
            return []
        # Where a refused answer leaves a row its end alone, there is no text to read.
        there = good & (self.said.lengths > 0)
        found = iter(texts_of(self.said.x[:, 0], self.said.lengths, there))
        return [next(found) if told else "" for told in there[good].tolist()]


def of_source(reject: Reject) -> str:
    """Say why a pair's source cannot be read, by the settings that bound its length in training."""
    return str(reject).replace(
        "features.text.max_symbols", "model.window less its end, text.max_symbols"
    )


class Judge:
    """Says which texts the worker will reject, as far as that is known before symbols are learned.

    Byte pairs that are still to be learned are told later, by texts.py.
    """

    def __init__(self, text: Text, *, of_pairs: bool) -> None:
        self._said = of_source if of_pairs else str
        self._most = text.max_symbols
        # A vocabulary says which symbols there are, not how many a text has; merges do say that.
        unlearned = text.tokenizer == "bpe" and not text.merges
        self._reader = None if unlearned else Tokenizer(text)

    def rejects(self, texts: Decoded) -> dict[int, str]:
        """Return why rows cannot be events: `texts` as bytes."""
        if texts.lengths is None or self._reader is None:
            return {}
        found: dict[int, str] = {}
        # A text has at most a symbol a byte, and lower case at most half as many bytes again.
        long = 3 * (texts.lengths - 1) > 2 * self._most
        documents = texts_of(texts.x[:, 0], texts.lengths, long)
        for row, document in zip(np.flatnonzero(long).tolist(), documents, strict=True):
            try:
                self._reader.read(document)
            except Reject as reject:
                found[row] = self._said(reject)
        return found


class Reader:
    """Decodes records of a feature spec; texts are read as bytes, whatever will be learned."""

    def __init__(
        self, events: EventSpec, spec: FeatureSpec, targets: Sequence[str], answer: str = ""
    ) -> None:
        """`answer`: member that answers a text that stands alone."""
        said = FeatureSpec((), text=Text(answer, max_symbols=MOST_SYMBOLS)) if answer else None
        self._said = None if said is None else Decoder(events, said)
        self._rows: Decoder | None = None
        self._texts: Decoder | None = None
        text, fields = spec.text, replace(spec, text=None) if spec.fields else None
        self._judge = None if spec.unrolled is None else Judge(spec.unrolled, of_pairs=bool(answer))
        if text is not None:
            as_bytes = Text(text.field, max_symbols=MOST_SYMBOLS)
            self._texts = Decoder(events, FeatureSpec((), text=as_bytes))
        if fields is not None:
            self._rows = Decoder(events, fields, targets)
        self._width = 0 if spec.unrolled is None else 1

    def read(
        self, values: Sequence[bytes | None], timestamps_ms: Sequence[int] | NDArray[np.int64]
    ) -> Read:
        """Decode N record values; see Decoder."""
        texts = None if self._texts is None else self._texts.decode(values, timestamps_ms)
        if texts is not None and self._judge is not None:
            texts = replace(texts, rejects=texts.rejects | self._judge.rejects(texts))
        if self._rows is not None:
            return Read(self._rows.decode(values, timestamps_ms), texts)
        if texts is None:
            raise RuntimeError("expected fields or a text to read, got neither")
        nothing = np.zeros((len(values), self._width), np.float32)
        said = None if self._said is None else self._said.decode(values, timestamps_ms)
        return Read(replace(texts, x=nothing, lengths=None), texts, said)


def with_columns(sequence: Events, text: Text) -> Events:
    """Return a sequence whose texts have become the last columns of x."""
    rows = InnerText(text).rows(sequence.documents)
    return replace(sequence, x=np.concatenate([sequence.x, rows], axis=1), documents=())
