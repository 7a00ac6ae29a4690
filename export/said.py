"""Symbols of an answer in, "output" objects of its predictions out.

Owns the JSON of a symbol that was said and of the text that an answer's last one closes:
{"symbol": "a", "probability": 0.5} and, behind the last, "text". It knows outputs, no graph and no
topic. Called by worker/generation.py; predictions.py writes what stands around.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.generation import Spelling
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import Text


class SaidEncoder:
    """Writes the answers of one bundle; `text` is what the symbols are of."""

    def __init__(self, outputs: OutputSpec, text: Text) -> None:
        self._names = [orjson.dumps(name) for name in outputs.names]
        self._spelling = Spelling(text)
        generate = outputs.generate
        self._until = outputs.names.index(generate.until) if generate is not None else -1

    def outputs(self, symbols: Sequence[int], probabilities: NDArray[np.float32]) -> list[bytes]:
        """Write one "output" per symbol of an answer, in order; the last one holds its text.

        The symbol that ends it is no part of the text.
        """
        numbers = orjson.dumps(probabilities, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        written = [
            b'{"symbol":%b,"probability":%b}' % (self._names[symbol], number)
            for symbol, number in zip(symbols, numbers, strict=True)
        ]
        spelling = symbols[:-1] if symbols[-1] == self._until else symbols
        text = orjson.dumps(self._spelling.text(spelling))
        written[-1] = written[-1][:-1] + b',"text":' + text + b"}"
        return written
