"""A bundle whose events are written in another format than JSON.

Owns the Avro schema of its events. Imported as `from formatted_bundle import make_formatted`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.event_spec import EventSpec

TIME = {"type": "long", "logicalType": "timestamp-millis"}
SCHEMA = {
    "type": "record",
    "name": "Reading",
    "namespace": "factory",
    "fields": [
        {"name": "a", "type": "double"},
        {"name": "b", "type": "float"},
        {"name": "time", "type": TIME},
        {"name": "key", "type": ["null", "string"], "default": None},
    ],
}
AVRO: dict[str, Any] = {"format": "avro", "avro_schema": json.dumps(SCHEMA), "avro_id": 42}
FORMATS: dict[str, dict[str, Any]] = {
    "msgpack": {"format": "msgpack"},
    "packed": {"format": "packed"},
    "avro": AVRO,
}


def make_formatted(folder: Path, name: str) -> Bundle:
    """Write folder/<id>, a bundle of the features a and b in a format, and load it."""
    tiny = make_tiny_bundle(folder / "json")
    events: EventSpec = replace(tiny.manifest.events, **FORMATS[name])
    manifest = replace(tiny.manifest, events=events)
    saved = contract.save(folder, manifest, tiny.step_path.read_bytes(), tiny.golden)
    return contract.load(saved)
