"""Members of an event that its prediction repeats (worker.passthrough).

Owns reading them out of the record and where they stand in the prediction. They are data for
whoever reads predictions and change nothing in the fold: an event without them is still one. An
event's producer decides how large they are, and one prediction that fits no request would end every
worker that takes its partition: so there is an end to their size. Called by worker/pipeline.py,
only where members are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from keyfold.export.events import EventSpec
from keyfold.export.hook import json_of
from keyfold.worker.errors import Reject

MOST_BYTES = 64 * 1024  # of the member "event"; a larger one is null
GAP = b',"gap":true}'  # of a prediction whose key may have lost events: the last member


class Passthrough:
    """Adds the members at some paths to predictions."""

    def __init__(self, paths: Sequence[str], events: EventSpec) -> None:
        self._paths = [(path, path.split(".")) for path in paths]
        self._json: Callable[[bytes], bytes] | None = None
        if events.decoder:
            self._json = json_of(events.decoder)

    def added(self, payloads: Sequence[bytes], values: Sequence[bytes | None]) -> list[bytes]:
        """Return predictions with the member "event" of the records that caused them."""
        return [
            _with(payload, self._members(value))
            for payload, value in zip(payloads, values, strict=True)
        ]

    def _members(self, value: bytes | None) -> bytes:
        """Return the members as a JSON object; null where they cannot be read or are too large."""
        try:
            event = orjson.loads(value or b"" if self._json is None else self._json(value or b""))
        except (orjson.JSONDecodeError, Reject):
            # The decoder takes less than all of the record: text that is no UTF-8 may stand
            # elsewhere in it.
            return b"null"
        members = {path: _at(event, path, names) for path, names in self._paths}
        try:
            text = orjson.dumps(members)
        except orjson.JSONEncodeError:  # nested deeper than it writes, though not than it reads
            return b"null"
        # Not the record's size: 1e9 is written as 1000000000.0.
        return text if len(text) <= MOST_BYTES else b"null"


def _at(event: Any, path: str, names: Sequence[str]) -> Any:
    """Return what stands at a path: the event's own member of that name, or a nested one."""
    if path in event:
        return event[path]
    for name in names:
        if not isinstance(event, dict) or name not in event:
            return None
        event = event[name]
    return event


def _with(payload: bytes, members: bytes) -> bytes:
    ending = GAP if payload.endswith(GAP) else b"}"
    return payload.removesuffix(ending) + b',"event":' + members + ending
