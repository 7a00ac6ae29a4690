"""Are the two graphs of a model of pairs that model? Parity with Keras, and golden answers.

Owns the check that the encoder's graph, then the decoder's, said symbol by symbol, give what the
model of pairs gives over whole pairs, whoever shares a call, and the golden answers that the bundle
then carries. Symbols are drawn at random: a bundle holds no record of anybody. Called by cli.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Golden
from keyfold.export.calls import Floats, Step, in_calls
from keyfold.export.convert import StepGraph, convert, in_float64, reference
from keyfold.export.decode_graph import DecodeGraph, GoldenAnswers
from keyfold.export.pairing import ATTENDS, NONE, begins_of, decoder_of, encoder_of
from keyfold.export.states import Tensors, cold
from keyfold.export.text import END
from keyfold.export.verify import ParityError, opened, tolerance_of

ROWS, SAID = 8, 48  # pairs compared, and symbols said in each
TOGETHER = (ROWS, 1, 2, 3)  # of them in a call
GOLDEN_LENGTHS = (12, 1, 5, 8)


@dataclass(frozen=True, slots=True)
class Taken:
    """A model of pairs, taken apart."""

    model: Any  # keras.Model: x (B,T,2) -> y (B,T,O)
    encoder: Any  # keras.Model: x (B,T,1) -> its outputs (B,T,H)
    read: StepGraph  # the encoder's graph
    said: StepGraph  # the decoder's


@dataclass(frozen=True, slots=True)
class DecodeProof:
    """What was checked and found."""

    decode: DecodeGraph  # for the manifest
    golden: GoldenAnswers  # for the bundle
    tolerance: float  # as in verify.Proof
    largest_difference: float  # between the graphs' probabilities and the model's


def taken(model: Any) -> Taken:
    """Take a model of pairs apart. Raises ConvertError."""
    encoder, decoder = encoder_of(model), decoder_of(model)
    return Taken(model, encoder, convert(encoder), convert(decoder))


def prove(pair: Taken, golden: Golden, symbols: tuple[int, int], seed: int = 0) -> DecodeProof:
    """Compare both graphs with their model. Raises ParityError: what, where, expected, got.

    `golden`: the encoder's sequences; `symbols`: how many the source has and the answer.
    """
    begins = begins_of(pair.read.states, pair.said.states)
    decode = DecodeGraph(pair.said.states, begins, width=golden.y.shape[-1])
    chain = _Chain(pair, decode)
    draw = np.random.default_rng(seed)
    source, lengths, said = _drawn(draw, pair.model.get_layer(ATTENDS).window, symbols)
    x = np.full((ROWS, max(source.shape[1], SAID), 2), NONE, np.float32)
    x[:, : source.shape[1], 0] = np.where(
        np.arange(source.shape[1]) < lengths[:, None], source[:, :, 0], NONE
    )
    x[:, :SAID, 1] = said[:, :, 0]
    expected = reference(pair.model)(x)[:, :SAID]
    exact = reference(in_float64(pair.model))(x.astype(np.float64))[:, :SAID]
    tolerance = tolerance_of(float(np.abs(expected - exact).max()))
    ys = {rows: chain.answers(source, lengths, said, rows) for rows in TOGETHER}
    worst = float(np.abs(ys[ROWS] - expected).max())
    if not worst <= tolerance:  # also NaN
        raise ParityError(
            f"decode graph, {SAID} symbols: expected probabilities within {tolerance:.3g} of "
            f"Keras, got a difference of {worst:.3g}"
        )
    same = {rows: np.array_equal(y, ys[ROWS]) for rows, y in ys.items()}
    if not (same[2] and same[3]):
        raise ParityError(
            "decode graph: expected the same probabilities, bit for bit, however many answers are "
            "made together, got others"
        )
    decode = replace(decode, min_rows=1 if same[1] else 2)
    return DecodeProof(decode, _golden(chain, golden, symbols[1], draw), tolerance, worst)


class _Chain:
    """Both graphs, one behind the other."""

    def __init__(self, pair: Taken, decode: DecodeGraph) -> None:
        self._read: Step = in_calls(opened(pair.read.onnx, pair.read.states), pair.read.max_steps)
        self._say: Step = opened(pair.said.onnx, pair.said.states)
        self._states, self._decode = pair.read.states, decode

    def begun(self, source: Floats, lengths: NDArray[np.int32]) -> Tensors:
        """Return the decoder's states behind sources (B,S,1)."""
        _, read = self._read(source, lengths, cold(self._states, len(source)))
        return self._decode.begun(read, len(source))

    def said(self, x: Floats, states: Tensors) -> Floats:
        """Say x (B,T,1), one symbol after the other; return y (B,T,O)."""
        ones, ys = np.ones(len(x), np.int32), []
        for t in range(x.shape[1]):
            y, states = self._say(x[:, t : t + 1], ones, states)
            ys.append(y)
        return np.concatenate(ys, axis=1)

    def answers(
        self, source: Floats, lengths: NDArray[np.int32], said: Floats, rows: int
    ) -> Floats:
        """Read sources together, then say so many answers in a call."""
        begun, ys = self.begun(source, lengths), []
        for first in range(0, len(said), rows):
            some = slice(first, first + rows)
            ys.append(self.said(said[some], {n: v[some] for n, v in begun.items()}))
        return np.concatenate(ys)


def _drawn(
    draw: np.random.Generator, window: int, symbols: tuple[int, int]
) -> tuple[Floats, NDArray[np.int32], Floats]:
    """Return sources of any length that fits (B,S,1), their lengths, what is said (B,T,1)."""
    lengths = draw.integers(1, window + 1, ROWS).astype(np.int32)
    lengths[:2] = 1, window
    source = draw.integers(0, symbols[0], (ROWS, window, 1)).astype(np.float32)
    said = draw.integers(0, symbols[1], (ROWS, SAID, 1)).astype(np.float32)
    said[:, 0] = END
    return source, lengths, said


def _golden(chain: _Chain, read: Golden, symbols: int, draw: np.random.Generator) -> GoldenAnswers:
    lengths = np.array(GOLDEN_LENGTHS, np.int32)
    x = draw.integers(0, symbols, (len(lengths), lengths.max(), 1)).astype(np.float32)
    x[:, 0] = END
    y = chain.said(x, chain.begun(read.x, read.lengths))
    beyond = np.arange(x.shape[1]) >= lengths[:, None]
    x[beyond], y[beyond] = 0.0, 0.0
    return GoldenAnswers(x, lengths, y)
