"""What `keyfold-train init` says on the terminal: what was found, in lines of 80 columns.

Owns the wording and the order; finds nothing out. Called by cli.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from keyfold.training.forecast import LEAST_SCORES
from keyfold.training.init.columns import TEXT
from keyfold.training.init.roles import WRITTEN
from keyfold.training.init.sizes import MOST_REJECTS, Found, minutes

WIDTH = 80
MOST_LINES = 4  # of one finding


def summary(found: Found) -> Iterator[str]:
    """Say what was found, in lines of at most 80 columns."""
    table = found.table
    yield from _lines("read", f"{table.rows:,} rows of {named(table.files)}")
    if table.broken:
        broken = f"{table.broken:,} lines cannot be read (first: {table.first_broken})"
        yield from _lines("", broken)
    for file, how in table.differing.items():
        yield from _lines("", f"columns differ: {file} is {how}")
    key = found.roles.key or "none: a file is one key"
    yield from _lines("key", f"{key} ({found.rhythm.keys:,} keys)")
    for other in found.roles.other_keys:
        distinct = table.columns[other].distinct
        yield from _lines("", f"or {other} ({distinct:,} keys); to take it: --key {other}")
    yield from _times(found)
    yield from _fields(found)
    label = f" of {found.told.label}" if found.told.label else ""
    yield from _lines("task", f"{found.kind}{label}")
    if found.kind == "forecast" and found.rhythm.validation < LEAST_SCORES:
        few = f"only {found.rhythm.validation} validation events: scores cannot be calibrated"
        yield from _lines("", few)
    yield from _lines("training", f"takes up to {max(1, round(minutes(found)))} min on 2 cores")
    if (share := found.reject_share) > MOST_REJECTS:
        yield from _lines(
            "warning",
            f"{share:.1%} of the lines are rejects: training will stop; to allow so many, set "
            "data.max_reject_share",
        )


def named(files: tuple[str, ...]) -> str:
    """Name files in a few words."""
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _times(found: Found) -> Iterator[str]:
    roles, rhythm = found.roles, found.rhythm
    if roles.time is None:
        yield from _lines("time", "none: the order of the rows (--time COLUMN names one)")
    else:
        yield from _lines("time", f"{roles.time.name}, {roles.time.said}")
        for other in roles.other_times:
            yield from _lines("", f"{other} is a time too; to take it: --time {other}")
        regular = "regular" if rhythm.regular else "irregular"
        yield from _lines("", f"every {rhythm.interval_s:.4g} s, {regular}, {rhythm.gaps:,} gaps")
        if not roles.time.zoned and not roles.time.counts:
            zone = found.told.time_zone
            way = "; another one: --time-zone Europe/Berlin" if zone == "UTC" else ""
            assumed = "assumed to be" if zone == "UTC" else "taken as"
            yield from _lines("", f"it names no zone: {assumed} {zone}{way}")
    if rhythm.no_time:
        yield from _lines("", f"{rhythm.no_time:,} rows have no time or no key")
    if rhythm.disorder:
        yield from _lines("", f"{rhythm.disorder:,} rows are out of order (training sorts them)")


def _fields(found: Found) -> Iterator[str]:
    roles = found.roles
    if roles.sensor:
        yield from _lines("long", f"sensor {roles.sensor}, value {roles.value}")
    counts = f"{len(roles.numbers)} numbers, {len(roles.booleans)} booleans, "
    yield from _lines("fields", f"{counts}{len(roles.categories)} categories")
    if roles.gaps:
        worst = max(roles.gaps, key=lambda name: roles.gaps[name])
        most = f"{worst}, {roles.gaps[worst]:.1%}"
        yield from _lines("missing", f"in {len(roles.gaps)}; most in {most}")
    yield from _words(found)
    for name, said in roles.sentinels.items():
        way = "data.null_words makes it null" if found.is_csv else "send null in its place"
        yield from _lines("", f"{name} has {said}: if that means no value, {way}")
    if roles.left_out:
        yield from _lines("left out", ", ".join(roles.left_out))
    for name, why in roles.left_out.items():
        if why.startswith(WRITTEN):
            yield from _lines("", f"{name}: {why}")


def _words(found: Found) -> Iterator[str]:
    """Say which cells hold words in place of numbers, and what becomes of them."""
    roles = found.roles
    fate = "count as missing" if found.is_csv else "make their rows rejects"
    for name in [*roles.numbers, *([roles.value] if roles.value else [])]:
        column = found.table.columns.get(name)
        count = 0 if column is None else int((column.kinds == TEXT).sum())
        if column is None or not count:
            continue
        yield from _lines(
            "",
            f"{count:,} cells of column {name} are text with a unit or other words, such as "
            f"{column.words[0]!r}, and {fate}",
        )


def _lines(label: str, text: str) -> list[str]:
    """Return a line, or several where it is long; a name that is cut can be copied by nobody."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:>10}  ",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
        max_lines=MOST_LINES,
        placeholder=" ...",
    )
