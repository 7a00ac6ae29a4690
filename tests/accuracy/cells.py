"""Cells and depths beside each other on tinyshakespeare: `python -m accuracy.cells DATA`.

Owns which networks are compared (SimpleRNN, LSTM and GRU of one to three layers, a transformer),
that all have about PARAMETERS weights and the same minutes of training, and the table. Each is
trained with training/configs/shakespeare.toml but for what is compared and SAME, and judged as the
task `shakespeare` is; what is done is found again in OUT/shakespeare/cells.json. Called by hand
with PYTHONPATH as in `make accuracy`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accuracy.one_run import Place, _keyfold, _offline, read_events
from accuracy.shakespeare import TASKS
from accuracy.task import TEST

PARAMETERS = 400_000
EMBEDDING, SYMBOLS = 64, 67  # of tinyshakespeare: 65 characters, the line break as the end symbol
LAYERS = (1, 2, 3)
GATES = {"simple_rnn": 1, "lstm": 4, "gru": 3}
HEADS, WINDOW, BLOCKS = 4, 64, 4
TRANSFORMER = (f"model.window={WINDOW}", f"model.heads={HEADS}", "model.kv_heads=1")
# Networks so small see a text too seldom in minutes to learn it by heart.
SAME = (f"model.embedding={EMBEDDING}", "model.dropout=0.1")


@dataclass(frozen=True, slots=True)
class Network:
    """One of those compared."""

    name: str  # in the table
    cell: str  # a key of GATES, or "transformer"
    layers: int  # or blocks

    @property
    def units(self) -> int:
        """Units of each layer, so that there are about PARAMETERS weights."""
        step = HEADS if self.cell == "transformer" else 1
        return min(range(8, 2048, step), key=lambda units: abs(self.count(units) - PARAMETERS))

    def count(self, units: int) -> int:
        """Return how many weights there are with so many units."""
        table, head = SYMBOLS * EMBEDDING, (units + 1) * SYMBOLS
        if self.cell == "transformer":
            head_of_keys = units // HEADS
            attention = 2 * units * units + 2 * units * head_of_keys + units + HEADS * WINDOW
            dense = 8 * units * units + 5 * units
            norms = 4 * units
            project = (EMBEDDING + 1) * units
            return table + project + self.layers * (attention + dense + norms) + 2 * units + head
        biases = 2 if self.cell == "gru" else 1
        widths = [EMBEDDING, *[units] * (self.layers - 1)]
        gates = GATES[self.cell]
        return table + head + sum(gates * units * (width + units + biases) for width in widths)

    def settings(self) -> list[str]:
        """Return what is set beside the config."""
        units = f"model.units={json.dumps([self.units] * self.layers)}"
        if self.cell == "transformer":
            return [units, *SAME, "model.family=transformer", *TRANSFORMER]
        return [units, *SAME, f"model.cell={self.cell}"]


NETWORKS = (
    *(Network(f"{cell}, {n} layer{'s' * (n > 1)}", cell, n) for cell in GATES for n in LAYERS),
    Network(f"transformer, {BLOCKS} blocks", "transformer", BLOCKS),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and judge what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m accuracy.cells")
    parser.add_argument("data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each")
    parser.add_argument("--only", default="", help="networks whose name begins so")
    given = parser.parse_args(argv)
    (task,) = [one for one in TASKS if one.name == "shakespeare"]
    folder = given.out / task.name
    if not (folder / TEST).exists():
        task.prepare(given.data / task.source, folder)
    notes = folder / "cells.json"
    done = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    for network in NETWORKS:
        key = f"{network.name}, {given.minutes:g} minutes"
        if network.name.startswith(given.only) and key not in done:
            done[key] = _measured(network, Place(task, folder), given.minutes)
            notes.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    print(table(done))
    return 0


def _measured(network: Network, place: Place, minutes: float) -> dict[str, float]:
    """Train one network and judge it."""
    print(f"{network.name}: {network.units} units", file=sys.stderr, flush=True)
    runs = place.folder / "cells" / network.name.replace(" ", "-").replace(",", "")
    data = f"data.files={json.dumps([str(place.folder / 'train.jsonl')])}"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # also where layers are narrow: of all the same
    settings = [data, f"fit.minutes={minutes}", "fit.passes=1000", "fit.patience=1000"]
    flags = [flag for one in (*settings, *network.settings()) for flag in ("--set", one)]
    _keyfold("train", str(place.config), *flags, "--out", str(runs))
    run = (runs / "latest").resolve()
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    answers = _offline(run, runs / "offline.json", place)
    return {
        "units": network.units,
        "weights": network.count(network.units),
        "passes": len(metrics["history"]["train_loss"]),
        "validation": metrics["metrics"]["validation"]["cross_entropy"],
        **place.task.judge(read_events(place.streamed), answers),
    }


def table(done: dict[str, dict[str, float]]) -> str:
    """Return what was measured as markdown, the best first."""
    head = (
        "| | units | weights | passes | validation | nats a character |\n|---|---|---|---|---|---|"
    )
    rows = [
        f"| {name} | {one['units']} | {one['weights']:,} | {one['passes']} | "
        f"{one['validation']:.3f} | {one['nats']:.3f} |"
        for name, one in sorted(done.items(), key=lambda pair: pair[1]["validation"])
    ]
    return "\n".join([head, *rows])


if __name__ == "__main__":
    raise SystemExit(main())
