"""Members of an event that its prediction repeats (worker.passthrough).

Owns reading them out of the record and where they stand in the prediction. They are data for
whoever reads predictions and change nothing in the fold: an event without them is still one. Called
by worker/pipeline.py, only where members are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from keyfold.export.events import EventSpec
from keyfold.export.hook import json_of
from keyfold.worker.errors import Reject

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
        """Return the members as a JSON object; null where they cannot be read."""
        try:
            event = orjson.loads(value or b"" if self._json is None else self._json(value or b""))
        except (orjson.JSONDecodeError, Reject):
            # The decoder takes less than all of the record: text that is no UTF-8 may stand
            # elsewhere in it.
            return b"null"
        return orjson.dumps({path: _at(event, path, names) for path, names in self._paths})


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
