"""The offline fold: one partition's records through plain ONNX Runtime, one event at a time.

Owns what keyfold-verify holds the worker to: the rules that make a record an event, a reset or a
reject, and the expected prediction and state of every key. It knows the bundle and the codecs of
keyfold.export only; it must share no scheduling, slot, state-layout or pipeline code with the
worker, and it does no I/O on topics or Redis. Called by worker/verify.py and by tests.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from zlib import crc32

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Tensors
from keyfold.export.errors import BundleError
from keyfold.export.events import Decoder, why_no_key

NOT_FINITE = "the step's result is not finite"
NO_KEY = -1


class Kind(IntEnum):
    """What a record turned out to be."""

    EVENT = 0  # stepped: exactly one prediction
    RESET = 1  # a tombstone that resets its key: no prediction
    REJECT = 2  # a dead letter and nothing else


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that must stand in the dead-letter topic."""

    reason: str  # offline; the worker's words may differ where the step itself failed
    digest: int  # original_digest() of the record
    size: int  # bytes of its value


@dataclass(slots=True)
class KeyState:
    """A warm key's state after its last event."""

    steps: int  # since cold
    offset: int  # of the last event
    time_ms: int  # event time of the last event
    tensors: list[NDArray[Any]]  # (R,*dims) in manifest order; row 0 is the key's


@dataclass(frozen=True, slots=True)
class Expected:
    """What the worker must have predicted for one event."""

    key: bytes  # the record key
    key_number: int  # of that key within the partition
    time_ms: int  # event time
    steps: int  # of the key, this one included
    output: list[float]  # (O,) the numbers of y, each a float32


class OfflineStep:
    """The bundle's step graph for one event, proven against the golden sequences at load."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self._rows = manifest.min_rows
        self._session = _open(bundle)
        self._inputs = [state.input for state in manifest.states]
        self._wanted = ["y", *(state.output for state in manifest.states)]
        self._feed: dict[str, NDArray[Any]] = {"lengths": np.ones(self._rows, np.int32)}
        contract.check_signature(
            bundle,
            {value.name: (value.type, list(value.shape)) for value in self._session.get_inputs()},
            {value.name: (value.type, list(value.shape)) for value in self._session.get_outputs()},
        )
        contract.check_golden(bundle, self._call)

    def cold(self) -> list[NDArray[Any]]:
        """Return the tensors (R,*dims) of a key without history."""
        tensors = contract.initial_states(self.bundle.manifest, self._rows)
        return [tensors[name] for name in self._inputs]

    def one(
        self, x: NDArray[np.float32], tensors: list[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Step one event x (1,F) from `tensors`, untouched; return y (O,) and new tensors."""
        feed = self._feed
        # All R rows are the same event: whatever min_rows is, row 0 cannot tell.
        feed["x"] = (x if self._rows == 1 else np.repeat(x, self._rows, 0))[:, None]
        feed.update(zip(self._inputs, tensors, strict=True))
        y, *after = self._session.run(self._wanted, feed)
        return y[0, 0], after

    def _call(
        self, x: NDArray[np.float32], lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[NDArray[np.float32], Tensors]:
        rows = len(x)
        feed = {"x": x, "lengths": lengths, **states}
        if rows < self._rows:
            feed = {name: np.resize(values, (self._rows, *values.shape[1:]))
                    for name, values in feed.items()}  # fmt: skip
        y, *after = self._session.run(self._wanted, feed)
        return y[:rows], {
            name: value[:rows] for name, value in zip(self._inputs, after, strict=True)
        }


class Refold:
    """The fold of one partition's records and everything it leads one to expect."""

    def __init__(self, step: OfflineStep) -> None:
        manifest = step.bundle.manifest
        self._step = step
        self._decoder = Decoder(manifest.events, manifest.features)
        self._resets = manifest.events.tombstone == "reset"
        self._width = len(manifest.outputs.names)
        # Columns, one entry per record: a list of objects would cost ten times the memory.
        self._offsets, self._kinds, self._key_numbers = array("q"), array("b"), array("i")
        self._times, self._steps, self._outputs = array("q"), array("q"), array("f")
        self._numbers: dict[bytes, int] = {}
        self.keys: list[bytes] = []  # key number -> record key
        self.states: dict[bytes, KeyState] = {}  # warm keys only
        self.rejects: dict[int, Rejected] = {}  # offset -> what must be a dead letter
        self.fingerprint = ""  # "offset:timestamp:crc32" of the last record, as in Redis
        self._blank = bytes(4 * self._width)

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def events(self) -> int:
        """How many of the records were events."""
        return self._kinds.count(Kind.EVENT)

    def fold(self, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None) -> None:
        """Apply the next record of the partition; offsets must increase."""
        self.fingerprint = f"{offset}:{timestamp_ms}:{record_digest(key, value)}"
        no_key = why_no_key(key)
        if key is None or no_key is not None:
            self._reject(offset, no_key or "", key, value)
        elif value is None and self._resets:
            self.states.pop(key, None)
            self._append(offset, Kind.RESET, self._number(key))
        else:
            decoded = self._decoder.decode([value], [timestamp_ms])
            if decoded.rejects:
                self._reject(offset, decoded.rejects[0], key, value)
            else:
                self._apply(offset, key, value, int(decoded.times_ms[0]), decoded.x)

    def position(self, offset: int) -> int | None:
        """Return the number of the record at `offset`, or None when there is none."""
        found = bisect_left(self._offsets, offset)
        if found == len(self._offsets) or self._offsets[found] != offset:
            return None
        return found

    def kind(self, position: int) -> Kind:
        """Say what the record at a position is."""
        return Kind(self._kinds[position])

    def offset(self, position: int) -> int:
        """Return the offset of the record at a position."""
        return self._offsets[position]

    def expected(self, position: int) -> Expected:
        """Return what must have been predicted for the event at a position."""
        number = self._key_numbers[position]
        start = position * self._width
        return Expected(
            self.keys[number],
            number,
            self._times[position],
            self._steps[position],
            self._outputs[start : start + self._width].tolist(),
        )

    def _apply(
        self, offset: int, key: bytes, value: bytes | None, time_ms: int, x: NDArray[np.float32]
    ) -> None:
        state = self.states.get(key)
        before = self._step.cold() if state is None else state.tensors
        y, after = self._step.one(x, before)
        if not (np.isfinite(y).all() and all(np.isfinite(tensor).all() for tensor in after)):
            self._reject(offset, NOT_FINITE, key, value)
            return
        if state is None:
            state = self.states[key] = KeyState(0, offset, time_ms, after)
        state.steps += 1
        state.offset, state.time_ms, state.tensors = offset, time_ms, after
        self._append(offset, Kind.EVENT, self._number(key), time_ms, state.steps)
        self._outputs.frombytes(y.tobytes())

    def _reject(self, offset: int, reason: str, key: bytes | None, value: bytes | None) -> None:
        self.rejects[offset] = Rejected(reason, original_digest(key, value), len(value or b""))
        self._append(offset, Kind.REJECT, NO_KEY)

    def _append(
        self, offset: int, kind: Kind, number: int, time_ms: int = 0, steps: int = 0
    ) -> None:
        self._offsets.append(offset)
        self._kinds.append(kind)
        self._key_numbers.append(number)
        self._times.append(time_ms)
        self._steps.append(steps)
        if kind is not Kind.EVENT:
            self._outputs.frombytes(self._blank)

    def _number(self, key: bytes) -> int:
        number = self._numbers.setdefault(key, len(self.keys))
        if number == len(self.keys):
            self.keys.append(key)
        return number


def record_digest(key: bytes | None, value: bytes | None) -> int:
    """Return the CRC-32 of a record's key and value, a null one counting as empty."""
    return crc32(value or b"", crc32(key or b""))


def original_digest(key: bytes | None, value: bytes | None) -> int:
    """Return a digest that tells a null from an empty key or value, too."""
    return crc32(bytes((key is None, value is None)), record_digest(key, value))


def _open(bundle: Bundle) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        return ort.InferenceSession(
            bundle.step_path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own exception classes have no common root
        raise BundleError(f"{bundle.step_path}: ONNX Runtime cannot load it: {error}") from error
