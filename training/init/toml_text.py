"""The commented training.toml of an unknown log: every choice beside what was seen.

Owns the file's wording and order. It decides no role (roles.py) and no size (sizes.py), and
measures nothing (rhythm.py). Called by cli.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from keyfold.training.forecast import LEAST_SCORES
from keyfold.training.init.lines import comment, listed, quoted
from keyfold.training.init.rhythm import Rhythm
from keyfold.training.init.roles import Roles
from keyfold.training.init.sizes import MOST_REJECTS, Found, anomaly_rate, sizes

SHOWN = 60  # columns explained one by one


def write(found: Found, stem: str) -> str:
    """Return the text of training.toml."""
    lines = [
        *comment(
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


def _source(found: Found) -> Iterator[str]:
    table, roles, rhythm = found.table, found.roles, found.rhythm
    yield from listed("files", table.files)
    form = table.form
    if any(".csv" in file.lower() for file in table.files):
        yield f"csv_separator = {quoted(form.separator)}"
        yield f"csv_decimal = {quoted(form.decimal)}"
        yield f"csv_encoding = {quoted(form.encoding)}"
    for file, how in table.differing.items():
        yield from comment(f"The columns differ: {file} is {how}.")
    yield ""
    many = f"{rhythm.keys:,} key{'s' if rhythm.keys != 1 else ''}, "
    events = f"{rhythm.shortest:,}" + (
        f" to {rhythm.longest:,}" if rhythm.longest != rhythm.shortest else ""
    )
    yield from comment(f"The machine that a row belongs to: {roles.key_why}. {many}{events} rows.")
    yield f"key_field = {quoted(roles.key)}"
    if roles.sensor:
        yield from comment("Long format: one sensor per row; the sensors are the features below.")
        yield f"long_name = {quoted(roles.sensor)}"
        yield f"long_value = {quoted(roles.value)}"


def _time(found: Found) -> Iterator[str]:
    time, rhythm = found.roles.time, found.rhythm
    if time is None:
        yield from comment("No column is a time: the order of the rows is the order of events.")
        yield '# time_field = "time"'
        return
    span = f", {rhythm.first} to {rhythm.last}" if rhythm.first else ""
    yield from comment(f"The event time: {time.said}{span}.")
    yield f"time_field = {quoted(time.name)}"
    yield f"time_unit = {quoted(time.unit)}"
    if not time.zoned:
        yield from comment(
            "The times name no zone. If they are local times, name it, such as Europe/Berlin."
        )
        yield f"time_zone = {quoted(found.told.time_zone)}"
    if rhythm.disorder:
        yield from comment(
            f"{rhythm.disorder:,} rows stand before an earlier row of their key: training sorts "
            "them, Kafka will not."
        )
    yield from _rejects(found)
    if rhythm.doubles:
        yield from comment(f"{rhythm.doubles:,} rows repeat another row's key and time: all count.")


def _rejects(found: Found) -> Iterator[str]:
    """Name the rows that cannot be used. Whether so many may be lost is for a person to say."""
    table, lost, words = found.table, found.rhythm.no_time, found.wrong_words
    if table.broken:
        yield from comment(
            f"{table.broken:,} lines cannot be read (first: {table.first_broken}): rejects."
        )
    if lost:
        yield from comment(f"{lost:,} rows have no time or no key: rejects.")
    if words:
        yield from comment(f"{words:,} rows have a word where a number should be: rejects.")
    if (share := found.reject_share) > MOST_REJECTS:
        yield from comment(
            f"These are {share:.1%} of all: training stops, for more than {MOST_REJECTS:.0%} are "
            "rejects. Look at them first; to train without them all the same:"
        )
        yield f"# max_reject_share = {min(1.0, 1.1 * share):.2g}"


def _features(found: Found) -> Iterator[str]:
    roles = found.roles
    kinds: Mapping[str, Mapping[str, str]] = {
        "number": roles.numbers, "boolean": roles.booleans, "category": roles.categories,
    }  # fmt: skip
    yield from comment("The model's inputs, as the events name them. What was seen:")
    shown = 0
    for kind, fields in kinds.items():
        for name, said in fields.items():
            if (shown := shown + 1) > SHOWN:
                continue
            gap = roles.gaps.get(name, 0.0)
            missing = f", {gap:.2%} missing" if gap else ""
            yield from comment(f"  {name}: {kind}, {said}{missing}")
            if name in roles.sentinels:
                yield from comment(f"    {roles.sentinels[name]} looks like no value: see below")
    if shown > SHOWN:
        yield f"#   and {shown - SHOWN} more"
    yield from listed("features", roles.features)
    if roles.booleans:
        yield from listed("booleans", roles.booleans)
    if roles.categories:
        yield from comment("Their values are learned from the training part.")
        yield from listed("categories", roles.categories)
    for name, why in list(roles.left_out.items())[:SHOWN]:
        yield from comment(f"left out: {name}: {why}")
    yield from _words(found)
    yield from _sentinels(found)
    yield ""
    yield from _missing(roles)


def _words(found: Found) -> Iterator[str]:
    words = found.roles.words[:100]
    if words and found.is_csv:
        yield from comment(
            "Words that stand where numbers should. Cells that hold one are missing values, here "
            "and in the files that keyfold-send and keyfold-verify score read; so may numbers be, "
            'such as "-999". In an event of another producer a word is what it is, for a number a '
            "reject, and -999 is a number: it has to send null."
        )
        yield from listed("null_words", words)
    elif words:
        shown = ", ".join(quoted(word) for word in words[:10])
        yield from comment(
            f"Words stand where numbers should: {shown}. Such events are rejects, here and when "
            "served: the producer has to send null."
        )


def _sentinels(found: Found) -> Iterator[str]:
    if not found.roles.sentinels:
        return
    way = "write null in their place, or let a data.decoder do it"
    if found.is_csv:
        way = 'put it into null_words as it is written in the file, such as "-999"'
    shown = "; ".join(f"{name}: {said}" for name, said in found.roles.sentinels.items())
    yield from comment(
        f"Far outside the range of all other values, and learned as numbers: {shown}. If it stands "
        f"for a missing value, {way}."
    )


def _missing(roles: Roles) -> Iterator[str]:
    gappy = [name for name in roles.features if roles.gaps.get(name)]
    if roles.sensor:
        yield from comment("Every row holds one sensor: the others keep their last value.")
        yield 'missing = "last"'
        return
    yield from comment(
        "What a missing value does: error (the event is a reject), mask (the training mean stands "
        "in) or last (the key's last value); both tell the model that it was missing. For all "
        "fields: missing = ...; for some:"
    )
    yield 'missing = "error"' + ("" if gappy else "   # none was missing")
    if held := [name for name in gappy if name not in roles.categories]:
        yield from listed("missing_last", held)
    if masked := [name for name in gappy if name in roles.categories]:
        yield from listed("missing_mask", masked)


def _rhythm(found: Found) -> Iterator[str]:
    rhythm = found.rhythm
    if found.roles.time is None:
        yield "since_last = false   # there are no times"
        return
    steady = "regular" if rhythm.regular else "irregular"
    said = f"Events of a key come every {_span(rhythm.interval_s)} (median), {steady}"
    if rhythm.gaps:
        said += f"; {rhythm.gaps:,} gaps, the longest {_span(rhythm.longest_gap_s)}"
    yield from comment(f"{said}. since_last tells the model how long ago the last event was.")
    yield f"since_last = {str(not rhythm.regular or rhythm.gaps > 0).lower()}"
    if rhythm.reset_after_s:
        yield from comment(
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
        yield from comment(
            f"What to forecast; not what stays the same in a key or is only 0 and 1: {shown}."
        )
        yield from listed("fields", targets)
    else:
        yield "# fields = []   # which features to forecast; default: all numbers"
    yield "horizons = [1, 5]       # events of the key ahead"
    yield "quantiles = []          # such as [0.1, 0.5, 0.9]; empty: the mean alone"
    yield "anomaly = true          # score each event by its distance from its forecast"
    yield from _rate(found)
    yield 'threshold = "quantile"  # or "dynamic": follows each key\'s own errors'
    yield ""


def _rate(found: Found) -> Iterator[str]:
    events, rate = found.rhythm.validation, anomaly_rate(found)
    if events < LEAST_SCORES:
        yield from comment(
            f"Validation has only about {events} events: scores cannot be calibrated with fewer "
            f"than {LEAST_SCORES}. Take a longer log."
        )
    elif rate > 0.001:
        yield from comment(
            f"Validation has about {events:,} events: about {events * rate:.0f} of them lie above "
            "the threshold, so that a single fault among them does not set it."
        )
    yield f"anomaly_rate = {rate:<8g} # share of validation events that the threshold flags"


def _split(rhythm: Rhythm) -> Iterator[str]:
    yield from comment(f"{rhythm.split_why[0].upper()}{rhythm.split_why[1:]}.")
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
