"""Run any number of schedules: PYTHONPATH=tests python -m simulator --schedules 100000 --seed 1."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

from simulator.pair import run_pairs
from simulator.schedules import Failed, Tally, run_many

CHUNK = 1000  # schedules between two lines


def main() -> int:
    """Run schedules and tell what they covered; 1 at the first violation."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to run")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the others follow it")
    parser.add_argument("--pairs", action="store_true", help="of two groups and their handovers")
    arguments = parser.parse_args()
    run = run_pairs if arguments.pairs else run_many
    began = monotonic()
    total, end = Tally(), arguments.seed + arguments.schedules
    for first in range(arguments.seed, end, CHUNK):
        try:
            total.add_all(run(range(first, min(first + CHUNK, end))))
        except Failed as failed:
            print(failed, file=sys.stderr)
            return 1
        done = min(first + CHUNK, end) - arguments.seed
        print(f"{done} of {arguments.schedules}, {done / (monotonic() - began):.0f}/s", flush=True)
    print(total)
    print("violations: 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
