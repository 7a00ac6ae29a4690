"""The commented training.toml of an unknown log: every choice beside what was seen.

Owns the file's wording and order. It decides no role (init_roles.py) and no size (init_sizes.py),
and measures nothing (init_rhythm.py). Called by init.py.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from keyfold.training.init_rhythm import Rhythm
from keyfold.training.init_roles import Roles
from keyfold.training.init_sizes import Found, sizes

WIDTH = 79
USUAL_REJECTS = 0.005  # of all rows; more need max_reject_share to be set
SHOWN = 60  # columns explained one by one


def quoted(text: str) -> str:
    """Return text as TOML writes it."""
    return json.dumps(text, ensure_ascii=False)


def write(found: Found, stem: str) -> str:
    """Return the text of training.toml."""
    lines = [
        *_comment(
            f"Written by keyfold-train init from {found.table.rows:,} rows"
            + (f" (the first of more) of {stem}." if found.table.more else f" of {stem}.")
            + " Every line may be changed; comments say what was seen. Relative paths are relative"
            " to where keyfold-train is called. All settings: training/config.py."
        ),
        "",
        "[data]",
        *_source(found),
        "",
        *_time(found),
        "",
        *_features(found),
        "",
        *_rhythm(found),
        "",
        *_target(found),
        "[split]",
        *_split(found.rhythm),
        "",
        *_sizes(found),
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    # A path or a name that is cut in two can be copied by nobody.
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


def _list(name: str, items: Iterable[str]) -> list[str]:
    words = [quoted(item) for item in items]
    one = f"{name} = [{', '.join(words)}]"
    if len(one) <= WIDTH:
        return [one]
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 2 > WIDTH - 2:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{word},"
    return [f"{name} = [", *(f"  {line}" for line in lines), "]"]


def _source(found: Found) -> Iterator[str]:
    table, roles, rhythm = found.table, found.roles, found.rhythm
    yield from _list("files", table.files)
    form = table.form
    if any(".csv" in file.lower() for file in table.files):
        yield f"csv_separator = {quoted(form.separator)}"
        yield f"csv_decimal = {quoted(form.decimal)}"
        yield f"csv_encoding = {quoted(form.encoding)}"
    yield ""
    many = f"{rhythm.keys:,} key{'s' if rhythm.keys != 1 else ''}, "
    events = f"{rhythm.shortest:,}" + (
        f" to {rhythm.longest:,}" if rhythm.longest != rhythm.shortest else ""
    )
    yield from _comment(f"The machine that a row belongs to: {roles.key_why}. {many}{events} rows.")
    yield f"key_field = {quoted(roles.key)}"
    if roles.sensor:
        yield from _comment("Long format: one sensor per row; the sensors are the features below.")
        yield f"long_name = {quoted(roles.sensor)}"
        yield f"long_value = {quoted(roles.value)}"


def _time(found: Found) -> Iterator[str]:
    time, rhythm = found.roles.time, found.rhythm
    if time is None:
        yield from _comment("No column is a time: the order of the rows is the order of events.")
        yield '# time_field = "time"'
        return
    span = f", {rhythm.first} to {rhythm.last}" if rhythm.first else ""
    yield from _comment(f"The event time: {time.said}{span}.")
    yield f"time_field = {quoted(time.name)}"
    yield f"time_unit = {quoted(time.unit)}"
    if not time.zoned:
        yield from _comment(
            "The times name no zone. If they are local times, name it, such as Europe/Berlin."
        )
        yield f"time_zone = {quoted(found.told.time_zone)}"
    if rhythm.disorder:
        yield from _comment(
            f"{rhythm.disorder:,} rows stand before an earlier row of their key: training sorts "
            "them, Kafka will not."
        )
    if share := _unusable(found):
        yield from _comment(
            f"{rhythm.no_time + found.table.broken:,} rows have no time or no key or cannot be "
            "read: rejects. More than this share of rejects stops the training:"
        )
        yield f"max_reject_share = {share:.3g}"
    if rhythm.doubles:
        yield from _comment(
            f"{rhythm.doubles:,} rows repeat another row's key and time: all count."
        )


def _unusable(found: Found) -> float:
    """Return the share of rejects to allow; 0: the default does."""
    bad = found.rhythm.no_time + found.table.broken
    share = bad / (found.table.rows + found.table.broken)
    return min(1.0, 1.5 * share) if share > USUAL_REJECTS else 0.0


def _features(found: Found) -> Iterator[str]:
    roles = found.roles
    kinds: Mapping[str, Mapping[str, str]] = {
        "number": roles.numbers, "boolean": roles.booleans, "category": roles.categories,
    }  # fmt: skip
    yield from _comment("The model's inputs, as the events name them. What was seen:")
    shown = 0
    for kind, fields in kinds.items():
        for name, said in fields.items():
            if (shown := shown + 1) > SHOWN:
                continue
            gap = roles.gaps.get(name, 0.0)
            missing = f", {gap:.2%} missing" if gap else ""
            yield from _comment(f"  {name}: {kind}, {said}{missing}")
    if shown > SHOWN:
        yield f"#   and {shown - SHOWN} more"
    yield from _list("features", roles.features)
    if roles.booleans:
        yield from _list("booleans", roles.booleans)
    if roles.categories:
        yield from _comment("Their values are learned from the training part.")
        yield from _list("categories", roles.categories)
    for name, why in list(roles.left_out.items())[:SHOWN]:
        yield from _comment(f"left out: {name}: {why}")
    if roles.words:
        yield from _comment(
            "Words that stand where numbers should, read as missing (in a live event they are "
            "rejects: let the sender leave the member out or send null):"
        )
        yield from _list("null_words", roles.words[:100])
    yield ""
    yield from _missing(roles)


def _missing(roles: Roles) -> Iterator[str]:
    gappy = [name for name in roles.features if roles.gaps.get(name)]
    if roles.sensor:
        yield from _comment("Every row holds one sensor: the others keep their last value.")
        yield 'missing = "last"'
        return
    yield from _comment(
        "What a missing value does: error (the event is a reject), mask (the training mean stands "
        "in) or last (the key's last value); both tell the model that it was missing. For all "
        "fields: missing = ...; for some:"
    )
    yield 'missing = "error"' + ("" if gappy else "   # none was missing")
    if held := [name for name in gappy if name not in roles.categories]:
        yield from _list("missing_last", held)
    if masked := [name for name in gappy if name in roles.categories]:
        yield from _list("missing_mask", masked)


def _rhythm(found: Found) -> Iterator[str]:
    rhythm = found.rhythm
    if found.roles.time is None:
        yield "since_last = false   # there are no times"
        return
    steady = "regular" if rhythm.regular else "irregular"
    said = f"Events of a key come every {_span(rhythm.interval_s)} (median), {steady}"
    if rhythm.gaps:
        said += f"; {rhythm.gaps:,} gaps, the longest {_span(rhythm.longest_gap_s)}"
    yield from _comment(f"{said}. since_last tells the model how long ago the last event was.")
    yield f"since_last = {str(not rhythm.regular or rhythm.gaps > 0).lower()}"
    if rhythm.reset_after_s:
        yield from _comment(
            "A key silent for longer would start anew, without memory of before: useful where a "
            f"gap means another run. This value lies between usual silences and the {rhythm.gaps:,}"
            " gaps."
        )
        yield f"# reset_after_s = {rhythm.reset_after_s:.10g}"
    else:
        yield "# reset_after_s = 3600.0   # a key silent for longer starts anew; no gap seen"


def _span(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _target(found: Found) -> Iterator[str]:
    roles, label = found.roles, found.told.label
    if found.kind != "forecast":
        yield f"label = {quoted(label)}   # predicted at every event; missing: it shapes the state"
        yield f"kind = {quoted(found.kind)}"
        yield ""
        return
    yield "# No label: the model forecasts the next events and scores anomalies."
    yield ""
    yield "[forecast]"
    aside = [*roles.steady, *roles.flags]
    targets = [name for name in roles.numbers if name not in aside]
    if aside and targets:
        shown = ", ".join(aside[:5]) + (", ..." if len(aside) > 5 else "")
        yield from _comment(
            f"What to forecast; not what stays the same in a key or is only 0 and 1: {shown}."
        )
        yield from _list("fields", targets)
    else:
        yield "# fields = []   # which features to forecast; default: all numbers"
    yield "horizons = [1, 5]       # events of the key ahead"
    yield "quantiles = []          # such as [0.1, 0.5, 0.9]; empty: the mean alone"
    yield "anomaly = true          # score each event by its distance from its forecast"
    yield "anomaly_rate = 0.001    # share of validation events that the threshold flags"
    yield 'threshold = "quantile"  # or "dynamic": follows each key\'s own errors'
    yield ""


def _split(rhythm: Rhythm) -> Iterator[str]:
    yield from _comment(f"{rhythm.split_why[0].upper()}{rhythm.split_why[1:]}.")
    yield f"by = {quoted(rhythm.split_by)}"
    if rhythm.split_by == "time":
        yield f'validation_from = "{rhythm.validation_from}"'
        yield f'test_from = "{rhythm.test_from}"'
        return
    yield "validation_share = 0.15"
    yield "test_share = 0.15"


def _sizes(found: Found) -> Iterator[str]:
    chosen = sizes(found)
    yield "[model]"
    yield 'cell = "lstm"'
    yield f"units = [{chosen.units}]   # more learn more, and cost time and state per key"
    yield "input_noise = 0.05   # keeps the model calm about small differences"
    yield ""
    yield "[fit]"
    yield f"rows = {chosen.rows}"
    yield f"window = {chosen.window}    # events that are learned from at a time"
    if chosen.stretch:
        yield f"stretch = {chosen.stretch}  # long histories are cut into so many, side by side"
    yield f"passes = {chosen.passes}    # at most; it stops sooner when nothing improves"
    yield f"patience = {chosen.patience}"
    yield "average = 0.99"
