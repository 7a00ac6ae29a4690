"""Events that a bundle accepts, made from nothing but the bundle: values of its golden sequences.

Of a bundle that reads texts the symbols there are drawn at random: texts stand in for them.

Owns how an event of a bundle looks as JSON (nested members, kinds, time formats, the long form).
The result is checked with the bundle's own decoder. Called by init.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from keyfold.export.bundle import Bundle, Manifest
from keyfold.export.events import Decoder
from keyfold.export.features import Field
from keyfold.export.formats import format_for
from keyfold.worker.errors import Crash, Reject

FIRST_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z, any whole second would do
STEP_MS = 1000
KEY = "machine-1"  # stands for a key of the user's own
DIGITS = 5  # significant ones of a number
TEXTS = ("a text", "another one, longer than the first", "")  # empty text is an event, too
PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Example:
    """One event as it would stand in the topic."""

    value: bytes  # JSON, whatever the bundle's format is
    time_ms: int  # event time, also the record's timestamp


def example_events(bundle: Bundle, count: int = 3) -> list[Example]:
    """Make `count` consecutive events of one key. Raises Crash when the decoder refuses them.

    With a decoder hook the JSON shows what the hook has to return; it is not checked.
    """
    manifest = bundle.manifest
    made = []
    for number in range(count):
        time_ms = FIRST_MS + number * STEP_MS
        value = _value(bundle, number, time_ms, ends=number == count - 1)
        made.append(Example(value, time_ms))
    if not getattr(manifest.events, "decoder", ""):
        _check(manifest, made)
    return made


def record_value(manifest: Manifest, example: Example) -> bytes:
    """Return an example as a record's value, in the bundle's format. Raises Crash."""
    try:
        return format_for(manifest.events, manifest.features).of_json(example.value)
    except Reject as reject:
        raise Crash(f"bundle {manifest.id}: no example event can be made: {reject}") from reject


def _check(manifest: Manifest, made: list[Example]) -> None:
    decoder = Decoder(manifest.events, manifest.features)
    values = [record_value(manifest, example) for example in made]
    decoded = decoder.decode(values, [e.time_ms for e in made])
    for reason in decoded.rejects.values():
        raise Crash(f"bundle {manifest.id}: no example event can be made: {reason}")


def _value(bundle: Bundle, number: int, time_ms: int, *, ends: bool) -> bytes:
    manifest = bundle.manifest
    event: dict[str, Any] = {}
    if manifest.events.key_field is not None:
        _put(event, manifest.events.key_field, KEY)
    if manifest.events.time_field is not None:
        _put(event, manifest.events.time_field, _time(manifest, time_ms))
    if manifest.events.end_field:
        _put(event, manifest.events.end_field, ends)
    columns = _columns(bundle, number)
    fields, long = manifest.features.fields, manifest.features.long
    if manifest.features.text is not None:
        _put(event, manifest.features.text.field, TEXTS[number % len(TEXTS)])
    if long is not None:
        field = fields[number % len(fields)]
        _put(event, long.name, field.name)
        _put(event, long.value, _member(field, columns))
    else:
        for field in fields:
            if field.name != manifest.events.time_field:
                _put(event, field.name, _member(field, columns))
    return json.dumps(event, ensure_ascii=False).encode()


def _columns(bundle: Bundle, number: int) -> Mapping[str, float]:
    """Return a golden row's values by column: the user's own units, scaling is in the graph."""
    golden = bundle.golden
    row = golden.x[0, number % int(golden.lengths[0])]
    return dict(zip(bundle.manifest.features.columns, row.tolist(), strict=True))


def _member(field: Field, columns: Mapping[str, float]) -> float | bool | str:
    if field.kind == "category":
        hot = [v for v in field.values if columns[f"{field.name}={v}"] > 0]
        return (hot or list(field.values))[0]
    value = columns[field.name]
    return value >= 0.5 if field.kind == "boolean" else float(f"{value:.{DIGITS}g}")


def _put(event: dict[str, Any], path: str, value: object) -> None:
    """Set a member; a dot leads into a nested object, unless something else stands there."""
    *parents, name = path.split(".")
    place: Any = event
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place[name] = value
    else:
        event[path] = value


def _time(manifest: Manifest, time_ms: int) -> int | float | str:
    unit: str = manifest.events.time_unit
    if unit in PER_SECOND:
        return time_ms * PER_SECOND[unit] // 1000
    zone = ZoneInfo(manifest.events.time_zone)
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    if unit == "iso":
        return moment.isoformat().replace("+00:00", "Z")
    return moment.astimezone(zone).strftime(unit)
