"""The peers' side of the agreement: settings from the environment, and the bundle's step graph.

Owns reading PEER_* and calling ONNX Runtime with one thread, one event at a time or many rows at
once. A key's state is bytes: its float32 tensors one after another. Runs in every peer's own
environment, so it imports numpy and onnxruntime only, and nothing of keyfold. Imported as
`from peers.step import Settings, Step`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Settings:
    """What to serve."""

    brokers: str  # host:port
    input: str  # topic of JSON events
    output: str  # topic of predictions, with as many partitions
    group: str  # consumer group, and prefix of what is kept in Redis
    redis: str  # redis://host:port/0
    features: tuple[str, ...]  # members of an event, in the model's order
    output_name: str  # member of a prediction
    stores: Path  # an empty folder for local state

    @classmethod
    def read(cls) -> Settings:
        """Read the environment."""
        manifest = json.loads(Path(os.environ["PEER_MANIFEST"]).read_text())
        return cls(
            brokers=os.environ["PEER_BROKERS"],
            input=os.environ["PEER_INPUT"],
            output=os.environ["PEER_OUTPUT"],
            group=os.environ["PEER_GROUP"],
            redis=os.environ["PEER_REDIS"],
            features=tuple(os.environ["PEER_FEATURES"].split(",")),
            output_name=manifest["outputs"]["names"][0],
            stores=Path(os.environ["PEER_STATE_DIR"]),
        )


class Step:
    """The step graph on one thread."""

    def __init__(self) -> None:
        """Load PEER_MODEL with the states that PEER_MANIFEST describes."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        states = json.loads(Path(os.environ["PEER_MANIFEST"]).read_text())["states"]
        self._names = [state["input"] for state in states]
        self._dims = [tuple(state["dims"]) for state in states]
        self._wanted = ["y", *(state["output"] for state in states)]
        ends = np.cumsum([math.prod(dims) for dims in self._dims])
        self._cuts = [slice(int(b), int(e)) for b, e in zip([0, *ends[:-1]], ends, strict=True)]
        self.width = int(ends[-1])  # floats of one key's state
        parts = [np.full(math.prod(s["dims"]), s["initial"], np.float32) for s in states]
        self.cold: bytes = np.concatenate(parts).tobytes()  # of a key that was never seen
        self._one = np.ones(1, np.int32)

    def one(self, x: Sequence[float], state: bytes) -> tuple[float, bytes]:
        """Step one event of one key: its prediction and the key's state after it."""
        outputs, after = self.several([x], state)
        return outputs[0], after

    def several(self, x: Sequence[Sequence[float]], state: bytes) -> tuple[list[float], bytes]:
        """Step T successive events of one key in one call: T predictions, the state after."""
        values = np.frombuffer(state, np.float32)
        feed: dict[str, Any] = {
            "x": np.array([x], np.float32),
            "lengths": self._one if len(x) == 1 else np.array([len(x)], np.int32),
        }
        for name, dims, cut in zip(self._names, self._dims, self._cuts, strict=True):
            feed[name] = values[cut].reshape(1, *dims)
        y, *after = self._session.run(self._wanted, feed)
        return y[0, :, 0].tolist(), b"".join([part.tobytes() for part in after])

    def rows(self, x: Rows, states: Rows) -> tuple[Rows, Rows]:
        """Step one event of each of B keys: x (B,F), states (B,width) -> y (B,), states after."""
        count = len(x)
        feed: dict[str, Any] = {"x": x[:, None], "lengths": np.ones(count, np.int32)}
        for name, dims, cut in zip(self._names, self._dims, self._cuts, strict=True):
            feed[name] = states[:, cut].reshape(count, *dims)
        y, *after = self._session.run(self._wanted, feed)
        return y[:, 0, 0], np.concatenate([part.reshape(count, -1) for part in after], axis=1)
