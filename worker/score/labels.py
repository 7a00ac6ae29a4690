"""keyfold-verify labels: the error of predictions, once their labels have come.

Owns the command line, the reading of both logs and the table. The join and the sums are in
live_error.py. It only reads. Called by worker/verify/cli.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.event_spec import EventSpec
from keyfold.export.outputs import OutputSpec
from keyfold.export.tables import read_rows, row_name
from keyfold.worker import command
from keyfold.worker.config import read_config
from keyfold.worker.errors import Crash, Reject
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.score.live_error import Errors, History, LiveError, day_text, label_of
from keyfold.worker.send.event_log import Fields, read_log
from keyfold.worker.send.file_form import add_form_flags, form_of

NO_PLACE = (-1, -1)  # offset and index of what is no prediction
COLUMNS = {"rmse": "RMSE", "mae": "MAE", "accuracy": "accuracy"}


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0: there is a result, 2: there is none."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-verify labels", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    bundle = _bundle(arguments)
    outputs = None if bundle is None else bundle.manifest.outputs
    labels = read_labels(arguments.labels, arguments.field, _fields(arguments, bundle))
    live = LiveError(labels, round(arguments.within_s * 1000), arguments.output, outputs)
    for place, value in _predictions(arguments.predictions):
        try:
            live.add(orjson.loads(value))
        except (orjson.JSONDecodeError, AttributeError, TypeError):
            raise Crash(f"{place}: expected a prediction, got something else") from None
        except Reject as reject:
            raise Crash(f"{place}: {reject}") from reject
    live.finish()
    joined = list(live.join().lines(arguments.within_s))
    if not live.total().labelled:
        raise Crash(
            f"{arguments.labels}: expected labels of the predictions' keys within "
            f"{arguments.within_s:g} s behind them (--within-s), got none that fits "
            f"{live.total().predictions:,} predictions: {'; '.join(joined[1:])}"
        )
    for line in [*joined, *_compared(outputs)]:
        print(f"keyfold-verify labels: {line}", file=sys.stderr)
    for line in table(live):
        print(line)
    if arguments.json is not None:
        _write_json(arguments.json, live)
    return 0


def read_labels(log: str, field: str, fields: Fields) -> dict[bytes, History]:
    """Read a log of labels. Raises Crash naming file, row and field."""
    histories: dict[bytes, History] = {}
    for entry in read_log(log, fields):
        row = orjson.loads(entry.value)
        value: Any = row.get(field)
        for name in field.split(".") if field not in row else ():
            row = row.get(name) if isinstance(row, dict) else None
            value = row
        label = label_of(value)
        if label is not None:
            histories.setdefault(entry.key, History()).add(round(entry.time_ms), label)
    if not histories:
        raise Crash(f"{log}: expected labels in the field {field!r} (--field), got none")
    for history in histories.values():
        history.sort()
    return histories


def _compared(outputs: OutputSpec | None) -> Iterator[str]:
    """Say what was compared where it is not the one prediction of each event."""
    if outputs is not None and outputs.read == "every":
        yield "of each event the last symbol's prediction is compared (outputs.read = 'every')"
    if outputs is not None and outputs.answers == "session":
        yield (
            "a session's label comes before the last event of its key's next session "
            "(outputs.answers = 'session')"
        )


def table(live: LiveError) -> Iterator[str]:
    """Yield the result as lines of a table: the days, and all of them together."""
    names = list(Errors().metrics(live.classifies))
    head = "".join(f"{COLUMNS[name]:>12}" for name in names)
    yield f"{'day (UTC)':<12}{'predictions':>14}{'labelled':>12}{head}"
    days = sorted(live.days.items())
    for name, errors in [*((day_text(day), errors) for day, errors in days), ("all", live.total())]:
        metrics = errors.metrics(live.classifies).values()
        shown = "".join(f"{'-' if m is None else format(m, '.4g'):>12}" for m in metrics)
        yield f"{name:<12}{errors.predictions:>14,}{errors.labelled:>12,}{shown}"


def _write_json(file: Path, live: LiveError) -> None:
    def members(errors: Errors) -> dict[str, Any]:
        counts = {"predictions": errors.predictions, "labelled": errors.labelled}
        return {**counts, **errors.metrics(live.classifies)}

    days = {day_text(day): members(errors) for day, errors in sorted(live.days.items())}
    try:
        file.write_text(json.dumps({"days": days, "all": members(live.total())}, indent=2) + "\n")
    except OSError as error:
        raise Crash(f"{file}: cannot be written: {error.strerror}") from error


def _predictions(given: Path) -> Iterator[tuple[str, bytes]]:
    """Yield predictions and where they are: a scored file, or the output topic of a worker."""
    if given.suffix != ".toml":
        for number, value in read_rows(given):
            yield f"{given}, {row_name(given)} {number}", value
        return
    config = read_config(given)
    topic = config.kafka.output
    with KafkaLog(config.connection) as log:
        for partition in range(log.partitions(topic)):
            extent = log.extent(topic, partition)
            seen: dict[str, tuple[int, int]] = {}  # the input's partition -> its newest
            for message in log.read(topic, partition, extent.start, extent.end):
                value, place = message.value() or b"", f"{topic}:{partition}:{message.offset()}"
                if is_first(value, seen):  # else emitted before, by a worker that then ended
                    yield place, value


def is_first(value: bytes, seen: dict[str, tuple[int, int]]) -> bool:
    """Say whether a prediction stands behind all of `seen`, which it is added to.

    Their ids rise with the records that cause them. What they are about does not: one record may
    cause several about one event, or end sessions of keys whose last events are any.
    """
    source, place = _id(value)
    if place <= seen.get(source, NO_PLACE):
        return False
    seen[source] = place
    return True


def _id(value: bytes) -> tuple[str, tuple[int, int]]:
    """Return topic and partition of a prediction's cause; its offset and the index.

    NO_PLACE: it is no prediction.
    """
    try:
        source, offset, index = orjson.loads(value)["id"].rsplit(":", 2)
        return source, (int(offset), int(index))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return "", NO_PLACE


def _bundle(arguments: argparse.Namespace) -> Bundle | None:
    """Load the bundle that is named, be it by the worker's settings."""
    folder = arguments.bundle
    if folder is None and arguments.predictions.suffix == ".toml":
        folder = read_config(arguments.predictions).worker.bundle
    return None if folder is None else contract.load(folder)


def _fields(arguments: argparse.Namespace, bundle: Bundle | None) -> Fields:
    """Put together where the labels' key and time are: as told, else as in the events."""
    events = EventSpec() if bundle is None else bundle.manifest.events
    key, when = arguments.key or events.key_field, arguments.time or events.time_field
    for name, value in (("--key", key), ("--time", when)):
        if value is None:
            raise Crash(f"{name}: expected the field of {arguments.labels} that holds it, or a "
                        "--bundle that names it")  # fmt: skip
    form = form_of(arguments, bundle)
    unit, zone = arguments.time_unit or events.time_unit, arguments.time_zone or events.time_zone
    return Fields(key or "", when, unit, zone, form)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-verify labels",
        description="Compare predictions with labels that came later, in a log of their own: the "
        "label of an event is the first one of its key at or after it, before the key starts anew "
        "(a prediction with cold = true). A prediction of a session starts the key anew at the "
        "session's last event. With outputs.read = 'every' only an event's last prediction is "
        "compared.",
        epilog="Exit status: 0 there is a result, 2 there is none.",
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="what keyfold-verify score wrote, or "
        "worker.toml: the worker's output topic")  # fmt: skip
    add("labels", metavar="LABELS", help="the log of labels (.csv, .jsonl, .parquet, ...)")
    add("--field", required=True, metavar="FIELD", help="where the label is")
    add("--within-s", type=float, default=0.0, metavar="S", help="how much later than its event a "
        "label may be (default: 0, the same time)")  # fmt: skip
    add("--output", default="", metavar="NAME", help="which output, where there are several, "
        "such as forecast.temperature.1")  # fmt: skip
    add("--bundle", type=Path, metavar="FOLDER", help="take key, time and unit from its "
        "manifest (needed with predictions of sessions or of every symbol)")  # fmt: skip
    add("--key", metavar="FIELD", help="where the labels' key is (default: as the events')")
    add("--time", metavar="FIELD", help="where their time is (default: as the events')")
    add("--time-unit", metavar="UNIT", help="ms, s, us, ns, iso, or a pattern for strptime")
    add("--time-zone", metavar="ZONE", help="of times that name none")
    add("--json", type=Path, metavar="FILE", help="write the numbers as JSON")
    add_form_flags(parser)
    return parser
