"""A bundle's contract, as text for a person at a terminal of 80 columns.

Owns the wording and nothing else. Called by `keyfold-export inspect`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from keyfold.export.bundle import Bundle, Manifest

WIDTH = 80
LABEL = 12  # columns of the left side


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
    events, outputs = manifest.events, manifest.outputs
    fields = manifest.features.fields
    yield ""
    key = f"; in a log file: field {events.key_field!r}" if events.key_field else ""
    yield from _line("key", f"the Kafka record key{key}")
    time = "the record's timestamp"
    if events.time_field is not None:
        time = f"field {events.time_field!r}, in {events.time_unit} since 1970-01-01 UTC"
    yield from _line("event time", time)
    yield from _line("event", f"JSON object with {len(fields)} numbers, all required:")
    yield from _line("", ", ".join(fields))
    null = {"reject": "is a reject", "reset": "resets the key (tombstone)"}[events.tombstone]
    yield from _line("null value", null)
    yield from _line("silent key", _expiry(events.reset_after_ms))
    if outputs.kind == "classification":
        yield from _line("prediction", f"one label of {len(outputs.names)}, and probabilities:")
    else:
        yield from _line("prediction", "numbers, in the label's unit:")
    yield from _line("", ", ".join(outputs.names))


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


def _states(manifest: Manifest) -> Iterator[str]:
    yield ""
    yield from _line("state", f"{manifest.state_bytes:,} bytes per key:")
    for state in manifest.states:
        shape = " x ".join(map(str, state.dims))
        yield from _line(
            "",
            f"{state.input} -> {state.output}: {state.dtype} {shape}, {state.bytes_per_key:,} "
            f"bytes, starts at {state.initial:g}",
        )


def _provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    if not provenance:
        return
    yield ""
    for label, name in (("from run", "run"), ("created", "created"), ("data", "data_sha256")):
        if provenance.get(name):
            yield from _line(label, str(provenance[name]))
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
