"""keyfold's programs on a Kafka and a Redis that let nobody in unknown and allow nothing unasked.

Owns one user's topics, group, settings files and grants; what is granted is read from
deploy/ACLS.md, so that the document is what is tested. Watches from outside through the services'
own back doors. Imported as `from secured_serving import SecuredServing`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_worker import Serving

from keyfold.export.bundle import Bundle
from local.services import Child, SecuredKafka, SecuredValkey, grant
from local.services.kafka_secured import PLAIN_USERS

ACLS = Path(__file__).parents[2] / "deploy" / "ACLS.md"
PASSWORD = "hunter2, a secret: with = and % and #"
COMMANDS = {"worker": "cli"} | {name: f"{name}.cli" for name in ("send", "tail", "state", "verify")}
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that has ended."""

    status: int  # exit status
    out: str  # stdout
    err: str  # stderr
    seconds: float  # that it took


@dataclass
class SecuredServing:
    """Topics, a group, a user of Kafka and one of Redis, all of them one test's own."""

    folder: Path
    kafka: SecuredKafka
    valkey: SecuredValkey
    bundle: Bundle
    names: Callable[[str], str]
    mechanism: str = "SCRAM-SHA-512"
    granted: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Whose helpers watch and verify through the back doors.
        self.serving = Serving(self.folder, self.kafka, self.valkey, self.bundle, self.names, 2)
        self.user, self.password = self.names("user"), PASSWORD
        if self.mechanism == "PLAIN":
            ((self.user, self.password),) = PLAIN_USERS.items()
        else:
            self.kafka.add_user(self.user, self.password, self.mechanism)
        self.secret = self.folder / "secret"
        self.secret.write_text(f"{self.password}\n")
        self.redis_secret = self.folder / "redis-secret"
        self.redis_secret.write_text(f"{PASSWORD}\n")

    # -- grants ------------------------------------------------------------------------------------

    def acls(self, title: str) -> list[Any]:
        """Return the Kafka ACLs of a section of deploy/ACLS.md, for this test's names."""
        return [self._acl(shlex.split(line)[1:]) for line in _lines("Kafka", title, "acl ")]

    def allow(self, *titles: str) -> None:
        """Grant what these sections list."""
        for title in titles:
            self.granted += self.acls(title)
        self.kafka.allow(self.granted)

    def withdraw(self) -> None:
        """Take back all that was granted to the user."""
        if self.granted:
            self.kafka.forbid(self.granted)
        self.granted.clear()

    def redis_rules(self, title: str) -> list[str]:
        """Return the rules of a Redis user in a section of deploy/ACLS.md, without the password."""
        (line,) = _lines("Redis", title, "ACL SETUSER ")
        _, _, _, on, password, *rules = line.split()
        assert (on, password) == ("on", ">PASSWORD")
        names = f"{{{self.serving.input}:{self.serving.output}:"
        renamed = [rule.replace("{engines:engines-rul:", names) for rule in rules]
        return [rule.replace("{engines-rul:", f"{{{self.serving.group}:") for rule in renamed]

    def let_in(self, rules: Sequence[str]) -> None:
        """Make the Redis user with these rules."""
        with self.valkey.client() as client:
            client.execute_command(
                "ACL", "SETUSER", self.redis_user, "reset", "on", f">{PASSWORD}", *rules
            )

    @property
    def redis_user(self) -> str:
        """Return the name of this test's user of Redis."""
        return self.names("redis")

    # -- settings ----------------------------------------------------------------------------------

    def settings(self, **changes: Any) -> Path:
        """Write worker.toml; `changes` are section__name="text", "" leaves a setting out."""
        wanted: dict[str, dict[str, Any]] = {
            "kafka": {
                "brokers": self.kafka.at(), "input": self.serving.input,
                "output": self.serving.output, "group": self.serving.group,
                "session_timeout_s": 6.0, "request_timeout_s": 10.0,
            },
            "security": {
                "protocol": "sasl_ssl", "mechanism": self.mechanism, "username": self.user,
                "password_file": str(self.secret), "ca_file": str(self.kafka.authority.file),
            },
            "redis": {
                "url": self.valkey.secure_url(), "username": self.redis_user,
                "password_file": str(self.redis_secret), "timeout_s": 3.0,
                "ca_file": str(self.valkey.authority.file),
            },
            "worker": {
                "bundle": str(self.bundle.path), "start": "earliest", "metrics_every_s": 1,
                "stuck_after_s": 60,
            },
        }  # fmt: skip
        for name, value in changes.items():
            section, _, setting = name.partition("__")
            wanted.setdefault(section, {})[setting] = value
        file = self.folder / "worker.toml"
        file.write_text(_toml(wanted), encoding="utf-8")
        return file

    # -- programs ----------------------------------------------------------------------------------

    def worker(self, **changes: Any) -> Child:
        """Start a worker on its settings file."""
        command = [sys.executable, *self.serving.program, str(self.settings(**changes))]
        return Child(command, self.folder / f"worker-{time.monotonic_ns()}.log")

    def run(
        self, program: str, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> Ended:
        """Run a console command to its end."""
        command = [
            sys.executable,
            "-m",
            f"keyfold.worker.{COMMANDS[program]}",
            *map(str, arguments),
        ]
        begin = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)

    def serve(self, **changes: Any) -> Child:
        """Have a worker save all events that there are, and stop it in an orderly way."""
        worker = self.worker(**changes)
        try:
            self.serving.wait_saved([worker], LIMIT_S)
        except BaseException:
            worker.kill()
            raise
        worker.stop()
        assert worker.exit_code == 0, worker.log_tail()
        return worker

    def _acl(self, words: Sequence[str]) -> Any:
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert given.pop("--allow-principal") == "User:keyfold"
        operation = given.pop("--operation")
        prefixed = given.pop("--resource-pattern-type", "literal") == "prefixed"
        ((kind, name),) = given.items()
        serving = self.serving
        name = {
            ("--topic", "engines"): serving.input,
            ("--topic", "engines-rul"): serving.output,
            ("--topic", "engines.rejects"): serving.dead_letter,
            ("--group", "engines-rul"): serving.group,
            ("--transactional-id", "engines-rul:engines:"): f"{serving.group}:{serving.input}:",
        }[kind, name]
        return grant(self.user, operation, kind.removeprefix("--"), name, prefixed=prefixed)


def _lines(chapter: str, title: str, start: str) -> list[str]:
    text = ACLS.read_text(encoding="utf-8").split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    for section in text.split("\n### ")[1:]:
        head, _, body = section.partition("\n")
        if head.startswith(title):
            return [line.strip() for line in body.splitlines() if line.strip().startswith(start)]
    raise AssertionError(f"{ACLS}: no section {title!r} under {chapter}")


def _toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for section, given in sections.items():
        lines.append(f"[{section}]")
        for name, value in given.items():
            if value == "":
                continue
            text = f'"{value}"' if isinstance(value, str) else value
            lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"
