"""What a command of keyfold-state says before it changes anything, and how it asks.

Owns the question, the last line and the choice of partitions that several commands share. Knows
nothing of what they do. Called by every command of keyfold-state.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from keyfold.worker.errors import Crash
from keyfold.worker.state.survey import Place, Survey

FOUND_PROBLEMS = 1  # exit status: problems found, or declined
OWNER_STOPS = (
    "A worker that runs these partitions ends with status 70: its supervisor restarts it. "
    "One that is halted goes on within ten seconds."
)


def asked(lines: Iterable[str], yes: bool) -> bool:
    """Say what will be done and ask, unless --yes was given. Raises Crash without a terminal."""
    for line in lines:
        print(line)
    if yes or _agreed():
        return True
    print("nothing was changed")
    return False


def done() -> int:
    """Say the last line of a command that changed a partition; return its exit status."""
    print("done")
    return 0


def chosen(survey: Survey, arguments: argparse.Namespace) -> Sequence[Place]:
    """Return the partitions that --partition or --all names. Raises Crash."""
    if arguments.all:
        return survey.places
    wanted = set(arguments.partition or ())
    known = {place.number for place in survey.places}
    if not wanted or not wanted <= known:
        raise Crash(
            f"--partition: expected 0 to {len(known) - 1}, or --all; got {sorted(wanted - known)}"
        )
    return [place for place in survey.places if place.number in wanted]


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise Crash("expected --yes, or a terminal to ask at")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
