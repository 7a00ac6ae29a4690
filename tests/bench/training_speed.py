"""How fast keyfold trains, beside PyTorch's nn.LSTM on the same CPU, shapes and threads.

Owns the measurement: two programs that wait for each other, so that both meet the same machine, and
medians over rounds. A round is a number of updates as keyfold-train makes them (forward, squared
error, backward, clipping by norm, Adam, state carried on). PyTorch is no dependency of anything
here: give the interpreter of an environment that has it. Run by hand:

    .venv/bin/python tests/bench/training_speed.py --torch out/torch/bin/python

Writes out/bench/training_speed.json. Beside tokens per second of the clock it tells those per
second of CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

OUT = Path("out/bench/training_speed.json")
SHARE = 0.8  # of PyTorch's speed that is asked for


@dataclass(frozen=True, slots=True)
class Shape:
    """What is trained."""

    units: int  # H of the LSTM
    rows: int  # B
    window: int  # T
    features: int  # F
    updates: int  # in a round

    @property
    def events(self) -> int:
        """Events gone through in a round."""
        return self.rows * self.window * self.updates


SHAPES = (Shape(256, 64, 64, 64, 4), Shape(64, 16, 64, 24, 32), Shape(128, 32, 128, 32, 4))
Round = Callable[[], None]


def keyfold_round(shape: Shape, threads: int) -> Round:
    """Return a function that makes one round with keyfold's own trainer."""
    import numpy as np

    from keyfold.training.cli import _prepare_tensorflow

    _prepare_tensorflow(threads, (shape.units,))
    import keras

    from keyfold.export.events import OutputSpec
    from keyfold.training.config import Fit, Model
    from keyfold.training.data import Sequence
    from keyfold.training.losses import squared_error
    from keyfold.training.model import build
    from keyfold.training.scaling import Scaling
    from keyfold.training.split import Part
    from keyfold.training.trainer import Progress, Trainer
    from keyfold.training.windows import Piece

    keras.utils.set_random_seed(0)
    draw = np.random.default_rng(0)
    scaling = Scaling((0.0,) * shape.features, (1.0,) * shape.features, 0.0, 1.0)
    network = build(Model(units=(shape.units,)), scaling, OutputSpec("regression", ("y",)))
    settings = Fit(rows=shape.rows, window=shape.window, threads=threads, fused=True)
    trainer = Trainer(network, settings, squared_error(1.0))
    length = shape.window * shape.updates
    x = draw.normal(size=(shape.rows, length, shape.features)).astype(np.float32)
    labels = draw.normal(size=(shape.rows, length)).astype(np.float32)
    times = np.zeros(length, np.int64)
    sequences = tuple(Sequence(str(n), x[n], times, labels[n]) for n in range(shape.rows))
    part = Part(sequences, (0,) * shape.rows)
    pieces = [Piece(n, 0, 0) for n in range(shape.rows)]

    def run() -> None:
        trainer.train(part, pieces, Progress(), [], lambda *_: False)

    return run


def torch_round(shape: Shape, threads: int) -> Round:
    """Return a function that makes one round with PyTorch, as its own examples are written."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(shape.features, shape.units, batch_first=True)
    head = torch.nn.Linear(shape.units, 1)
    weights = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    length = shape.window * shape.updates
    x = torch.randn(shape.rows, length, shape.features)
    labels = torch.randn(shape.rows, length)

    def run() -> None:
        states = [torch.zeros(1, shape.rows, shape.units) for _ in range(2)]
        for at in range(0, length, shape.window):
            optimizer.zero_grad(set_to_none=True)
            outputs, states = lstm(x[:, at : at + shape.window], states)
            error = head(outputs)[..., 0] - labels[:, at : at + shape.window]
            error.square().mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            states = [state.detach() for state in states]

    return run


def child(kind: str, number: int, threads: int) -> None:
    """Make a round for every line that comes, and answer with its seconds."""
    make = keyfold_round if kind == "keyfold" else torch_round
    run = make(SHAPES[number], threads)
    run()  # the first one compiles
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        print(json.dumps(seconds), flush=True)


def measure(pythons: dict[str, str], number: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of one shape, of interleaved rounds."""
    children = {
        kind: subprocess.Popen(
            [python, __file__, "--child", kind, str(number), "--threads", str(given.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind, python in pythons.items()
    }
    seconds: dict[str, list[dict[str, float]]] = {kind: [] for kind in pythons}
    try:
        for _ in range(given.rounds):
            for kind, program in children.items():
                seconds[kind].append(_ask(program))
    finally:
        for program in children.values():
            program.communicate()  # the end of its input ends it
    events = SHAPES[number].events
    return {
        kind: {
            name: round(events / statistics.median(item[name] for item in taken))
            for name in ("wall", "cpu")
        }
        for kind, taken in seconds.items()
    }


def _ask(program: subprocess.Popen[str]) -> dict[str, float]:
    if program.stdin is None or program.stdout is None:
        raise RuntimeError("training_speed: expected pipes to the program")
    program.stdin.write("\n")
    program.stdin.flush()
    answer: dict[str, float] = json.loads(program.stdout.readline())
    return answer


def main() -> None:
    """Measure all shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="", help="an interpreter that can import torch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], int(given.child[1]), given.threads)
        return
    pythons = {"keyfold": sys.executable} | ({"torch": given.torch} if given.torch else {})
    found = []
    print("LSTM units, B, T, F: thousand events/s (per second of CPU time)")
    for number, shape in enumerate(SHAPES):
        speeds = measure(pythons, number, given)
        size = f"{shape.units}, {shape.rows}, {shape.window}, {shape.features}"
        line = ", ".join(
            f"{kind} {of['wall'] / 1000:.1f} ({of['cpu'] / 1000:.1f})"
            for kind, of in speeds.items()
        )
        entry: dict[str, Any] = {"shape": size, "events_per_s": speeds}
        if given.torch:
            entry["share"] = {
                name: round(speeds["keyfold"][name] / speeds["torch"][name], 2)
                for name in ("wall", "cpu")
            }
            share = entry["share"]
            line += f"; {share['wall']} of torch ({share['cpu']}), asked {SHARE}"
        print(f"{size}: {line}", flush=True)
        found.append(entry)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
