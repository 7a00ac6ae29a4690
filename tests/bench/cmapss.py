"""`make cmapss DATA=FOLDER`: remaining useful life on C-MAPSS, offline and streamed.

Per seed: trains, exports, streams the official test engines through a real Kafka and the worker,
verifies, and takes the error of the prediction at each engine's last cycle, as published results
do, from the output topic. Choices were made on validation engines only; nothing is chosen here.
Prints a table, writes out/cmapss/results.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from live_worker import Serving

from keyfold.export import bundle as contract
from keyfold.worker.send.event_log import Fields, read_log
from local.services import ApacheKafka, Valkey

OUT = Path("out/cmapss")
CONFIG = "training/configs/cmapss_fd001.toml"
CAP = 125.0


def main() -> int:
    """Run all seeds."""
    parser = argparse.ArgumentParser(prog="make cmapss DATA=FOLDER ARGS=...")
    parser.add_argument("data", help="folder with train_FD001.txt (or .gz) etc.")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    _keyfold("train", "dataset", "cmapss", arguments.data, str(OUT))
    runs = [_run(seed) for seed in range(1, arguments.seeds + 1)]
    names = [name for name in runs[0] if name != "seed"]
    mean = {name: statistics.mean(run[name] for run in runs) for name in names}
    (OUT / "results.json").write_text(json.dumps({"runs": runs, "mean": mean}, indent=2) + "\n")
    print(
        f"{'':<22}" + "".join(f"{'seed ' + str(run['seed']):>12}" for run in runs) + "        mean"
    )
    for name in names:
        values = "".join(f"{run[name]:>12.4g}" for run in runs)
        print(f"{name:<22}{values}{mean[name]:>12.4g}")
    return 0 if all(run["violations"] == 0 for run in runs) else 1


def _run(seed: int) -> dict[str, Any]:
    folder = OUT / f"seed-{seed}"
    begun = time.monotonic()
    _keyfold("train", CONFIG, "--set", f"fit.seed={seed}", "--out", str(folder / "runs"))
    seconds = time.monotonic() - begun
    test = str(OUT / "test.jsonl")
    run = folder / "runs" / "latest"
    offline = json.loads(_keyfold("train", "evaluate", str(run), test, "--json"))
    _keyfold("export", str(run), "--out", str(folder / "bundles"))
    (bundle,) = [path.parent for path in (folder / "bundles").glob("*/manifest.json")]
    streamed = _stream(bundle, Path(test))
    return {
        "seed": seed,
        "training_s": seconds,
        "offline_raw": offline["rmse_last"],
        "offline_capped": offline["rmse_last_capped"],
        **streamed,
    }


def _stream(bundle: Path, log: Path) -> dict[str, float]:
    """Serve the test engines; judge the newest prediction of each."""
    loaded = contract.load(bundle)
    events = list(read_log(str(log), Fields(key="key")))
    labels = {e.key: float(json.loads(e.value or b"")["rul"]) for e in events if e.key is not None}
    with tempfile.TemporaryDirectory() as folder, ApacheKafka() as kafka, Valkey() as valkey:
        serving = Serving(Path(folder), kafka, valkey, loaded, lambda kind: f"cmapss-{kind}")
        serving.send([(e.key, e.value) for e in events])
        with serving.running() as worker:
            serving.wait_saved([worker])
        findings = serving.verify()
        newest: dict[bytes, float] = {}
        for record in serving.records(serving.output):
            newest[record.key()] = json.loads(record.value())["output"]["rul"]
    got = np.array([newest[key] for key in labels])
    truth = np.array(list(labels.values()))
    return {
        "streamed_raw": float(np.sqrt(np.mean((got - truth) ** 2))),
        "streamed_capped": float(np.sqrt(np.mean((got - np.minimum(truth, CAP)) ** 2))),
        "violations": findings.violations,
        "max_abs_difference": findings.max_abs_difference,
    }


def _keyfold(command: str, *arguments: str) -> str:
    program = str(Path(sys.executable).with_name(f"keyfold-{command}"))
    done = subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
