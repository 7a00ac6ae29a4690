"""keyfold-state list and inspect --partition: what Redis holds, and what is wrong with it.

Owns the words and tables. It changes nothing. Called by cli.py.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from keyfold.worker.config import Config
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.state.consent import FOUND_PROBLEMS
from keyfold.worker.state.store_admin import INHERITED, Admin
from keyfold.worker.state.survey import Place, Survey, survey
from keyfold.worker.store import META

MEANING = "inherited states: which bundle folded what is below which offset; #K counts this field"


def list_partitions(config: Config, admin: Admin, _: argparse.Namespace) -> int:
    """Show every partition's watermark, log, keys and problems."""
    found = survey(config, admin)
    print(f"group {config.kafka.group}, topic {config.kafka.input}, bundle {found.identity}")
    Console().print(_table(found))
    if not any(place.held or place.committed for place in found.places):
        print(f"no state of group {config.kafka.group!r} yet")
    healthy = True
    records = HandoverAdmin(admin.redis, config.kafka.input, config.kafka.output)
    for place in found.places:
        for note in (*_notes(place), *_handovers(config, records.read(place.number))):
            print(f"partition {place.number}: {note}")
        for problem in found.problems(place):
            healthy = False
            print(f"partition {place.number}: {problem}")
    return 0 if healthy else FOUND_PROBLEMS


def _table(found: Survey) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("part.", "watermark", "log", "offset", "keys", "layout", "bundle"):
        justify: Literal["left", "right"] = "left" if name in ("log", "bundle") else "right"
        table.add_column(name, justify=justify, overflow="fold")
    for place in found.places:
        table.add_row(
            str(place.number), place.meta("#W", "-"), f"{place.extent.start}-{place.extent.end}",
            "-" if place.committed is None else str(place.committed.offset),
            "-" if place.held is None else str(place.held.states),
            place.meta("#V", "-"), place.meta("#M", "-"),
        )  # fmt: skip
    return table


def _notes(place: Place) -> list[str]:
    """Return what is no problem, but good to know."""
    notes = []
    floor = int(place.meta("#F", "0") or 0)
    if floor:
        notes.append(f"emit floor {floor}: nothing about offsets below it is emitted")
    if place.meta("#G"):
        notes.append(
            f"lost to retention: {place.meta('#G')}; predictions that may miss them say so"
        )
    if place.held is not None and place.held.inherited:
        for folded in place.held.inherited.split(","):
            bundle, _, offset = folded.partition("@")
            notes.append(
                f"inherited: folded by bundle {bundle} below offset {offset} (keyfold-verify "
                f"needs --parent)"
            )
    return notes


def _handovers(config: Config, record: Handovers) -> list[str]:
    """Return whose predictions the output topic holds, where that was ever handed over."""
    group, notes = config.kafka.group, []
    if not record.seams and group in record.waiting:
        notes.append("emits nothing: waits for keyfold-state handover")
    if record.seams:
        past = ", ".join(
            f"{begin} on" if end is None else f"{begin}-{end - 1}"
            for begin, end in record.ranges(group)
        )
        notes.append(
            f"outputs: group {record.last!r} from offset {record.seams[-1].offset} on; this group "
            f"has {f'those about offsets {past}' if past else 'none'}"
        )
    if record.proposal is not None:
        notes.append(
            f"a handover to group {record.proposal.taker!r} at offset {record.proposal.offset} is "
            "proposed"
        )
    return notes


def inspect_partition(config: Config, admin: Admin, number: int) -> int:
    """Show all meta fields of one partition, explained."""
    held = admin.look(config.kafka.input, number)
    name = admin.name(config.kafka.input, number)
    if held is None:
        print(f"partition {number}: Redis holds no {name}")
        return FOUND_PROBLEMS
    print(f"partition {number}: {name}, {held.states} key states")
    fields = {**META, INHERITED: MEANING} if held.inherited else META
    for field, meaning in fields.items():
        value = held.meta.get(field)
        shown = "missing" if value is None else value or "none"
        if field == "#S" and value:
            shown = f"{value} ({as_utc(int(value))})"
        print(f"  {field} {shown}")
        print(f"     {meaning}")
    if held.meta.get("#K") == str(held.counted):
        return 0
    print(f"  expected {held.meta.get('#K')} key states, got {held.counted}")
    return FOUND_PROBLEMS


def as_utc(time_ms: int) -> str:
    """Return a time as ISO 8601 in UTC, its number where no calendar reaches."""
    try:
        moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"
