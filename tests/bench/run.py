"""`make bench`: events per second of one worker on a real Kafka, beside ONNX Runtime alone.

Every event is JSON with eight numbers, the model an LSTM of 64 units; an event counts when its
prediction is acked and its key's state is saved in Redis. Prints a table, writes
out/bench/results.json. Options: --events, --keys, --runs, --skew, --save-every-ms (see --help).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle, initial_states
from keyfold.worker.model import Model
from local.services import ApacheKafka, Child, Valkey

FEATURES = tuple(f"s{i}" for i in range(8))
UNITS = 64
OUT = Path(__file__).resolve().parents[2] / "out" / "bench" / "results.json"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skew", choices=["uniform", "zipf"], default="uniform")
    parser.add_argument("--save-every-ms", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keyfold-bench-") as folder:
        results = _run(arguments, Path(folder))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    _show(results)
    return 0


def _run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bundle = make_tiny_bundle(folder, features=FEATURES, hidden=UNITS)
    with ApacheKafka(jvm=()) as kafka, Valkey() as valkey:
        names = iter(range(100))
        serving = Serving(
            folder, kafka, valkey, bundle, lambda kind: f"bench-{kind}-{next(names)}",
            arguments.partitions,
        )  # fmt: skip
        _say(f"sending {arguments.events:,} events to {kafka.description}")
        for begin in range(0, arguments.events, 100_000):
            count = min(100_000, arguments.events - begin)
            serving.send(
                make_events(
                    count, arguments.keys, FEATURES, seed=begin, skew=arguments.skew, begin=begin
                )
            )
        rates, ceilings = [], []
        profile: dict[str, float] = {}
        for run in range(arguments.runs):  # interleaved, so that both see the same weather
            ceilings.append(ceiling(bundle))
            serving.group = f"bench-group-{run}"
            rate, profile = _serve(serving, arguments.save_every_ms)
            rates.append(rate)
            _say(f"run {run + 1}: keyfold {rate:,.0f}/s, ONNX Runtime alone {ceilings[-1]:,.0f}/s")
    return {
        "keyfold_events_per_s": statistics.median(rates),
        "onnxruntime_alone_events_per_s": statistics.median(ceilings),
        "share_of_ceiling": statistics.median(rates) / statistics.median(ceilings),
        "runs": rates,
        "us_per_event": profile,
        "setting": {
            "events": arguments.events,
            "keys": arguments.keys,
            "skew": arguments.skew,
            "partitions": arguments.partitions,
            "units": UNITS,
            "features": len(FEATURES),
            "save_every_ms": arguments.save_every_ms,
            "broker": kafka.description,
            "acks": "all, idempotent",
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def ceiling(bundle: Bundle, seconds: float = 1.0) -> float:
    """Return events/s of the step graph alone: T=1, best of three B, one thread."""
    model = Model(bundle)
    best = 0.0
    for rows in (128, 256, 512):
        x = np.random.default_rng(0).normal(size=(rows, 1, len(FEATURES))).astype(np.float32)
        lengths, states = np.ones(rows, np.int32), initial_states(bundle.manifest, rows)
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds / 3:
            model.step(x, lengths, states)
            calls += 1
        best = max(best, rows * calls / (time.perf_counter() - begun))
    return best


def _serve(serving: Serving, save_every_ms: int) -> tuple[float, dict[str, float]]:
    """Serve the whole topic once; return events/s between the first and the last save."""
    total = sum(serving.ends().values())
    with serving.running(worker__metrics_every_s=1, worker__save_every_ms=save_every_ms) as worker:
        return measure(serving, worker, total), _profile(worker)


def measure(serving: Serving, worker: Child, total: int) -> float:
    """Wait until `total` events are saved; return events/s between the first and the last save."""
    first: tuple[float, int] | None = None
    while True:
        saved, now = sum(serving.watermarks().values()), time.perf_counter()
        if first is None and saved:
            first = (now, saved)
        if saved >= total and first is not None:
            return (saved - first[1]) / max(now - first[0], 1e-9)
        if worker.exit_code is not None:
            raise SystemExit(f"the worker ended:\n{worker.log_tail()}")
        time.sleep(0.02)


def _profile(worker: Child) -> dict[str, float]:
    """Read microseconds per event by step from the worker's own last log line."""
    time.sleep(1.2)  # its next line
    line = [text for text in worker.log.read_text().splitlines() if "us/event:" in text][-1]
    words = line.partition("us/event:")[2].split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(results: dict[str, Any]) -> None:
    print(f"keyfold, one worker       {results['keyfold_events_per_s']:>12,.0f} events/s")
    print(f"ONNX Runtime alone        {results['onnxruntime_alone_events_per_s']:>12,.0f} events/s")
    print(f"share of the ceiling      {results['share_of_ceiling']:>12.1%}")
    print("microseconds per event (emit and save are waits, they overlap):")
    for name, spent in results["us_per_event"].items():
        print(f"  {name:<10}{spent:>8.2f}")
    print(f"written to {OUT}")


if __name__ == "__main__":
    raise SystemExit(main())
