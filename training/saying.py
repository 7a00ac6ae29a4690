"""What a model of pairs answers: greedy decoding in Keras, symbol by symbol over whole sources.

Owns that loop, which is slow and plain: the source is read anew for every symbol. It is what the
two exported graphs are held to from outside (tests/accuracy). Knows no files. Called by
tests/accuracy/offline.py and tests.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.generation import Chooser, Spelling
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import END
from keyfold.training.data import Sequence
from keyfold.training.model import Network
from keyfold.training.pairs import NONE

ROWS = 64  # answers made together


def said(network: Network, pairs: Seq[Sequence], outputs: OutputSpec) -> list[str]:
    """Answer the sources of pairs, by the likeliest symbols; return the texts they spell."""
    generate, target = outputs.generate, outputs.target
    if generate is None or target is None:
        raise RuntimeError("expected the outputs of a model of pairs, got others")
    chooser = Chooser(replace(generate, temperature=0.0), outputs.names)
    spelling, found = Spelling(target), [""] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number]))
    for start in range(0, len(order), ROWS):
        some = order[start : start + ROWS]
        answers = _answers(network, [_source(pairs[number]) for number in some], chooser)
        for number, symbols in zip(some, answers, strict=True):
            found[number] = spelling.text(symbols)
    return found


def _source(pair: Sequence) -> NDArray[np.float32]:
    column = pair.x[:, 0]
    return column[column >= 0]


def _answers(
    network: Network, sources: Seq[NDArray[np.float32]], chooser: Chooser
) -> list[list[int]]:
    """Return the symbols of each answer, without the one that ends it."""
    count, most = len(sources), chooser.generate.most
    longest = max(map(len, sources))
    x = np.full((count, max(longest, most), 2), NONE, np.float32)
    for row, source in enumerate(sources):
        x[row, : len(source), 0] = source
    x[:, 0, 1] = END
    answers: list[list[int]] = [[] for _ in sources]
    live, none = np.ones(count, np.bool_), np.zeros(count)
    for n in range(most):
        y = network.whole.predict_on_batch(x[:, : max(longest, n + 1)])[:, n]
        symbols, _ = chooser.choose(y, none)
        live &= symbols != chooser.until
        for row in np.flatnonzero(live).tolist():
            answers[row].append(int(symbols[row]))
        if not live.any() or n + 1 == most:
            break
        x[:, n + 1, 1] = symbols
    return answers
