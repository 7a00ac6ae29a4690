"""What a training log's record holds beside the features: the key and the label.

Owns how both are read from JSON and how labels become numbers (a regression value, or a class
number in order of first appearance). It knows nothing of features, files or sequences. Called by
data.py, once per record.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Reject
from keyfold.export.events import OutputSpec
from keyfold.training.config import Data


class Labels:
    """Reads keys and labels of one log, and remembers the classes it has seen."""

    def __init__(self, data: Data, keyed: bool) -> None:
        self._data = data
        self._keyed = keyed  # Kafka: the record key is the key, whatever the value holds
        self._codes = {name: code for code, name in enumerate(data.classes)}
        members = [("label", str | float | None, None)]
        rename = {"label": data.label}
        if not keyed:
            members.append(("key", str | int | None, None))
            rename["key"] = data.key_field
        self._decode = msgspec.json.Decoder(
            msgspec.defstruct("Aside", members, rename=rename)
        ).decode

    def read(self, record_key: bytes | None, value: bytes) -> tuple[bytes, float]:
        """Return a record's key and its label as a number, NaN where it has none.

        Raises Reject, naming the field: no key, or a label of the wrong kind.
        """
        try:
            aside: Any = self._decode(value)
        except msgspec.MsgspecError as error:
            raise Reject(
                f"field {self._data.key_field!r} or {self._data.label!r}: {error}"
            ) from error
        key = record_key if self._keyed else self._key(aside.key)
        if key is None:
            raise Reject("the record key is null")
        return key, self._label(aside.label)

    def _key(self, key: str | int | None) -> bytes:
        if key is None:
            raise Reject(f"field {self._data.key_field!r}: expected a key, got none")
        return str(key).encode()

    def _label(self, label: str | float | None) -> float:
        if label is None:
            return math.nan
        name = self._data.label
        if self._data.kind == "regression":
            if isinstance(label, str) or not math.isfinite(label):
                raise Reject(
                    f"field {name!r}: expected a finite number, got {type(label).__name__}"
                )
            return label
        text = label if isinstance(label, str) else f"{label:g}"
        if text not in self._codes:
            if self._data.classes:
                raise Reject(f"field {name!r}: expected one of data.classes, got another class")
            self._codes[text] = len(self._codes)
        return float(self._codes[text])

    def outputs(self) -> OutputSpec:
        """Return what the outputs mean; classes are sorted unless the settings order them."""
        if self._data.kind == "regression":
            return OutputSpec("regression", (self._data.label,))
        return OutputSpec("classification", self._data.classes or tuple(sorted(self._codes)))

    def final(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn the class numbers given while reading into positions in outputs().names."""
        if self._data.kind == "regression" or self._data.classes:
            return labels
        names = sorted(self._codes)
        position = np.empty(len(names) + 1, np.float32)
        position[[self._codes[name] for name in names]] = np.arange(len(names))
        position[-1] = np.nan  # where NaN, cast to -1 below, ends up
        return position[np.where(np.isnan(labels), -1, labels).astype(np.int64)]
