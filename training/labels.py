"""What a training log's record holds beside the features: key, label, texts of categories.

Owns how they are read from JSON and how labels become numbers (a regression value, or a class
number in order of first appearance). It knows nothing of files or sequences. Called by data.py,
once per chunk of records, and by delayed.py for a log of labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import category_text
from keyfold.export.errors import Reject
from keyfold.export.events import OutputSpec
from keyfold.export.formats import decode_one
from keyfold.export.members import SCALAR, Members
from keyfold.export.tables import file_key
from keyfold.training.settings_data import Data
from keyfold.training.sources import Chunk

LARGEST = float(np.finfo(np.float32).max)


SYMBOLS: Any = SCALAR | list[str | int | float | bool | None]  # of a transcription


@dataclass(frozen=True, slots=True)
class Aside:
    """N records' keys and labels. Rows named in `rejects` hold nothing of use."""

    keys: list[bytes | None]  # per record
    labels: NDArray[np.float32]  # (N,) a number or class number; NaN: none
    texts: list[Sequence[Any]]  # per category field: N values
    rejects: dict[int, str]  # row -> why


class Labels:
    """Reads keys and labels of one log, and remembers the classes it has seen."""

    def __init__(self, data: Data, keyed: bool, field: str | None = None) -> None:
        self._data = data
        self._keyed = keyed  # Kafka: the record key is the key, whatever the value holds
        self._field = data.label if field is None else field  # member with the label; "": none
        self._codes = {name: code for code, name in enumerate(data.classes)}
        paths = list(data.categories)
        paths += [self._field] if self._field and self._field not in paths else []
        if not keyed and data.key_field and data.key_field not in paths:
            paths.append(data.key_field)
        self._places = {path: number for number, path in enumerate(paths)}
        # Of a transcription: symbols -> number, by first appearance.
        self._transcripts: dict[tuple[str, ...], int] = {}
        kinds = dict.fromkeys(paths, SCALAR)
        if data.kind == "transcription" and self._field:
            kinds[self._field] = SYMBOLS
        self._members = Members(kinds)
        self._decode = msgspec.json.Decoder(self._members.row).decode

    def read(self, chunk: Chunk) -> Aside:
        """Read a chunk's keys, labels and categories."""
        count, rejects = len(chunk.values), dict(chunk.rejects)
        columns = self._columns(chunk, rejects)
        keys = [self._key(chunk, row, columns, rejects) for row in range(count)]
        labels = np.full(count, np.nan, np.float32)
        if self._field:
            for row, label in enumerate(columns[self._places[self._field]]):
                try:
                    labels[row] = math.nan if row in rejects else self._label(label)
                except Reject as reject:
                    rejects[row] = str(reject)
        texts = [columns[self._places[name]] for name in self._data.categories]
        return Aside(keys, labels, texts, rejects)

    def _columns(self, chunk: Chunk, rejects: dict[int, str]) -> list[Sequence[Any]]:
        blank, rows = self._members.row(), []
        for row, value in enumerate(chunk.values):
            try:
                # A null value says something about its key, and nothing else.
                good = value is not None and row not in rejects and self._places
                rows.append(decode_one(self._decode, value) if good else blank)
            except Reject as reject:
                rejects.setdefault(row, str(reject))
                rows.append(blank)
        if not self._places:
            return []
        return self._members.columns(rows)

    def _key(
        self, chunk: Chunk, row: int, columns: list[Sequence[Any]], rejects: dict[int, str]
    ) -> bytes | None:
        name = self._data.key_field
        if self._keyed:
            key = None if chunk.keys is None else chunk.keys[row]
            if key is None:
                rejects.setdefault(row, "the record key is null")
            return key
        if not name:
            return file_key(chunk.source)
        value = columns[self._places[name]][row]
        if value is None or isinstance(value, bool | list | dict):
            rejects.setdefault(row, f"field {name!r}: expected a key, got none")
            return None
        return (category_text(value) or "").encode()

    def _label(self, label: Any) -> float:
        if label is None:
            return math.nan
        name = self._field
        if self._data.kind == "regression":
            if isinstance(label, str | bool):
                raise Reject(
                    f"field {name!r}: expected a finite number, got {type(label).__name__}"
                )
            if not abs(label) <= LARGEST:
                raise Reject(f"field {name!r} overflows float32")
            return float(label)
        if self._data.kind == "transcription":
            return float(self._transcript(label))
        text = category_text(label) or ""
        if text not in self._codes:
            if self._data.classes:
                raise Reject(f"field {name!r}: expected one of data.classes, got another class")
            self._codes[text] = len(self._codes)
        return float(self._codes[text])

    def _transcript(self, label: Any) -> int:
        """Return the number of the symbols that a label stands for."""
        name = self._field
        try:
            symbols = symbols_of(label, self._data.symbols)
        except Reject as reject:
            raise Reject(f"field {name!r}: {reject}") from None
        if self._data.classes and any(symbol not in self._codes for symbol in symbols):
            raise Reject(f"field {name!r}: expected symbols of data.classes, got another one")
        return self._transcripts.setdefault(symbols, len(self._transcripts))

    @property
    def transcripts(self) -> tuple[tuple[str, ...], ...]:
        """The symbols that each label's number stands for, of a transcription."""
        return tuple(self._transcripts)

    @property
    def is_usable(self) -> bool:
        """Whether there is anything to be told apart; of a transcription that is not known yet."""
        return self._data.kind == "regression" or len(self._codes) > 1

    def outputs(self) -> OutputSpec:
        """Return what the outputs mean; classes are sorted unless the settings order them."""
        if self._data.kind == "regression":
            return OutputSpec("regression", (self._data.label,))
        return OutputSpec("classification", self._data.classes or tuple(sorted(self._codes)))

    def final(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn the class numbers given while reading into positions in outputs().names."""
        if self._data.kind != "classification" or self._data.classes:
            return labels
        names = sorted(self._codes)
        position = np.empty(len(names) + 1, np.float32)
        position[[self._codes[name] for name in names]] = np.arange(len(names))
        position[-1] = np.nan  # where NaN, cast to -1 below, ends up
        return position[np.where(np.isnan(labels), -1, labels).astype(np.int64)]


def symbols_of(label: Any, how: str) -> tuple[str, ...]:
    """Return a label's symbols: a list's entries, or the words or characters of a text.

    Raises Reject.
    """
    if isinstance(label, list):
        symbols = [category_text(entry) or "" for entry in label]
        if not all(symbols):
            raise Reject("expected symbols, got an empty one or null in the list")
        return tuple(symbols)
    text = category_text(label) or ""
    return tuple(text.split()) if how == "words" else tuple(text)
