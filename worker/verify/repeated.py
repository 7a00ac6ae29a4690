"""What predictions repeat of their events (worker.passthrough), as the oracle reads it.

Owns an own reading of those members, apart from worker/passthrough.py which writes them, how large
they may be, and their digest: a whole partition's members would take too much memory. Called by
refold.py and prediction.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import orjson

from keyfold.export.events import EventSpec
from keyfold.export.hook import json_of
from keyfold.worker.errors import Reject

REPEATED_AT_MOST = 65_536  # bytes of the members as JSON; a prediction repeats null for more
NOTHING = 1 + crc32(b"null")  # digest of null


class Repeated:
    """Reads the members at `paths` out of records."""

    def __init__(self, paths: Sequence[str], events: EventSpec) -> None:
        self._paths = paths
        self._json = json_of(events.decoder) if events.decoder else bytes

    def digest(self, value: bytes | None) -> int:
        """Return the digest of what a prediction for this record repeats."""
        try:
            event: Any = orjson.loads(self._json(value or b""))
        except (orjson.JSONDecodeError, Reject):
            return NOTHING
        written = _written({path: _find(event, path) for path in self._paths})
        if written is None or len(written) > REPEATED_AT_MOST:
            return NOTHING
        return 1 + crc32(written)


def event_digest(members: Any) -> int:
    """Return a number, never 0, that two equal JSON values have in common."""
    written = _written(members)
    return -1 if written is None else 1 + crc32(written)


def _written(members: Any) -> bytes | None:
    """Return JSON that equal values have in common; None for what is nested too deep for it."""
    try:
        return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return None


def _find(event: Any, path: str) -> Any:
    """Return the value at a path; the event's own member of that name comes first."""
    if not isinstance(event, dict):
        return None
    if path in event:
        return event[path]
    head, _, rest = path.partition(".")
    while rest and isinstance(event, dict):
        event = event.get(head)
        head, _, rest = rest.partition(".")
    return event.get(head) if isinstance(event, dict) else None
