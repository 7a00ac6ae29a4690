"""What an event must have been answered, symbol by symbol, one event at a time.

Owns the oracle's own saying: its own session of the decode graph, its own choice of each symbol and
its own random numbers, from what the contract says of them (export/generation.py names the
generator). Where two symbols are so close that last digits decide between them, both are right,
and so is each answer that goes on from them. It shares no code with worker/generation.py, nor the
choice in export. Called by offline_key.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from math import exp, isfinite, log
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.errors import BundleError
from keyfold.export.generation import Spelling
from keyfold.export.text import UNKNOWN
from keyfold.worker.verify.offline_step import OfflineStep

Tensor = NDArray[Any]
PATHS = 32  # answers that may be right; of more only the form is judged
RARE = 0.01  # probabilities below it may be off as this one: float32 errors are relative


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    symbols: list[int]  # numbers of the symbols, the one that ends it included
    probabilities: list[float]  # each a float32
    text: str  # what the last prediction says that they spell


@dataclass(frozen=True, slots=True)
class _Path:
    """An answer as far as it was chosen."""

    symbols: list[int]  # so far
    probabilities: list[float]  # of each
    y: NDArray[np.float32]  # (O,) what the last symbol was chosen by; of the first what is so
    tensors: list[Tensor]  # before the last symbol is read


class OfflineGeneration:
    """Answers events of one bundle."""

    def __init__(self, step: OfflineStep, tolerance: float) -> None:
        bundle, self._tolerance = step.bundle, tolerance
        outputs, text = bundle.manifest.outputs, bundle.manifest.features.text
        if outputs.generate is None or text is None:
            raise RuntimeError("expected a bundle that generates, got another")
        self._step, self._generate, self._bundle_id = step, outputs.generate, bundle.id
        self._until = outputs.names.index(outputs.generate.until)
        self._spelling = Spelling(outputs.target or text)
        self._decode = None if bundle.manifest.decode is None else _Decode(bundle, step)

    def answers(self, y: NDArray[np.float32], tensors: list[Tensor], event: str) -> list[Said]:
        """Answer the event `event` (topic:partition:offset), read up to `tensors`, which stay.

        Returns all answers that are right, the one without rounding first; [] of too many.
        """
        if self._decode is not None:
            tensors = self._decode.begun(tensors)
            y, tensors = self._decode.one(_symbol(self._decode.first), tensors)
        key = sha256(f"keyfold-generate\0{self._bundle_id}\0{event}".encode()).digest()[:16]
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        numbers = draw.random(self._generate.most).tolist()
        found, waiting = list[Said](), [_Path([], [], y, tensors)]
        while waiting:
            if len(found) + len(waiting) > PATHS:
                return []
            found.append(self._said(waiting.pop(0), numbers, waiting))
        return found

    def _said(self, path: _Path, numbers: Sequence[float], others: list[_Path]) -> Said:
        """Go on with an answer to its end; add those that branch off to `others`."""
        one = self._step.one if self._decode is None else self._decode.one
        symbols, probabilities = [*path.symbols], [*path.probabilities]
        y, tensors = path.y, path.tensors
        while len(symbols) < self._generate.most and symbols[-1:] != [self._until]:
            if symbols:
                y, tensors = one(_symbol(symbols[-1]), tensors)
            own, *close = self._choices(y.tolist(), numbers[len(symbols)])
            if len(others) <= PATHS:
                others += [
                    _Path([*symbols, symbol], [*probabilities, probability], y, tensors)
                    for symbol, probability in close[: PATHS + 1]
                ]
            symbols.append(own[0])
            probabilities.append(own[1])
        spelt = symbols[:-1] if symbols[-1] == self._until else symbols
        return Said(symbols, probabilities, self._spelling.text(spelt))

    def _choices(self, y: Sequence[float], number: float) -> list[tuple[int, float]]:
        """Choose a symbol by its probabilities and a number from 0 to below 1; all close ones."""
        if not all(map(isfinite, y)):
            return [(self._until, 0.0)]
        # The likeliest first, of equal ones the one of the lower number; never the unknown one.
        ranked = [n for _, n in sorted((-p, n) for n, p in enumerate(y) if n != UNKNOWN and p > 0)]
        if not ranked:
            return [(self._until, y[self._until])]
        if not self._generate.temperature:
            return [(n, y[n]) for n in ranked if n == ranked[0] or self._is_close(y, n, ranked[0])]
        found = dict[int, None]()  # in the order of finding
        for kept in self._kept(y, ranked):
            found |= dict.fromkeys(self._drawn(y, sorted(kept), number))
        return [(n, y[n]) for n in found]

    def _is_close(self, y: Sequence[float], one: int, other: int) -> bool:
        """Say whether either of two symbols may be the likelier one."""
        return abs(y[one] - y[other]) <= 2 * self._tolerance * max(y[one], y[other], RARE)

    def _kept(self, y: Sequence[float], ranked: list[int]) -> Iterator[list[int]]:
        """Yield which symbols are chosen from; of the last ones, close to others, also those."""
        count = self._generate.top_k or len(ranked)
        kept, left = ranked[:count], ranked[count:]
        yield kept
        if not left:
            return
        inside = [n for n in kept if self._is_close(y, n, left[0])]
        outside = [n for n in left if self._is_close(y, n, kept[-1])]
        for out in inside[-PATHS:]:
            for new in outside[:PATHS]:
                if self._is_close(y, out, new):
                    yield [*(n for n in kept if n != out), new]

    def _drawn(self, y: Sequence[float], kept: list[int], number: float) -> Iterator[int]:
        """Yield the symbol in whose share of all the number falls, then those that it is close to.

        A temperature below 1 makes errors larger by as much.
        """
        best, temperature = max(y[n] for n in kept), self._generate.temperature
        weights = [exp((log(y[n]) - log(best)) / temperature) for n in kept]
        above = list(accumulate(weights))
        mark, off = number * above[-1], self._tolerance / min(1.0, temperature) * above[-1]
        yield next((n for n, top in zip(kept, above, strict=True) if top > mark), kept[-1])
        for n, weight, top in zip(kept, weights, above, strict=True):
            if weight and top - weight - off <= mark <= top + off:
                yield n


class _Decode:
    """The decode graph, for one answer, proven against the golden ones at load."""

    def __init__(self, bundle: Bundle, step: OfflineStep) -> None:
        decode = bundle.manifest.decode
        if decode is None:
            raise RuntimeError("expected a bundle with a decode graph, got another")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        try:
            content = bundle.decode_path.read_bytes()
            self._session = ort.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exception classes have no common root
            raise BundleError(
                f"{bundle.decode_path}: ONNX Runtime cannot load it: {error}"
            ) from error
        self.first, self._rows = decode.first, decode.min_rows
        self._states, self._begins = decode.states, decode.begins
        self._read = [state.input for state in bundle.manifest.states]
        self._wanted = ["y", *(state.output for state in decode.states)]
        contract.check_decode_signature(
            bundle,
            {value.name: (value.type, list(value.shape)) for value in self._session.get_inputs()},
            {value.name: (value.type, list(value.shape)) for value in self._session.get_outputs()},
        )
        contract.check_answers(bundle, step.call, self._call)

    def begun(self, read: list[Tensor]) -> list[Tensor]:
        """Return the graph's states (R,*dims) before the first symbol, of the step graph's."""
        found = dict(zip(self._read, read, strict=True))
        return [
            np.repeat(found[begins][:1], self._rows, 0)
            if begins
            else np.full((self._rows, *state.dims), state.initial, state.dtype)
            for state, begins in zip(self._states, self._begins, strict=True)
        ]

    def one(
        self, x: NDArray[np.float32], tensors: list[Tensor]
    ) -> tuple[NDArray[np.float32], list[Tensor]]:
        """Say one symbol x (1,1); return y (O,) and the states behind it."""
        names = (state.input for state in self._states)
        # All R rows are the same answer: whatever min_rows is, row 0 cannot tell.
        feed = {"x": np.repeat(x, self._rows, 0)[:, None], "lengths": np.ones(self._rows, np.int32)}
        y, *after = self._session.run(
            self._wanted, {**feed, **dict(zip(names, tensors, strict=True))}
        )
        return y[0, 0], after

    def _call(self, x: Any, lengths: Any, states: Any) -> tuple[Any, Any]:
        y, *after = self._session.run(self._wanted, {"x": x, "lengths": lengths, **states})
        return y, {state.input: value for state, value in zip(self._states, after, strict=True)}


def _symbol(number: int) -> NDArray[np.float32]:
    return np.full((1, 1), number, np.float32)
