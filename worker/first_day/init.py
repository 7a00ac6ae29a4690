"""keyfold-worker init: writes a commented worker.toml for a bundle.

Owns the command line and where the file goes; the words are in init_text.py. It opens no
connection. The predictions it shows are the model's own, over the example events. Called by
worker/cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from keyfold.worker.errors import Crash
from keyfold.worker.first_day.example_events import KEY, Example, example_events, record_value
from keyfold.worker.first_day.init_text import Names, settings_text, topic_commands
from keyfold.worker.kafka.samples import Taken
from keyfold.worker.model import Model
from keyfold.worker.trial import Trial


def main(argv: list[str]) -> int:
    """Write the file and say what comes next. Raises Crash."""
    given = _parser().parse_args(argv)
    out: Path = given.out
    if out.exists() and not given.force:
        raise Crash(f"{out}: exists already; --force replaces it, --out FILE writes another")
    if ":" in urlsplit(given.redis).netloc.rpartition("@")[0]:
        raise Crash(
            "--redis: expected a URL without a password, which `ps` would show: name "
            f"redis.username and redis.password_file in {out} instead"
        )
    model = Model.load(given.bundle)
    names = Names(
        given.bundle, given.brokers, given.input, given.output or f"{given.input}-predictions",
        given.group or given.output or f"{given.input}-predictions", given.redis,
    )  # fmt: skip
    examples = example_events(model.bundle)
    text = settings_text(
        str(out), names, model.bundle.manifest, examples, _predictions(model, names, examples)
    )
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Crash(f"{out}: cannot be written: {error.strerror}") from error
    print(f"wrote {out} for bundle {model.bundle.id}, with example events in it")
    print("look through it (brokers, topics, group), create the topics unless they exist:")
    for line in topic_commands(names):
        print(f"  {line}")
    print(f"next: keyfold-worker check {out}")
    return 0


def _predictions(model: Model, names: Names, examples: Sequence[Example]) -> list[bytes]:
    """Run the examples as if they were a new topic's first records."""
    if getattr(model.bundle.manifest.events, "decoder", ""):
        return []
    manifest = model.bundle.manifest
    records = [
        Taken(offset, example.time_ms, KEY.encode(), record_value(manifest, example))
        for offset, example in enumerate(examples)
    ]
    outputs = Trial(model, names.input).run([(0, records)])
    return [payload for _, one in outputs for payload in one.payloads]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-worker init",
        description="Write a commented worker.toml for a bundle, with example events in it.",
    )
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder, as keyfold-export named it")
    add("--out", type=Path, default=Path("worker.toml"), metavar="FILE")
    add("--brokers", default="localhost:9092", metavar="HOST:PORT,...", help="Kafka")
    add("--input", default="events", metavar="TOPIC", help="topic of events")
    add("--output", metavar="TOPIC", help="topic of predictions (INPUT-predictions)")
    add("--group", metavar="NAME", help="consumer group (the output's name)")
    add("--redis", default="redis://localhost:6379/0", metavar="URL", help="Redis or Valkey")
    add("--force", action="store_true", help="replace an existing file")
    return parser
