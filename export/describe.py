"""A bundle's contract, as text for a person at a terminal of 80 columns.

Owns the wording and nothing else. Called by `keyfold-export inspect`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from keyfold.export.bundle import Bundle, Manifest
from keyfold.export.event_spec import NUMERIC_UNITS, EventSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.generation import Generate
from keyfold.export.outputs import Anomaly, Forecast, OutputSpec
from keyfold.export.text import Text

WIDTH = 80
LABEL = 12  # columns of the left side
SHOWN_VALUES = 8  # of a category
FORMATS = {
    "json": "JSON object",
    "msgpack": "MessagePack map",
    "packed": "packed numbers",
    "avro": "Avro record of the manifest's schema",
}


def describe(bundle: Bundle) -> str:
    """Return the contract as lines of at most 80 columns, without a final line feed."""
    lines = [
        *_line("bundle", bundle.id),
        *_line("path", str(bundle.path)),
        *_events(bundle.manifest),
        *_model(bundle),
        *_states(bundle.manifest),
        *_provenance(bundle.manifest.provenance),
    ]
    return "\n".join(lines)


def _line(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:<{LABEL}}",
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
    )


def _events(manifest: Manifest) -> Iterator[str]:
    events = manifest.events
    yield ""
    key = f"; in a log file: field {events.key_field!r}" if events.key_field else ""
    yield from _line("key", f"the Kafka record key{key}")
    yield from _line("event time", _time(events))
    yield from _fields(manifest.features, "an event" if events.decoder else FORMATS[events.format])
    if events.format == "packed":
        time = f"the time as int64 (in {events.time_unit}), then " if events.time_field else ""
        yield from _line("", f"little-endian, nothing else: {time}float32 in this order")
    if events.avro_id is not None:
        yield from _line("", f"behind five bytes: zero, then the schema's number {events.avro_id}")
    if events.decoder:
        yield from _line("decoder", f"{events.decoder} makes the event of the record's bytes")
    null = {"reject": "is a reject", "reset": "resets the key (tombstone)"}[events.tombstone]
    yield from _line("null value", null)
    yield from _line("silent key", _expiry(events.reset_after_ms))
    if events.end_field:
        yield from _line("key's end", f"an event whose {events.end_field!r} says so; then cold")
    yield from _outputs(manifest.outputs)


def _time(events: EventSpec) -> str:
    if events.time_field is None:
        return "the record's timestamp"
    if events.time_unit in NUMERIC_UNITS:
        return f"field {events.time_field!r}, in {events.time_unit} since 1970-01-01 UTC"
    form = "ISO 8601" if events.time_unit == "iso" else f"text as {events.time_unit!r}"
    return f"field {events.time_field!r}, {form}, in {events.time_zone} where it names no zone"


def _fields(features: FeatureSpec, what: str) -> Iterator[str]:
    if (text := features.unrolled) is not None:
        yield from _line("event", f"{what}; field {text.field!r} is a text, read symbol by symbol:")
        yield from _line("", f"{_symbols(text)}; at most {text.max_symbols:,} in an event")
        return
    if features.is_plain:
        yield from _line("event", f"{what} with {len(features.fields)} numbers, all required:")
        yield from _line("", ", ".join(features.columns))
        return
    count, width = len(features.fields), len(features.plain_columns)
    if count:
        yield from _line("event", f"{what}; {count} fields become {width} columns:")
    if features.long is not None:
        yield from _line(
            "", f"one per event: {features.long.name!r} names it, {features.long.value!r} holds it"
        )
    for field in features.fields:
        yield from _line("", f"{field.name}: {_field(field)}")
    if features.since_last:
        yield from _line("", "seconds since the key's last event (log1p)")
    if (text := features.inner) is not None:
        beside = "" if count else f"{what}; "
        yield from _line(
            "" if count else "event", f"{beside}field {text.field!r} is a text, read within its "
            f"event: its {text.keep} {text.width} symbols,"
        )  # fmt: skip
        yield from _line("", _symbols(text))


def _symbols(text: Text) -> str:
    symbols = {"byte": "bytes", "char": "characters", "word": "words", "bpe": "merged bytes"}
    lower = ", in lower case" if text.lower else ""
    named = f"{symbols[text.tokenizer]}{lower}"
    return f"{named}, {text.size:,} of them with the end and the unknown one"


def _field(field: Field) -> str:
    kind: str = field.kind
    if kind == "category":
        shown = ", ".join(field.values[:SHOWN_VALUES])
        more = len(field.values) - SHOWN_VALUES
        kind += f" of {len(field.values)} ({shown}{f' and {more} more' if more > 0 else ''})"
    scaled = ", standardised by key" if field.standardise else ""
    stand_in = "0" if field.kind == "category" or field.standardise else f"{field.fill:g}"
    missing = {
        "error": "required",
        "mask": f"missing: {stand_in}, and marked",
        "last": f"missing: the key's last value (before any: {stand_in}), and marked",
    }[field.missing]
    return f"{kind}{scaled}, {missing}"


def _outputs(outputs: OutputSpec) -> Iterator[str]:
    if outputs.answers == "session":
        yield from _line("answers", "once for each session, when it ends, about its last event")
    if outputs.delay:
        yield from _line("answers", f"{outputs.delay} events after the event that is described")
    if outputs.read == "every":
        yield from _line("answers", "at every symbol of a text, the end symbol included")
    if outputs.forecast is not None:
        yield from _forecast(outputs.forecast, outputs.anomaly)
        return
    if outputs.generate is not None:
        yield from _answers(outputs, outputs.generate)
        return
    if outputs.kind == "transcription":
        yield from _line("prediction", "the symbol that is newly recognised, or null:")
        yield from _line("", ", ".join(outputs.names[1:]))
        return
    if outputs.kind == "classification":
        which = f"the {outputs.top} largest probabilities" if outputs.top else "probabilities"
        yield from _line("prediction", f"one label of {len(outputs.names)}, and {which}:")
    else:
        yield from _line("prediction", "numbers, in the label's unit:")
    yield from _line("", ", ".join(outputs.names))
    if (likelihood := outputs.likelihood) is not None:
        yield from _line(
            "anomaly",
            f"flagged above a score of {likelihood.threshold:.4g} ({likelihood.rate:.3%} of the "
            "validation events); the score is the mean of -log(probability) over a text's symbols",
        )


def _answers(outputs: OutputSpec, generate: Generate) -> Iterator[str]:
    """Tell how events are answered."""
    top = f" among the {generate.top_k} likeliest" if generate.top_k else ""
    how = "the likeliest each time"
    if generate.temperature:
        how = f"drawn by their probabilities{top} at temperature {generate.temperature:g}"
    yield from _line(
        "prediction",
        f"a text, one prediction for each of its symbols, at most {generate.most}, up to "
        f"{generate.until!r}: {how}",
    )
    of = "those that are read" if outputs.target is None else _symbols(outputs.target)
    yield from _line("", f"symbols: {of}")


def _forecast(forecast: Forecast, anomaly: Anomaly | None) -> Iterator[str]:
    ahead = ", ".join(map(str, forecast.horizons))
    levels = ", ".join(f"{quantile:g}" for quantile in forecast.quantiles)
    value = f"quantiles {levels}" if levels else "the mean"
    yield from _line("prediction", f"forecast, {ahead} events of the key ahead, {value}:")
    yield from _line("", ", ".join(forecast.fields))
    if anomaly is None:
        yield from _line("anomaly", "is not scored")
        return
    yield from _line(
        "anomaly",
        f"flagged above a score of {anomaly.threshold:.4g} ({anomaly.rate:.3%} of the validation "
        "events); the score is the error in deviations of the field",
    )
    for name, scale in zip(forecast.fields, anomaly.scales, strict=True):
        yield from _line("", f"{name}: deviation {scale:.4g}")
    if anomaly.dynamic is not None:
        yield from _line(
            "",
            f"after {anomaly.dynamic.warm_up} scores a key has its own threshold, from its last "
            f"{anomaly.dynamic.window} (arXiv 1802.04431)",
        )


def _expiry(reset_after_ms: int | None) -> str:
    if reset_after_ms is None:
        return "keeps its state for ever"
    return f"starts anew after {reset_after_ms / 1000:,.10g} s ({reset_after_ms} ms of event time)"


def _model(bundle: Bundle) -> Iterator[str]:
    manifest, golden = bundle.manifest, bundle.golden
    size = bundle.step_path.stat().st_size
    yield ""
    yield from _line("step", f"{bundle.step_path.name}, {size:,} bytes")
    rows = "any number of rows B"
    if manifest.min_rows > 1:
        rows = f"at least {manifest.min_rows} rows B (fewer are padded: same bits at any B)"
    yield from _line("calls", f"{rows}, at most {manifest.max_steps} steps T")
    yield from _line(
        "golden",
        f"{len(golden.x)} sequences, {int(golden.lengths.sum())} steps; difference allowed "
        f"{manifest.tolerance:g} x {golden.scale():.3g}",
    )
    if (decode := manifest.decode) is not None:
        begun = "the initial state" if decode.anew else "what the key's earlier events left"
        yield from _line("decode", f"{bundle.decode_path.name}; each event is read from {begun}")


def _states(manifest: Manifest) -> Iterator[str]:
    yield ""
    yield from _line("state", f"{manifest.state_bytes:,} bytes per key:")
    for state in manifest.kept:
        shape = " x ".join(map(str, state.dims)) or "1"
        names = state.input if state.output == state.input else f"{state.input} -> {state.output}"
        yield from _line(
            "",
            f"{names}: {state.dtype} {shape}, {state.bytes_per_key:,} "
            f"bytes, starts at {state.initial:g}",
        )


def _provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    if not provenance:
        return
    yield ""
    for label, name in (("from run", "run"), ("created", "created"), ("data", "data_sha256")):
        if provenance.get(name):
            yield from _line(label, str(provenance[name]))
    if parent := provenance.get("parent"):
        yield from _line("parent", str(parent.get("bundle") or parent["run"]))
    for part, values in (provenance.get("metrics") or {}).items():
        shown = (f"{name} {value:.4g}" for name, value in values.items() if name != "events")
        yield from _line(part, f"{values.get('events', 0):,} events: {', '.join(shown)}")
    if parity := provenance.get("parity"):
        identical = "yes" if parity.get("bit_identical_in_every_grouping") else "no"
        yield from _line(
            "parity",
            f"largest difference to {parity['reference']} {parity['largest_difference']:.2g} of "
            f"{parity['allowed']:.2g} allowed, over {parity['carried_steps']:,} carried steps; "
            f"bit-identical however events are grouped: {identical}",
        )
