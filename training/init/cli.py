"""`keyfold-train init`: from an unknown log to a training.toml that trains as it is.

Owns the command's arguments and the order: read, find roles, find the rhythm, write. The rules are
in roles.py and rhythm.py, what is printed is in summary.py. Deterministic: the same files give the
same text. Called by training/cli.py; needs no TensorFlow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from keyfold.training.init.columns import InitError, read_table
from keyfold.training.init.key import Told
from keyfold.training.init.rhythm import find_rhythm
from keyfold.training.init.roles import find_roles
from keyfold.training.init.sizes import Found, kind_of_label
from keyfold.training.init.summary import named, summary
from keyfold.training.init.toml_text import write

LEAST_ROWS = 20  # fewer leave validation without anything to judge


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status. Raises Crash with one line."""
    given = _parser().parse_args(arguments)
    _check(given.out, given.time_zone, force=given.force)
    told = Told(
        given.key, given.time, given.time_format, given.time_zone, given.label, given.sensor
    )
    found = look(tuple(given.logs), told)
    try:
        given.out.write_text(write(found, named(found.table.files)), encoding="utf-8")
    except OSError as error:
        raise InitError(f"{given.out}: cannot be written: {error.strerror}") from error
    for line in summary(found):
        print(line)
    print(f"wrote: {given.out}")
    print(f"next: keyfold-train {given.out}")
    return 0


def _check(out: Path, zone: str, *, force: bool) -> None:
    """Refuse, before a long log is read, what would come to nothing after it."""
    if out.exists() and not force:
        raise InitError(f"{out}: exists already; --force writes over it, --out elsewhere")
    if not out.parent.is_dir():
        raise InitError(f"--out {out}: expected a folder that exists, got {out.parent}")
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InitError(
            f"--time-zone: expected a zone such as 'Europe/Berlin' that this machine knows (else: "
            f"pip install tzdata), got {zone!r}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-train init",
        description="Look at event logs and write a commented training.toml that trains as it is.",
    )
    parser.add_argument("logs", nargs="+", help="files: .csv, .jsonl, .parquet (also .gz)")
    parser.add_argument("--out", type=Path, default=Path("training.toml"), help="file to write")
    parser.add_argument("--label", default="", metavar="COLUMN", help="what is to be predicted")
    parser.add_argument("--key", metavar="COLUMN", help="whose row it is; '': the file's name")
    parser.add_argument("--time", metavar="COLUMN", help="the event time; '': the rows' order")
    parser.add_argument(
        "--time-format",
        default="",
        metavar="FORM",
        help="s, ms, us, ns, iso, or a pattern: %%d.%%m.%%Y",
    )
    parser.add_argument(
        "--time-zone", default="UTC", metavar="ZONE", help="of times without one: Europe/Berlin"
    )
    parser.add_argument(
        "--sensor", metavar="COLUMN", help="long format: the sensor's name; '': not long"
    )
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    return parser


def look(files: tuple[str, ...], told: Told) -> Found:
    """Find everything out about some files."""
    table = read_table(files)
    roles = find_roles(table, told)
    rhythm = find_rhythm(table, roles, told.label)
    if (usable := table.rows - rhythm.no_time) < LEAST_ROWS:
        raise InitError(
            f"{named(files)}: expected at least {LEAST_ROWS} rows with a time and a key, to train "
            f"and to validate with, got {usable}; take a longer log"
        )
    return Found(table, roles, rhythm, told, kind_of_label(table, told.label))
