"""Which cases `make bench` serves: a default, and each axis varied alone.

Owns the table below and which of its rows differ from the default in the present worker. Knows
nothing of how a case is served. Called by run.py; the models are made by models.py, the events by
traffic.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keyfold.worker import native
from keyfold.worker.config import Worker

Skew = Literal["uniform", "zipf"]
Form = Literal["json", "packed"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """The events of an input topic; cases with equal traffic share one."""

    keys: int = 10_000  # how many there are; each event draws one
    skew: Skew = "uniform"  # or zipf 1.0: the n-th key is drawn in proportion to 1/n
    form: Form = "json"  # of a record's value


@dataclass(frozen=True, slots=True)
class Case:
    """One way of serving. What is None is left to the worker's own default."""

    name: str  # its row in the table
    layers: tuple[int, ...] = (64,)  # units of the LSTM layers
    traffic: Traffic = Traffic()  # what is served
    processes: int = 1  # of the worker
    save_every_ms: int | None = None  # worker.save_every_ms; 0: each micro-batch
    outputs: str | None = None  # worker.outputs
    native: str | None = None  # worker.native

    @property
    def settings(self) -> dict[str, Any]:
        """The worker's settings, as tests/support/live_worker.py takes them."""
        given = {name: getattr(self, name) for name in ("save_every_ms", "outputs", "native")}
        return {f"worker__{name}": value for name, value in given.items() if value is not None}


DEFAULT = Case("default")  # one LSTM of 64 units, JSON, 10,000 keys, uniform
PURE = Case("native off", native="off")  # pure Python

CASES = (
    DEFAULT,
    PURE,
    Case("2 processes", processes=2),
    Case("save each micro-batch", save_every_ms=0),
    Case("save every 100 ms", save_every_ms=100),
    Case("exactly-once outputs", outputs="exactly-once"),
    Case("packed float32", traffic=Traffic(form="packed")),
    Case("zipf 1.0", traffic=Traffic(skew="zipf")),
    Case("1k keys", traffic=Traffic(keys=1_000)),
    Case("100k keys", traffic=Traffic(keys=100_000)),
    Case("1M keys", traffic=Traffic(keys=1_000_000)),
    Case("H 16", layers=(16,)),
    Case("H 256", layers=(256,)),
    Case("H 256, native off", layers=(256,), native="off"),
    Case("two layers of 128", layers=(128, 128)),
)


def servable(case: Case) -> bool:
    """Say whether the case shows something: not what this worker does by default anyway."""
    worker = Worker(Path("bundle"))
    default = {name: getattr(worker, name) for name in ("save_every_ms", "outputs")}
    default["native"] = "on" if native.available() else "off"
    given = {name: getattr(case, name) for name in default}
    asked = {name: value for name, value in given.items() if value is not None}
    return not asked or asked != {name: default[name] for name in asked}


def chosen(words: Sequence[str]) -> tuple[Case, ...]:
    """Return the servable cases whose name has one of the words in it, all of them without words.

    Raises: SystemExit when a word fits none.
    """
    cases = tuple(case for case in CASES if servable(case))
    for word in words:
        if not any(word in case.name for case in cases):
            raise SystemExit(
                f"--case {word!r}: expected a part of one of: "
                + "; ".join(case.name for case in cases)
            )
    return tuple(case for case in cases if not words or any(word in case.name for word in words))
