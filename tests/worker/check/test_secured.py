"""keyfold-worker check on a Kafka and a Redis that allow nothing unasked and nobody unknown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from first_run import Report
from live_worker import make_events
from secured_serving import PASSWORD, SecuredServing

from keyfold.export.bundle import Bundle
from local.services import SecuredKafka, SecuredValkey, grant

GRANTS = ("keyfold-worker", "keyfold-worker with exactly-once")


@pytest.fixture
def secured(
    tmp_path: Path, secured_kafka: SecuredKafka, secured_valkey: SecuredValkey, bundle: Bundle,
    unique_name: Callable[[str], str],
) -> Iterator[SecuredServing]:  # fmt: skip
    """Return topics with a few events and users who may do nothing yet."""
    one = SecuredServing(tmp_path, secured_kafka, secured_valkey, bundle, unique_name)
    one.let_in(one.redis_rules("keyfold-worker"))
    one.serving.send(make_events(40, 7))
    yield one
    if one.granted:
        one.withdraw()
    one.serving.redis.close()


def check(secured: SecuredServing, **changes: str) -> tuple[int, Report]:
    ended = secured.run("worker", "check", secured.settings(**changes))
    assert "Traceback" not in ended.err
    assert PASSWORD not in ended.out + ended.err
    assert ended.err == ""  # nor a raw line of librdkafka's, as %3|...
    assert ended.seconds < 30
    return ended.status, Report((ended.out + ended.err).splitlines())


def only(texts: list[str]) -> str:
    assert len(texts) == 1, texts
    return texts[0]


def test_documented_grants_are_enough_for_check_and_worker(secured: SecuredServing) -> None:
    secured.allow(*GRANTS)
    status, report = check(secured, worker__outputs="exactly-once")
    assert report.of("FAIL") == []
    assert status == 0
    assert f"lets us in as {secured.user} (sasl_ssl)" in report.of("ok", "kafka")[0]
    assert "may write under transactional ids" in only(report.of("ok", "exactly"))
    # DescribeConfigs is not granted: said, and no more.
    assert "see that its cleanup.policy is delete" in only(report.of("WARN", "topics"))


def test_wrong_kafka_password_is_one_finding_and_redis_is_looked_at(
    secured: SecuredServing, tmp_path: Path
) -> None:
    secured.allow(*GRANTS)
    wrong = tmp_path / "wrong"
    wrong.write_text("not it")
    status, report = check(secured, security__password_file=str(wrong))
    assert status == 2
    assert "security.username, security.password: " in only(report.of("FAIL"))
    assert report.of("ok", "redis")
    assert report.of("skip", "keys")


def test_wrong_protocol_is_named(secured: SecuredServing) -> None:
    status, report = check(
        secured, security__protocol="plaintext", security__mechanism="", security__username="",
        security__password_file="", security__ca_file="",
    )  # fmt: skip
    assert status == 2
    assert "security.protocol: " in only(report.of("FAIL"))


def test_certificate_of_another_authority_is_named(secured: SecuredServing) -> None:
    status, report = check(secured, security__ca_file=str(secured.valkey.authority.file))
    assert status == 2
    assert "security.ca_file: " in only(report.of("FAIL"))


MISSING = {
    "Read topic input": ("Read", "topic", "input", "access"),
    "Write topic output": ("Write", "topic", "output", "topics"),
    "Write topic rejects": ("Write", "topic", "dead_letter", "topics"),
    "Read group": ("Read", "group", "group", "group"),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_right_is_named_with_the_command_that_adds_it(
    secured: SecuredServing, case: str
) -> None:
    operation, kind, role, _ = MISSING[case]
    name = getattr(secured.serving, role)
    lacking = grant(secured.user, operation, kind, name)
    secured.granted += [one for one in secured.acls(GRANTS[0]) if one != lacking]
    secured.kafka.allow(secured.granted)
    status, report = check(secured)
    assert status == 2
    text = " ".join(report.of("FAIL"))
    assert f"lack {operation} for User:{secured.user}" in text
    assert f"--operation {operation} --{kind} {name}" in text


def test_right_to_describe_alone_is_not_enough(secured: SecuredServing) -> None:
    secured.allow(GRANTS[0])
    lacking = grant(secured.user, "Write", "topic", secured.serving.output)
    secured.kafka.forbid([lacking])
    secured.kafka.allow([grant(secured.user, "Describe", "topic", secured.serving.output)])
    status, report = check(secured)
    assert status == 2
    assert f"lack Write for User:{secured.user}" in only(report.of("FAIL", "access"))


@pytest.mark.parametrize("told", [False, True])
def test_missing_transactional_right_is_named(secured: SecuredServing, told: bool) -> None:
    secured.allow(GRANTS[0])
    identity = f"{secured.serving.group}:{secured.serving.input}:"
    if told:  # Describe lets the coordinator be found, but nothing be written
        secured.kafka.allow(
            [grant(secured.user, "Describe", "transactional-id", identity, prefixed=True)]
        )
    status, report = check(secured, worker__outputs="exactly-once")
    assert status == 2
    text = only(report.of("FAIL", "exactly"))
    assert "--operation Write --transactional-id" in text


def test_redis_user_without_rights_is_named(secured: SecuredServing) -> None:
    secured.allow(*GRANTS)
    secured.let_in([rule for rule in secured.redis_rules("keyfold-worker") if rule != "+hset"])
    status, report = check(secured)
    assert status == 2
    assert "forbids this user HSET" in only(report.of("FAIL", "rights"))


# -- the other commands of a first day -------------------------------------------------------------


def test_dry_run_and_a_first_worker_do_with_the_documented_grants(
    secured: SecuredServing,
) -> None:
    secured.allow(*GRANTS)
    settings = secured.settings()
    ended = secured.run("worker", settings, "--dry-run", "--max-events", "30")
    assert (ended.status, ended.err) == (0, "")
    assert "30 records: 30 events" in ended.out
    ended = secured.run("worker", settings, "--max-events", "40")
    assert ended.status == 0, ended.err
    assert PASSWORD not in ended.err
    assert sum(secured.serving.watermarks().values()) == 40


def test_dry_run_without_rights_is_one_line(secured: SecuredServing) -> None:
    ended = secured.run("worker", secured.settings(), "--dry-run")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert f"--topic {secured.serving.input}" in line


def raw_topic(secured: SecuredServing) -> tuple[str, list[Any]]:
    """Make a topic keyed by something else; return its name and what a repartition needs."""
    serving, user = secured.serving, secured.user
    name, group = f"{serving.input}-raw", f"{serving.group}-repartition"
    secured.kafka.create_topic(name, 2, None)
    events = [
        (b"site", json.dumps({**json.loads(value or b""), "key": (key or b"").decode()}).encode())
        for key, value in make_events(50, 7)
    ]
    serving.send_to(name, events)
    return name, [
        grant(user, "Read", "topic", name),
        grant(user, "Write", "topic", serving.input),
        grant(user, "Write", "topic", serving.dead_letter),
        grant(user, "Read", "group", group),
        grant(user, "Write", "transactional-id", f"{group}:", prefixed=True),
    ]


def test_repartition_does_with_its_grants(secured: SecuredServing) -> None:
    name, needed = raw_topic(secured)
    secured.granted += needed
    secured.kafka.allow(needed)
    words = ("--from", name, "--once", "--from-start")  # its target holds records already
    ended = secured.run("worker", "repartition", secured.settings(), *words)
    assert ended.status == 0, ended.err
    assert PASSWORD not in ended.err
    assert sum(secured.serving.ends().values()) >= 40 + 50


@pytest.mark.parametrize("missing", range(5))
def test_repartition_names_the_right_that_it_lacks(secured: SecuredServing, missing: int) -> None:
    name, needed = raw_topic(secured)
    lacking = needed.pop(missing)
    secured.granted += needed
    secured.kafka.allow(needed)
    words = ("--from", name, "--once", "--from-start")  # its target holds records already
    ended = secured.run("worker", "repartition", secured.settings(), *words)
    assert ended.status == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("keyfold-worker repartition: ")
    assert "an administrator adds it" in last
    assert lacking.name.removesuffix(":") in last
