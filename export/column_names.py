"""Which names are no members of a log's rows, and which there are: for a setting that is misspelt.

Owns the look at a few rows and how members are listed for people. Called by training/data.py and
worker/send/cli.py, which know whose names they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

LOOKED_AT = 100  # rows of a source
SHOWN = 30  # names in a message


def absent_names(rows: Iterable[bytes | None], names: Iterable[str]) -> tuple[set[str], str]:
    """Return those names (or paths) that none of the rows has, and what there is in their place.

    Nothing is absent where no row can be read: whoever reads them all says what is wrong.
    """
    absent, there = set(names), dict[str, None]()
    for row in rows:
        members = _members(row)
        absent = {name for name in absent if not _holds(members, name)}
        there.update(dict.fromkeys(_paths(members, "")))
    listed = ", ".join(itertools.islice(there, SHOWN)) + (", ..." if len(there) > SHOWN else "")
    return (absent if there else set()), listed


def _members(row: bytes | None) -> Mapping[str, Any]:
    try:
        found = orjson.loads(row or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _holds(members: Mapping[str, Any], name: str) -> bool:
    found: Any = members
    if name in members:
        return True
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


def _paths(members: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in members.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name
