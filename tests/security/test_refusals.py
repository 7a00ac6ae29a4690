"""Who is not let into Kafka is told in one line which setting is wrong, whichever client asks.

Each case is put to the worker's start (aiokafka), to the commands' reader (librdkafka) and to
training's; then whole programs, whose every word is searched for the password.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from live_worker import make_events
from secured_serving import PASSWORD, SecuredServing

from keyfold.export import refusals
from keyfold.export.connection import Connection, Security
from keyfold.export.errors import Crash
from keyfold.export.refusals import why_refused
from keyfold.training.config import Kafka as TrainingKafka
from keyfold.training.sources import read_topic
from keyfold.worker.config import Kafka
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.kafka.topics import check_topics
from keyfold.worker.send.sender import partition_count
from local.services import Authority, SecuredKafka
from local.services.kafka_secured import PLAIN_USERS

LIMIT_S = 10.0
USER = "somebody"


@dataclass(frozen=True, slots=True)
class Case:
    """A way not to be let in."""

    listener: str  # of kafka_secured.LISTENERS, or PLAINTEXT
    changes: dict[str, Any]  # of what would be right
    said: str  # in the line


NO_SASL = {"mechanism": "", "username": "", "password": ""}
CASES = {
    "a wrong password": Case(
        "SECURE", {"password": "hunter3"}, "security.username, security.password: "
    ),
    "an unknown user": Case("SECURE", {"username": "nobody"}, "refuses 'nobody' by SCRAM-SHA-512"),
    "a wrong password by PLAIN": Case(
        "SECURE", {"mechanism": "PLAIN", "username": "plain"}, "refuses 'plain' by PLAIN"
    ),
    "another mechanism than the user's": Case(
        "SECURE", {"mechanism": "SCRAM-SHA-256"}, "refuses 'somebody' by SCRAM-SHA-256"
    ),
    "a mechanism that is not offered": Case(
        "OPEN", {"protocol": "sasl_plaintext", "ca_file": None}, "security.mechanism: "
    ),
    "another authority": Case("SECURE", {"ca_file": "other"}, "security.ca_file: "),
    "the system's authorities": Case(
        "SECURE", {"ca_file": None}, "that the system's authorities did not sign"
    ),
    "an expired certificate": Case("EXPIRED", {}, "certificate has expired"),
    "another host's certificate": Case("ELSEWHERE", {}, "its certificate is for another host"),
    "no TLS on a TLS port": Case(
        "SECURE", {"protocol": "sasl_plaintext", "ca_file": None}, "it seems to want TLS"
    ),
    "neither TLS nor a login": Case(
        "SECURE", {"protocol": "plaintext", "ca_file": None, **NO_SASL}, "it seems to want TLS"
    ),
    "TLS on a port without": Case("PLAINTEXT", {}, "speaks no TLS"),
    "no login": Case(
        "SECURE", {"protocol": "ssl", **NO_SASL}, "asks for a login: set 'sasl_ssl' with"
    ),
    "a login where none is wanted": Case(
        "PLAINTEXT", {"protocol": "sasl_plaintext", "ca_file": None}, "asks for no login (SASL)"
    ),
    "no certificate of ours": Case(
        "MUTUAL", {"protocol": "ssl", **NO_SASL}, "it seems to want a client's certificate"
    ),
    "nobody there": Case("nowhere", {}, "nobody answers (127.0.0.1:1: Connection refused)"),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an authority's certificate that signed nothing here."""
    return Authority(tmp_path_factory.mktemp("other"), "other-ca").file


@pytest.fixture
def connect(secured_kafka: SecuredKafka, other: Path) -> Callable[[Case], Connection]:
    """Return a function that makes the connection of a case."""
    secured_kafka.add_user(USER, PASSWORD)

    def make(case: Case) -> Connection:
        right: dict[str, Any] = {
            "protocol": "sasl_ssl", "mechanism": "SCRAM-SHA-512", "username": USER,
            "password": PASSWORD, "ca_file": secured_kafka.authority.file,
        }  # fmt: skip
        changed = {**right, **case.changes}
        if changed["ca_file"] == "other":
            changed["ca_file"] = other
        places = {"PLAINTEXT": secured_kafka.address, "nowhere": "127.0.0.1:1"}
        where = places.get(case.listener) or secured_kafka.at(case.listener)
        return Connection(where, Security(**changed))

    return make


@pytest.mark.parametrize("name", CASES)
def test_who_is_not_let_in_is_told_why_in_one_line(
    name: str, connect: Callable[[Case], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "HUNG_UP_S", 0.5)
    monkeypatch.setattr(refusals, "TRY_S", 0.4)
    connection = connect(CASES[name])
    limit_s = 2.0 if name == "nobody there" else LIMIT_S
    kafka = Kafka(connection.brokers, "in", "out", "group", session_timeout_s=1,
                  request_timeout_s=limit_s)  # fmt: skip

    def read() -> None:
        with KafkaLog(connection, limit_s) as log:
            log.partitions("in")

    topic = TrainingKafka(connection.brokers, "in", timeout_s=limit_s)
    ways: list[Callable[[], object]] = [
        lambda: asyncio.run(check_topics(kafka, connection)),
        read,
        lambda: list(read_topic(topic, connection)),
    ]
    for way in ways:
        begin = time.monotonic()
        with pytest.raises(Crash) as caught:
            way()
        line = str(caught.value)
        assert CASES[name].said in line
        assert "\n" not in line
        assert PASSWORD not in line
        assert "hunter3" not in line
        assert time.monotonic() - begin < limit_s + 1


@pytest.mark.parametrize(
    ("listener", "security"),
    [
        ("SECURE", {}),
        ("SECURE", {"mechanism": "PLAIN", "username": "plain", "password": PLAIN_USERS["plain"]}),
        ("OPEN", {"protocol": "sasl_plaintext", "ca_file": None, "mechanism": "PLAIN",
                  "username": "plain", "password": PLAIN_USERS["plain"]}),
        ("PLAINTEXT", {"protocol": "plaintext", "ca_file": None, **NO_SASL}),
    ],
)  # fmt: skip
def test_who_is_let_in_finds_the_door_open(
    listener: str, security: dict[str, Any], connect: Callable[[Case], Connection]
) -> None:
    connection = connect(Case(listener, security, ""))
    assert why_refused(connection) is None
    assert partition_count(connection, "no such topic") is None


@pytest.mark.parametrize("password", ["", "of the key"])
def test_a_client_s_certificate_lets_in_and_its_key_may_be_encrypted(
    secured_kafka: SecuredKafka, password: str
) -> None:
    shown = secured_kafka.authority.issue(f"mine{len(password)}", password=password)
    security = Security(
        "ssl", ca_file=secured_kafka.authority.file, cert_file=shown.cert, key_file=shown.key,
        key_password=password,
    )  # fmt: skip
    connection = Connection(secured_kafka.at("MUTUAL"), security)
    assert why_refused(connection) is None
    assert partition_count(connection, "no such topic") is None


def test_no_program_shows_the_password_when_it_is_refused(secured: SecuredServing) -> None:
    secured.serving.send(make_events(5, 2))
    secured.secret.write_text("hunter3\n")
    file, log = secured.settings(), secured.folder / "log.jsonl"
    log.write_text('{"key": "k", "time": 1, "a": 1.0, "b": 1.0}\n')
    commands: dict[str, list[str | Path]] = {
        "worker": [file],
        "send": [log, "--config", file],
        "tail": [file, "-n", "1"],
        "verify": [file, "--no-state"],
        "state": ["list", file],
    }
    for program, words in commands.items():
        assert not any("hunter3" in str(word) for word in words)  # what `ps` shows
        done = secured.run(program, *words)
        assert done.status == 2
        assert done.seconds < LIMIT_S + 5
        (line,) = done.err.strip().splitlines()
        if program != "state":  # which asks Redis first
            assert line.startswith(f"keyfold-{program}: security.username, security.password: ")
        assert "hunter3" not in done.out + done.err


def test_a_password_as_a_flag_is_refused_before_anything_is_done(secured: SecuredServing) -> None:
    done = secured.run("worker", secured.settings(), "--set", "security.password=hunter3")
    assert done.status == 2
    assert "--set security.password: everybody on this machine can see a flag" in done.err
    assert "hunter3" not in done.err


def test_send_and_tail_take_a_secured_broker_from_the_environment(secured: SecuredServing) -> None:
    secured.allow("keyfold-send", "keyfold-tail")
    log = secured.folder / "log.jsonl"
    log.write_text('{"key": "k", "time": 1, "a": 1.0, "b": 1.0}\n')
    env = {
        "KEYFOLD_KAFKA__BROKERS": secured.kafka.at(),
        "KEYFOLD_KAFKA__INPUT": secured.serving.input,
        "KEYFOLD_SECURITY__PROTOCOL": "sasl_ssl",
        "KEYFOLD_SECURITY__MECHANISM": secured.mechanism,
        "KEYFOLD_SECURITY__USERNAME": secured.user,
        "KEYFOLD_SECURITY__PASSWORD_FILE": str(secured.secret),
        "KEYFOLD_SECURITY__CA_FILE": str(secured.kafka.authority.file),
    }
    done = secured.run("send", log, "--key", "key", env=env)
    assert done.status == 0, done.err
    secured.serving.send_to(secured.serving.output, [(b"k", b"{}")])
    words = ["--brokers", secured.kafka.at(), "--topic", secured.serving.output]
    done = secured.run("tail", *words, "--from-start", "--json", "-n", "1", env=env)
    assert (done.status, done.out) == (0, "{}\n"), done.err
