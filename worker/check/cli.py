"""keyfold-worker check: looks at everything a worker needs; joins nothing and changes nothing.

Owns the command line, the order of the questions and the exit status: 0 when nothing must be set
right (warnings included), 2 with a FAIL. The questions about Kafka, Redis and records are in
the modules beside it. Called by worker/cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from keyfold.export.events import Decoder
from keyfold.worker.check.kafka import KafkaSide
from keyfold.worker.check.records import RecordSide
from keyfold.worker.check.redis import RedisSide
from keyfold.worker.check.report import Finding, Question, ask_all, ok
from keyfold.worker.config import Config, read_config
from keyfold.worker.emission import Emission
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.topics import unheard
from keyfold.worker.liveness.health import HOST, check_port
from keyfold.worker.model import Model

FAILED = 2


def main(argv: list[str]) -> int:
    """Ask all questions. Returns the exit status; raises Crash for settings that cannot be read."""
    given = _parser().parse_args(argv)
    config = read_config(given.config, given.set)
    with unheard():
        counts = ask_all(Check(config, str(given.config)).questions(), partial(print, flush=True))
    print()
    told = f"{counts['FAIL']} FAIL, {counts['WARN']} WARN"
    if counts["FAIL"]:
        skipped = f", {counts['skip']} not looked at" if counts["skip"] else ""
        print(f"{told}{skipped}: set right what FAILs, then check again")
        return FAILED
    print(f"{told}; next: keyfold-worker {given.config} --dry-run --max-events 1000")
    return 0


class Check:
    """The questions about one worker.toml; the later ones use what the earlier ones found."""

    def __init__(self, config: Config, file: str) -> None:
        self._config, self._file = config, file
        self._model: Model | None = None

    def questions(self) -> list[Question]:
        """Return all questions in their order."""
        redis, kafka = RedisSide(self._config), KafkaSide(self._config)
        records = RecordSide(
            self._config, self._file, lambda: self.model, lambda: kafka.counts
        )  # fmt: skip
        return [
            Question("settings", self._settings),
            Question("bundle", self._bundle),
            Question("emit", self._emit, ("bundle",)),
            Question("web port", self._web_port),
            Question("redis", redis.reach),
            Question("memory", lambda: redis.memory(self.model.bundle.manifest),
                     ("redis", "bundle")),
            Question("rights", lambda: redis.rights(self.model.bundle.manifest),
                     ("redis", "bundle")),
            Question("kafka", kafka.reach),
            Question("topics", kafka.topics, ("kafka",)),
            Question("sizes", lambda: kafka.sizes(self.model), ("kafka", "bundle")),
            Question("access", kafka.access, ("kafka",)),
            Question("group", kafka.group, ("kafka",)),
            Question("session", kafka.session, ("kafka",)),
            Question("exactly", kafka.transactions, ("kafka",)),
            Question("states", lambda: redis.states(self._file), ("kafka", "redis", "bundle",
                     "topics")),
            Question("records", records.events, ("kafka", "topics", "bundle")),
            Question("keys", records.keys, ("kafka", "topics", "records")),
        ]  # fmt: skip

    @property
    def model(self) -> Model:
        """The bundle's step, once it was loaded."""
        if self._model is None:
            raise Crash("no bundle was loaded")
        return self._model

    def _settings(self) -> Iterator[Finding]:
        kafka, worker = self._config.kafka, self._config.worker
        yield ok(
            f"{self._file}: {kafka.input} -> {kafka.output}, rejects to {kafka.dead_letter}, "
            f"group {kafka.group}, {worker.outputs}, start {worker.start or 'not set'}"
        )

    def _bundle(self) -> Iterator[Finding]:
        model = Model.load(self._config.worker.bundle)
        manifest = model.bundle.manifest
        # Made as the worker makes it: a hook that cannot be imported ends that one at its start.
        Decoder(manifest.events, manifest.features, manifest.outputs.targets)
        self._model = model
        text = manifest.features.text
        read = [field.name for field in manifest.features.fields]
        names = ", ".join([*read, *([] if text is None else [f"{text.field} (a text)"])])
        yield ok(
            f"{self._model.bundle.id}: golden sequences differ by at most "
            f"{self._model.golden_difference:.2g}; reads {names}; state of a key "
            f"{manifest.state_bytes:,} bytes"
        )

    def _emit(self) -> Iterator[Finding]:
        emit = self._config.emit
        rule = Emission.of(emit, self.model.bundle.manifest.outputs)
        if rule is None:
            yield ok("every prediction is emitted")
            return
        yield ok(
            f"{rule.said}; adds {sum(spec.bytes_per_key for spec in rule.states)} bytes to the "
            "state of a key"
        )

    def _web_port(self) -> Iterator[Finding]:
        port = self._config.worker.web_port
        if not port:
            yield ok("worker.web_port is not set: no /live, /ready, /health")
            return
        check_port(port)
        yield ok(f"{HOST}:{port} is free")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-worker check",
        description="Look at everything a worker needs: settings, bundle, Redis, Kafka with its "
        "topics and rights, some records and their keys. Joins no group and changes nothing.",
        epilog="Exit status: 0 a worker can start (warnings included), 2 something must be set "
        "right (FAIL).",
    )
    parser.add_argument("config", nargs="?", type=Path, default=Path("worker.toml"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="override one setting; so does the environment: KEYFOLD_SECTION__NAME",
    )  # fmt: skip
    return parser
