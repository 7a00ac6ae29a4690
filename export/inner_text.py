"""A text inside its event: a row of symbols beside the event's other columns.

Owns how a member's values become the text's columns of x, and which of them cannot. How a text is
cut into symbols is text.py's; what the model makes of them is in text_layers.py. Called by
decode.py for records, and by training for texts that were kept until the vocabulary was learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import Rejects, kind_of
from keyfold.export.errors import Reject
from keyfold.export.text import Reader, Text


class InnerText:
    """Reads the texts of events into rows of symbols."""

    def __init__(self, text: Text) -> None:
        self.field, self.width = text.field, text.width
        self._row = Reader(text).row

    def fill(self, texts: Sequence[Any], x: NDArray[np.float32], rejects: Rejects) -> None:
        """Write the texts of N events into the last columns of x (N,F); note what is no text."""
        for row, text in enumerate(texts):
            if row in rejects:
                continue
            try:
                x[row, -self.width :] = self._row(checked(text))
            except Reject as reject:
                rejects.note(row, f"field {self.field!r}: {reject}")

    def rows(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Return the rows (N,width) of texts that are known to be good."""
        found = [self._row(text) for text in texts]
        return np.array(found, np.float32).reshape(len(found), self.width)


def checked(text: object) -> str:
    """Return a member's value if it is a text. Raises Reject."""
    if isinstance(text, str):
        return text
    raise Reject(f"expected a text, got {'none' if text is None else kind_of(text)}")
