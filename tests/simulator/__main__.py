"""Run any number of schedules: PYTHONPATH=tests python -m simulator --schedules 100000 --seed 1."""

from __future__ import annotations

import argparse
import sys

from simulator.schedules import Failed, Tally, run_many

CHUNK = 1000  # schedules between two lines


def main() -> int:
    """Run schedules and tell what they covered; 1 at the first violation."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many to run")
    parser.add_argument("--seed", type=int, default=1, help="of the first; the others follow it")
    arguments = parser.parse_args()
    total, end = Tally(), arguments.seed + arguments.schedules
    for first in range(arguments.seed, end, CHUNK):
        try:
            total.add_all(run_many(range(first, min(first + CHUNK, end))))
        except Failed as failed:
            print(failed, file=sys.stderr)
            return 1
        rate = total.schedules / max(total.seconds, 1e-9)
        print(f"{total.schedules} of {arguments.schedules}, {rate:.0f}/s", flush=True)
    print(total)
    print("violations: 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
