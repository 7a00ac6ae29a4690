"""What an event must have been answered, symbol by symbol, one event at a time.

Owns the oracle's own saying: its own session of the decode graph, its own choice of each symbol and
its own random numbers, from what the contract says of them (export/generation.py names the
generator). It shares no code with worker/generation.py, nor the choice in export. Called by
offline_key.py.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Said:
    """An answer."""

    symbols: list[int]  # numbers of the symbols, the one that ends it included
    probabilities: list[float]  # each a float32
    text: str  # what the last prediction says that they spell


class OfflineGeneration:
    """Answers events of one bundle."""

    def __init__(self, step: OfflineStep) -> None:
        bundle = step.bundle
        outputs, text = bundle.manifest.outputs, bundle.manifest.features.text
        if outputs.generate is None or text is None:
            raise RuntimeError("expected a bundle that generates, got another")
        self._step, self._generate, self._bundle_id = step, outputs.generate, bundle.id
        self._until = outputs.names.index(outputs.generate.until)
        self._spelling = Spelling(outputs.target or text)
        self._decode = None if bundle.manifest.decode is None else _Decode(bundle, step)

    def answer(self, y: NDArray[np.float32], tensors: list[Tensor], event: str) -> Said:
        """Answer the event `event` (topic:partition:offset), read up to `tensors`, which stay."""
        one = self._step.one if self._decode is None else self._decode.one
        if self._decode is not None:
            tensors = self._decode.begun(tensors)
            y, tensors = one(_symbol(self._decode.first), tensors)
        key = sha256(f"keyfold-generate\0{self._bundle_id}\0{event}".encode()).digest()[:16]
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        symbols, probabilities = list[int](), list[float]()
        for number in draw.random(self._generate.most).tolist():
            symbol, probability = self._choice(y.tolist(), number)
            symbols.append(symbol)
            probabilities.append(probability)
            if symbol == self._until:
                break
            if len(symbols) < self._generate.most:
                y, tensors = one(_symbol(symbol), tensors)
        spelt = symbols[:-1] if symbols[-1] == self._until else symbols
        return Said(symbols, probabilities, self._spelling.text(spelt))

    def _choice(self, y: Sequence[float], number: float) -> tuple[int, float]:
        """Choose a symbol by its probabilities and a number from 0 to below 1."""
        if not all(map(isfinite, y)):
            return self._until, 0.0
        # The likeliest first, of equal ones the one of the lower number; never the unknown one.
        ranked = sorted((-p, n) for n, p in enumerate(y) if n != UNKNOWN and p > 0)
        if not ranked:
            return self._until, y[self._until]
        best = ranked[0][1]
        generate = self._generate
        if not generate.temperature:
            return best, y[best]
        kept = sorted(n for _, n in ranked[: generate.top_k or len(ranked)])
        weights = [exp((log(y[n]) - log(y[best])) / generate.temperature) for n in kept]
        below = list(accumulate(weights))
        chosen = next((n for n, b in zip(kept, below, strict=True) if b > number * below[-1]), best)
        return chosen, y[chosen]


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
