"""The `keyfold-train search` command: arguments, the table, the best settings as a file.

Owns what a person sees of a search; the trials are search.py's. Called by cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from keyfold.training.config import read_config
from keyfold.training.search_ranges import FORMS, read_ranges
from keyfold.training.search_toml import write_best

BEST = "best.toml"  # in the search's folder
SHOWN = 12  # trials in the table


def main(
    arguments: Sequence[str], prepare_tensorflow: Callable[[int, tuple[int, ...]], None]
) -> int:
    """Run the command and return its exit status."""
    given = _parser().parse_args(arguments)
    config = read_config(given.config, given.set)
    ranges = read_ranges(given.ranges, given.config, given.set)
    prepare_tensorflow(config.fit.threads, config.model.units)
    from keyfold.training.search import Search, Task, Trial
    from keyfold.training.train import prepare

    console = Console()
    task = Task(given.config, tuple(given.set), ranges, config, given.seed)
    folder = given.out / f"search-{given.config.stem}"
    search = Search(task, prepare(config, console), folder)
    names = [item.name for item in ranges]

    def line(trial: Trial) -> str:
        loss = f"{trial.loss:.6g}" if trial.loss is not None else "-"
        values = " ".join(f"{name}={trial.values.get(name, '?')}" for name in names)
        head = f"{trial.number:>6} {loss:>12} {trial.best_pass:>5} {trial.seconds:>8.1f}"
        return f"{head}  {values}{'  ' if trial.why else ''}{trial.why}"

    title = f"{'trial':>6} {'validation':>12} {'pass':>5} {'seconds':>8}  settings"
    done = len(search.trials)
    console.print(f"{done} of {given.trials} trials are done\n{title}", highlight=False)
    for trial in search.run(given.trials):
        console.print(line(trial), highlight=False, markup=False, soft_wrap=True)
    best, settings = search.best()
    console.print(
        f"the best of {len(search.trials)}, by validation loss:\n{title}", highlight=False
    )
    for trial in search.trials[:SHOWN]:
        console.print(line(trial), highlight=False, markup=False, soft_wrap=True)
    head = (
        f"Written by keyfold-train search: the best of {len(search.trials)} trials over "
        f"{given.ranges.name},",
        f"trial {best.number} with a validation loss of {best.loss:.6g}. Its settings: "
        + ", ".join(names),
    )
    changed = [*(flag.partition("=")[0] for flag in given.set), *names]
    write_best((given.config, settings), changed, head, folder / BEST)
    console.print(f"next: keyfold-train {folder / BEST}", soft_wrap=True, highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-train search",
        description="Look for better settings of [model] and [fit], judged on validation only. "
        "The same call again goes on with a search that was ended.",
        epilog=f"RANGES is TOML: [fit] and [model] with settings as {FORMS}.",
    )
    parser.add_argument("config", type=Path, help="settings (TOML), as keyfold-train takes them")
    parser.add_argument("ranges", type=Path, help="what is tried (TOML)")
    parser.add_argument("--trials", type=int, default=20, help="how many in all (default 20)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of training runs")
    parser.add_argument("--seed", type=int, default=0, help="of the settings that are tried")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="override one"
    )
    return parser
