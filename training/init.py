"""`keyfold-train init`: from an unknown log to a training.toml that trains as it is.

Owns the command's arguments, what is printed, and the order: read, find roles, find the rhythm,
write. The rules are in init_roles.py and init_rhythm.py. Deterministic: the same files give the
same text. Called by cli.py; needs no TensorFlow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from keyfold.training.init_columns import InitError, read_table
from keyfold.training.init_key import Told
from keyfold.training.init_rhythm import find_rhythm
from keyfold.training.init_roles import find_roles
from keyfold.training.init_sizes import Found, kind_of_label, minutes
from keyfold.training.init_toml import write

WIDTH = 80


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status. Raises Crash with one line."""
    given = _parser().parse_args(arguments)
    if given.out.exists() and not given.force:
        raise InitError(f"{given.out}: exists already; --force writes over it, --out elsewhere")
    told = Told(
        given.key, given.time, given.time_format, given.time_zone, given.label, given.sensor
    )
    found = look(tuple(given.logs), told)
    given.out.write_text(write(found, _named(found.table.files)), encoding="utf-8")
    for line in summary(found):
        print(line)
    print(f"wrote: {given.out}")
    print(f"next: keyfold-train {given.out}")
    return 0


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
    rhythm = find_rhythm(table, roles)
    return Found(table, roles, rhythm, told, kind_of_label(table, told.label))


def _named(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def summary(found: Found) -> Iterator[str]:
    """Say what was found, in lines of at most 80 columns."""
    table, roles, rhythm = found.table, found.roles, found.rhythm
    yield _line("read", f"{table.rows:,} rows of {_named(table.files)}")
    key = roles.key or "none: a file is one key"
    yield _line("key", f"{key} ({rhythm.keys:,} keys)")
    if roles.time is None:
        yield _line("time", "none: the order of the rows (--time COLUMN names one)")
    else:
        yield _line("time", f"{roles.time.name}, {roles.time.said}")
        regular = "regular" if rhythm.regular else "irregular"
        yield _line("", f"every {rhythm.interval_s:.4g} s, {regular}, {rhythm.gaps:,} gaps")
    if rhythm.disorder:
        yield _line("", f"{rhythm.disorder:,} rows are out of order (training sorts them)")
    if roles.sensor:
        yield _line("long", f"sensor {roles.sensor}, value {roles.value}")
    counts = f"{len(roles.numbers)} numbers, {len(roles.booleans)} booleans, "
    yield _line("fields", f"{counts}{len(roles.categories)} categories")
    if roles.gaps:
        worst = max(roles.gaps, key=lambda name: roles.gaps[name])
        yield _line("missing", f"in {len(roles.gaps)}; most in {worst}, {roles.gaps[worst]:.1%}")
    if roles.left_out:
        yield _line("left out", ", ".join(roles.left_out))
    yield _line("task", f"{found.kind}{f' of {found.told.label}' if found.told.label else ''}")
    yield _line("training", f"takes up to {max(1, round(minutes(found)))} min on 2 cores")


def _line(label: str, text: str) -> str:
    line = f"{label:>10}  {text}"
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
