"""What predictions repeat of their events (worker.passthrough), as the oracle reads it.

Owns an own reading of those members, apart from worker/passthrough.py which writes them, how large
they may be, and their digest: a whole partition's members would take too much memory. Called by
refold.py and prediction.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec
import orjson

from keyfold.export.formats import Format
from keyfold.worker.errors import Reject

REPEATED_AT_MOST = 65_536  # bytes of the members as JSON; a prediction repeats null for more
REPEATED_OFTEN = 1_024  # the same where each of an event's symbols has a prediction
NOTHING = 1 + crc32(b"null")  # digest of null
SPACES = re.compile(rb'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')  # beside texts, which keep theirs
OBJECT: Any = msgspec.json.Decoder(dict[str, msgspec.Raw])  # every member's JSON as it is


class Repeated:
    """Reads the members at `paths` out of records."""

    def __init__(self, paths: Sequence[str], form: Format, *, often: bool = False) -> None:
        """`often`: an event causes a prediction for each symbol."""
        self._paths, self._most = paths, REPEATED_OFTEN if often else REPEATED_AT_MOST
        self._json = form.to_json

    def digest(self, value: bytes | None) -> int:
        """Return the digest of what a prediction for this record repeats."""
        try:
            event = OBJECT.decode(self._json(value or b"").decode())
            members = [orjson.dumps(path) + b":" + _find(event, path) for path in self._paths]
            written = SPACES.sub(rb"\1", b"{" + b",".join(members) + b"}")
            orjson.loads(written)  # whether anybody can read it: 1e999 is JSON, too
        except (msgspec.MsgspecError, UnicodeDecodeError, orjson.JSONDecodeError, Reject):
            return NOTHING
        return NOTHING if len(written) > self._most else event_digest(written)


def event_digest(written: bytes) -> int:
    """Return a number, never 0, of what a prediction repeats: the members' text, without spaces."""
    return 1 + crc32(written)


def event_text(prediction: bytes) -> bytes:
    """Return the text of a prediction's member "event", without spaces."""
    try:
        return SPACES.sub(rb"\1", bytes(OBJECT.decode(prediction)["event"]))
    except RecursionError:  # nested deeper than an event can be
        return b""


def _find(event: dict[str, msgspec.Raw], path: str) -> bytes:
    """Return the JSON at a path; the event's own member of that name comes first."""
    if path in event:
        return bytes(event[path])
    *parents, last = path.split(".")
    for name in parents:
        try:
            event = OBJECT.decode(event.get(name, b"null"))
        except msgspec.ValidationError:  # no object
            return b"null"
    return bytes(event.get(last, b"null"))
