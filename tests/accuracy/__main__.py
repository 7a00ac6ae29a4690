"""`make accuracy DATA=FOLDER [TASK=one] [SEEDS=n]`: every task, trained, served and judged.

Owns the command line. A finished (task, seed) is not run again unless its settings changed, so
that a measurement may be stopped and gone on with at any time. Prints the table and writes it
beside out/accuracy/results.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

from accuracy import adfa_ld, cmapss, fsdd, japanese_vowels, multi30k, shakespeare, smap, swda
from accuracy.ledger import Ledger
from accuracy.one_run import Place, run
from accuracy.table import table
from accuracy.task import TEST, Task

from keyfold.export.errors import Crash

MODULES = (
    cmapss, japanese_vowels, smap, multi30k, fsdd,
    adfa_ld, shakespeare, swda,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for module in MODULES for task in module.TASKS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing; return 1 if something failed or a stream was not the offline model."""
    arguments = _parser().parse_args(argv)
    ledger = Ledger(arguments.out / "results.json")
    try:
        for name in arguments.task or TASKS:
            _measure(TASKS[name], ledger, arguments)
    except (Crash, CalledProcessError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    places = [Place(task, arguments.out / task.name) for task in TASKS.values()]
    ready = [place for place in places if (place.folder / TEST).exists()]
    text = table(ledger, [(place.task, place.settings()) for place in ready])
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return _wrong(ledger, ready)


def _measure(task: Task, ledger: Ledger, arguments: argparse.Namespace) -> None:
    """Run the seeds of a task that have no result yet."""
    place = _prepared(task, arguments)
    settings = place.settings()
    if task.baselines is not None and ledger.baselines(task.name, settings) is None:
        ledger.keep_baselines(task.name, settings, task.baselines(place.folder))
    for seed in range(1, (arguments.seeds or task.seeds) + 1):
        result = ledger.find(task.name, seed, settings)
        if result is None or not (arguments.offline or "streamed" in result):
            result = run(place, seed, serve=not arguments.offline)
            ledger.keep(task.name, seed, settings, result)
        print(f"{task.name}, seed {seed}: {result}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make accuracy DATA=FOLDER")
    parser.add_argument("data", type=Path, help="folder with a folder for each data set")
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="only this one")
    parser.add_argument("--seeds", type=int, help="default: 3, or 1 for long ones")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--offline", action="store_true", help="without Kafka")
    return parser


def _prepared(task: Task, arguments: argparse.Namespace) -> Place:
    place = Place(task, arguments.out / task.name)
    if not (place.folder / TEST).exists():
        print(f"{task.name}: reading {arguments.data / task.source}", file=sys.stderr)
        task.prepare(arguments.data / task.source, place.folder)
    return place


def _wrong(ledger: Ledger, places: list[Place]) -> int:
    results = [
        result
        for place in places
        for result in ledger.results(place.task.name, place.settings()).values()
    ]
    return int(any(result.get("violations") for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
