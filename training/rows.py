"""Records made ready for the decoder: the user's hook, static tables.

Owns what happens between a source and the decoder, so that what is decoded is the event as JSON,
with every member that is known of it. Knows no features. Called by data.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from keyfold.export.columns import category_text
from keyfold.export.errors import Crash, Reject
from keyfold.export.hook import json_of
from keyfold.export.tables import file_key
from keyfold.training.settings_data import Data
from keyfold.training.sources import Chunk, read_files

Event = dict[str, Any]


def prepared(
    chunks: Iterable[Chunk], data: Data, unknown: set[str] | None = None
) -> Iterable[Chunk]:
    """Return the chunks with values as the decoder is to see them. Raises Crash: a bad table.

    `unknown` gathers, as the chunks are read, the keys that the static table does not have.
    """
    if data.decoder:
        chunks = _converted(chunks, json_of(data.decoder))
    changes: list[Callable[[Event, bytes | None, str], Event]] = []
    if data.static:
        changes.append(_Static.read(data, set() if unknown is None else unknown))
    return _changed(chunks, changes) if changes else chunks


def _converted(chunks: Iterable[Chunk], convert: Callable[[bytes], bytes]) -> Iterator[Chunk]:
    for chunk in chunks:
        values: list[bytes | None] = []
        rejects = dict(chunk.rejects)
        for row, value in enumerate(chunk.values):
            try:
                values.append(None if value is None else convert(value))
            except Reject as reject:
                rejects[row] = str(reject)
                values.append(b"{}")
        yield replace(chunk, values=values, rejects=rejects)


def _changed(
    chunks: Iterable[Chunk], changes: list[Callable[[Event, bytes | None, str], Event]]
) -> Iterator[Chunk]:
    for chunk in chunks:
        keys = chunk.keys or [None] * len(chunk.values)
        values = []
        for key, value in zip(keys, chunk.values, strict=True):
            event = _event(value)
            if event is None:
                values.append(value)  # the decoder says what is wrong with it
                continue
            for change in changes:
                event = change(event, key, chunk.source)
            values.append(orjson.dumps(event))
        yield replace(chunk, values=values)


def _event(value: bytes | None) -> Event | None:
    try:
        event = None if value is None else orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) else None


@dataclass(frozen=True, slots=True)
class _Static:
    """What is known of each key."""

    rows: Mapping[str, Event]  # key -> members
    key_field: str  # of the events; "": the file's name
    unknown: set[str]  # keys of events that have no row

    @classmethod
    def read(cls, data: Data, unknown: set[str]) -> _Static:
        """Read the table; it has the key's column and one row per key."""
        name = data.key_field or "key"
        rows: dict[str, Event] = {}
        for chunk in read_files((data.static,), data):
            for place, value in zip(chunk.places, chunk.values, strict=True):
                row = _event(value) or {}
                key = _key(row, name)
                row.pop(name, None)
                if key is None:
                    raise Crash(f"{data.static}, {place}: field {name!r}: expected a key, got none")
                if key in rows:
                    raise Crash(
                        f"{data.static}, {place}: field {name!r}: expected each key once, got one "
                        "twice"
                    )
                rows[key] = row
        return cls(rows, data.key_field, unknown)

    def __call__(self, event: Event, key: bytes | None, source: str) -> Event:
        if key is not None:
            text: str | None = key.decode(errors="backslashreplace")
        else:
            text = _key(event, self.key_field) if self.key_field else file_key(source).decode()
        if text is None:
            return event
        if text not in self.rows:
            self.unknown.add(text)
            return event
        # An event's own value wins, wherever it stands.
        known = self.rows[text].items()
        return {**event, **{name: v for name, v in known if _member(event, name) is None}}


def _key(event: Event, path: str) -> str | None:
    value = _member(event, path)
    return None if isinstance(value, bool | list | dict) else category_text(value)


def _member(event: Event, path: str) -> Any:
    """Return the member at a path, as export/members.py finds it."""
    if path in event:
        return event[path]
    value: Any = event
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
