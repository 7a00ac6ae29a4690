"""The worker's settings: one TOML file, environment and flags, read once into a frozen object.

Owns every setting's name, default and meaning, and refuses contradictions by name. Read by the
commands of this package; everything else is handed the values it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from keyfold.export import settings
from keyfold.export.connection import SECRET, Connection, Security
from keyfold.export.settings import SettingsError
from keyfold.worker.beginning import problem_with_emit_from, problem_with_start
from keyfold.worker.emit_settings import Emit
from keyfold.worker.redis.url import Access

__all__ = ["Config", "Emit", "Kafka", "Redis", "SettingsError", "Worker", "read_config"]


@dataclass(frozen=True, slots=True)
class Kafka:
    """Where events come from and predictions go."""

    brokers: str  # "host:port,host:port"
    input: str  # topic of events
    output: str  # topic of predictions; the same number of partitions as the input
    group: str = "keyfold"  # consumer group; also the name of the state's home in Redis
    dead_letter: str = ""  # topic of rejects; default: the input's name + ".rejects"
    key_field: str = ""  # member of the event that the record key must equal; "": not checked
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"  # of what is emitted
    session_timeout_s: float = 10.0  # a silent worker loses its partitions after this
    request_timeout_s: float = 30.0  # of one request to a broker
    transaction_timeout_s: float = 30.0  # exactly-once outputs: a dead worker's open transaction

    def __post_init__(self) -> None:
        for name in ("brokers", "input", "output", "group"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected a name, got none")
        for name in ("session_timeout_s", "request_timeout_s", "transaction_timeout_s"):
            _expect_positive(name, getattr(self, name))
        for broker in self.brokers.split(","):
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"brokers: expected host:port,host:port, got {broker.strip()!r}")
        if self.output == self.input:
            raise ValueError("output: expected another topic than kafka.input")
        if not self.dead_letter:
            object.__setattr__(self, "dead_letter", f"{self.input}.rejects")
        if self.dead_letter in (self.input, self.output):
            raise ValueError("dead_letter: expected a topic of its own")
        if self.session_timeout_s > self.request_timeout_s:
            raise ValueError("session_timeout_s: expected at most kafka.request_timeout_s")


@dataclass(frozen=True, slots=True)
class Redis:
    """Where the state lives. Must run with maxmemory-policy noeviction."""

    # Also redis+sentinel:// and redis+cluster://, with TLS rediss://: see README.
    url: str = field(default="redis://127.0.0.1:6379/0", repr=False)  # where it listens
    timeout_s: float = 5.0  # of one command, before it is tried again
    username: str = ""  # ACL user; "": the one in the URL, or Redis' own "default"
    password: str = field(default="", repr=False, metadata=SECRET)  # best by password_file
    sentinel_username: str = ""  # of the Sentinels, where they have users of their own
    sentinel_password: str = field(default="", repr=False, metadata=SECRET)  # of the Sentinels
    ca_file: Path | None = None  # rediss://: PEM of who signed the servers; none: the system's
    cert_file: Path | None = None  # rediss://: PEM of our certificate, where they ask for one
    key_file: Path | None = None  # rediss://: PEM of its private key
    key_password: str = field(default="", repr=False, metadata=SECRET)  # of an encrypted key

    def __post_init__(self) -> None:
        _expect_positive("timeout_s", self.timeout_s)
        self.access  # noqa: B018 - which refuses contradictions

    @property
    def access(self) -> Access:
        """How Redis is reached; every client is made from it."""
        names = [item.name for item in fields(Access)]
        return Access(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class Worker:
    """What is served and how."""

    bundle: Path  # folder written by keyfold-export
    start: str = ""  # where a new group begins: earliest, latest, a time or -7d; no default
    emit_from: str = ""  # a new group folds silently up to there: now, a time, -1d; or handover
    processes: int = 1  # workers that one command starts, in the same group: one per core
    # Above 64 KiB of them, as JSON, the prediction's "event" is null.
    passthrough: tuple[str, ...] = ()  # members of the event that its prediction repeats
    outputs: Literal["at-least-once", "exactly-once"] = "at-least-once"  # see README
    on_bundle_change: Literal["halt", "rebuild", "reset"] = "halt"  # states of another bundle
    on_lost_range: Literal["halt", "mark-and-continue"] = "halt"  # retention overtook the state
    max_events: int = 8192  # most events in one micro-batch, over all partitions
    max_buffer_bytes: int = 64 << 20  # of fetched records waiting, over all partitions
    max_resident_keys: int = 1_000_000  # keys kept in memory; idle ones above this are dropped
    native: Literal["auto", "on", "off"] = "auto"  # the native module: where there is one; must be
    save_every_ms: int = 0  # 0: save after each micro-batch; else write-behind at this interval
    drain_s: float = 10.0  # longest wait for a micro-batch in flight on revocation or stop
    stuck_after_s: float = (
        120.0  # no progress in spite of lag for so long ends the worker; 0: never
    )
    metrics_every_s: float = 10.0  # of the log line with rates, lag and microseconds per step
    web_port: int = 0  # Faust's web server on loopback; 0: off; worker i of several: web_port + i
    agents: tuple[str, ...] = ()  # "package.module:function", called with the app before it starts

    def __post_init__(self) -> None:
        for name in ("max_events", "max_buffer_bytes", "max_resident_keys"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("save_every_ms", "drain_s", "stuck_after_s", "metrics_every_s", "web_port"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name, problem in (
            ("start", problem_with_start(self.start)),
            ("emit_from", problem_with_emit_from(self.emit_from)),
        ):
            if problem:
                raise ValueError(f"{name}: {problem}")
        if "" in self.passthrough or len(set(self.passthrough)) < len(self.passthrough):
            raise ValueError(
                f"passthrough: expected distinct names of members, got {list(self.passthrough)}"
            )
        if self.processes < 1:
            raise ValueError(f"processes: expected at least 1, got {self.processes}")
        most = 65536 - self.processes  # worker i answers on web_port + i
        if self.web_port > max(0, most):
            several = f", for {self.processes} workers" if self.processes > 1 else ""
            raise ValueError(f"web_port: expected at most {most}{several}, got {self.web_port}")

    @property
    def exactly_once(self) -> bool:
        """Whether outputs go out in transactions together with the group offset."""
        return self.outputs == "exactly-once"


def _expect_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive number of seconds, got {value}")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a worker and of the commands that look after it."""

    kafka: Kafka  # the log
    worker: Worker  # the service
    redis: Redis = field(default_factory=Redis)  # the state
    security: Security = field(default_factory=Security)  # how Kafka is reached
    emit: Emit = field(default_factory=Emit)  # which predictions go out

    @property
    def connection(self) -> Connection:
        """How Kafka is reached; every client is made from it."""
        return Connection(self.kafka.brokers, self.security)

    def __post_init__(self) -> None:
        kafka = self.kafka
        if self.emit.alert_topic in (kafka.input, kafka.output, kafka.dead_letter):
            raise SettingsError(
                "emit.alert_topic: expected a topic of its own, got "
                f"{self.emit.alert_topic!r}, which is in use for something else"
            )
        # So long W may stand still though all is well.
        least_s = max(3 * self.redis.timeout_s, 2 * self.worker.save_every_ms / 1000)
        if 0 < self.worker.stuck_after_s < least_s:
            raise SettingsError(
                f"worker.stuck_after_s: expected 0 or at least {least_s:g} (redis.timeout_s and "
                f"worker.save_every_ms), got {self.worker.stuck_after_s:g}"
            )


def read_config(
    file: Path | None,
    flags: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read the worker's settings. Raises SettingsError by the setting's name.

    Relative paths in the file are relative to the working directory, as in the shell.
    """
    return settings.read(Config, file, os.environ if environment is None else environment, flags)
