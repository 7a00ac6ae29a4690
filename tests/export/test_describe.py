"""The contract as text: every part of a bundle is said, within 80 columns. Needs no service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from text_bundle import make_text_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export.describe import describe
from keyfold.export.events import Anomaly, Dynamic, EventSpec, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field, LongForm


def test_every_part_of_a_messy_forecast_is_said_within_80_columns(tmp_path: Path) -> None:
    tiny = make_tiny_bundle(tmp_path)
    features = FeatureSpec(
        (
            Field("readings.temp", missing="last", fill=20.5),
            Field("on", "boolean", missing="mask", fill=0.25),
            Field("mode", "category", tuple(f"mode {n}" for n in range(12)), missing="mask"),
            Field("load", missing="mask", standardise=True),
        ),
        since_last=True,
        long=LongForm("sensor", "value"),
    )
    outputs = OutputSpec.of_forecast(
        Forecast(("readings.temp",), (1, 5), (0.1, 0.5)), Anomaly((0.75,), 4.2, 0.001, Dynamic())
    )
    events = EventSpec("key", "at", "iso", time_zone="Europe/Berlin", decoder="plant.wire:decode")
    manifest = replace(tiny.manifest, features=features, outputs=outputs, events=events)
    text = describe(replace(tiny, manifest=manifest))
    assert all(len(line) <= 80 for line in text.splitlines())
    joined = " ".join(text.split())
    for part in (
        "field 'at', ISO 8601, in Europe/Berlin where it names no zone",
        "plant.wire:decode makes the event of the record's bytes",
        "4 fields become 20 columns",
        "one per event: 'sensor' names it, 'value' holds it",
        "readings.temp: number, missing: the key's last value (before any: 20.5), and marked",
        "on: boolean, missing: 0.25, and marked",
        "category of 12 (mode 0, mode 1,",
        "and 4 more), missing: 0, and marked",
        "load: number, standardised by key, missing: 0, and marked",
        "seconds since the key's last event",
        "forecast, 1, 5 events of the key ahead, quantiles 0.1, 0.5: readings.temp",
        "flagged above a score of 4.2 (0.100% of the validation events)",
        "readings.temp: deviation 0.75",
        "after 64 scores a key has its own threshold, from its last 256",
        "front.last: float32 1, 4 bytes, starts at nan",
        "front.time_ms: int64 1, 8 bytes",
        "back.forecast: float32 1, 4 bytes, starts at nan",
    ):
        assert part in joined, part


def test_plain_numbers_and_a_pattern_of_time_are_said_shortly(tmp_path: Path) -> None:
    tiny = make_tiny_bundle(tmp_path)
    events = EventSpec(time_field="t", time_unit="%d.%m.%Y")
    text = describe(replace(tiny, manifest=replace(tiny.manifest, events=events)))
    assert "JSON object with 2 numbers, all required:\n            a, b" in text
    assert "field 't', text as '%d.%m.%Y', in UTC where it names no zone" in text


def test_a_format_is_said_with_its_layout(tmp_path: Path) -> None:
    tiny = make_tiny_bundle(tmp_path)

    def said(events: EventSpec) -> str:
        text = describe(replace(tiny, manifest=replace(tiny.manifest, events=events)))
        assert max(map(len, text.splitlines())) <= 80
        return " ".join(text.split())

    assert "MessagePack map with 2 numbers, all required: a, b" in said(EventSpec(format="msgpack"))
    packed = said(EventSpec(time_field="t", time_unit="us", format="packed"))
    assert "packed numbers with 2 numbers, all required: a, b little-endian, nothing else" in packed
    assert "the time as int64 (in us), then float32 in this order" in packed
    assert "nothing else: float32 in this order" in said(EventSpec(format="packed"))
    avro = said(EventSpec(format="avro", avro_schema="{}", avro_id=42))
    assert "Avro record of the manifest's schema with 2 numbers" in avro
    assert "behind five bytes: zero, then the schema's number 42" in avro


def test_a_text_and_its_symbols_are_said(tmp_path: Path) -> None:
    text = describe(make_text_bundle(tmp_path))
    assert all(len(line) <= 80 for line in text.splitlines())
    joined = " ".join(text.split())
    assert "field 'line' is a text, read symbol by symbol" in joined
    assert "bytes, 258 of them with the end and the unknown one; at most 3,000" in joined
