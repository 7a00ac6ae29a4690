"""deploy/ACLS.md lists the least: each right is used, and missed in one line when it is not there.

That the lists suffice is held by test_served.py, whose programs have no other rights.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from live_worker import make_events
from secured_serving import PASSWORD, Ended, SecuredServing

from keyfold.worker.config import read_config
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.topics import check_topics
from local.services import grant

LOGIN = {"auth", "client|setinfo", "select", "hello", "ping", "quit"}  # of every connection
BACK_DOOR = {"hget", "info", "config|resetstat", "script|flush"}  # the test's own


def one_line(done: Ended, program: str) -> str:
    """Expect a program that ended with status 2, one line and no secret; return the line."""
    assert done.status == 2, done.err
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith(f"{program}: ")
    assert PASSWORD not in done.out + done.err
    return lines[0].removeprefix(f"{program}: ")


def without(secured: SecuredServing, titles: Sequence[str], lacking: Any) -> None:
    """Grant the user what these sections list, but for one."""
    secured.withdraw()
    secured.allow(*titles)
    secured.kafka.forbid([lacking])
    secured.granted.remove(lacking)


def command_of(acl: Any) -> str:
    """Return the end of the line that is to be printed for a missing ACL."""
    kind = {"TOPIC": "topic", "GROUP": "group", "TRANSACTIONAL_ID": "transactional-id"}
    operation = acl.operation.name.capitalize()
    return f"--operation {operation} --{kind[acl.restype.name]} {acl.name}"


def test_a_worker_without_one_of_its_kafka_rights_says_which_before_it_joins(
    secured: SecuredServing,
) -> None:
    secured.let_in(secured.redis_rules("keyfold-worker"))
    file = secured.settings()
    config = read_config(file)
    for acl in secured.acls("keyfold-worker"):
        without(secured, ["keyfold-worker"], acl)
        with pytest.raises(SetUpError) as caught:
            asyncio.run(check_topics(config.kafka, config.connection))
        line = str(caught.value)
        assert line.endswith(command_of(acl)), line
        assert f"User:{secured.user}" in line
    assert one_line(secured.run("worker", file), "keyfold-worker") == line


def test_a_worker_whose_transactional_ids_are_not_allowed_says_so(secured: SecuredServing) -> None:
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send(make_events(10, 2))
    worker = secured.worker(worker__outputs="exactly-once")
    assert worker.wait(30) == 2, worker.log_tail()
    last = worker.log_tail().splitlines()[-1]
    name = f"{secured.serving.group}:{secured.serving.input}:"
    wanted = f"--operation Write --transactional-id {name} --resource-pattern-type prefixed"
    assert last.endswith(wanted), last


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_a_worker_that_may_not_write_its_alert_topic_says_so(
    secured: SecuredServing, outputs: str
) -> None:
    alerts = secured.names("alerts")
    secured.kafka.create_topic(alerts, 2, None)
    secured.allow("keyfold-worker", "keyfold-worker with exactly-once outputs")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send(make_events(20, 2))
    # A condition that every prediction meets.
    settings = {
        "worker__outputs": outputs, "emit__alert_topic": alerts, "emit__field": "value",
        "emit__above": -1e9,
    }  # fmt: skip
    line = one_line(secured.run("worker", secured.settings(**settings)), "keyfold-worker")
    assert line.endswith(f"--operation Write --topic {alerts}"), line
    right = grant(secured.user, "Write", "topic", alerts)
    secured.kafka.allow([right])
    secured.serve(**settings)
    secured.serving.verify_clean(20, emit=Emit(above=-1e9, alert_topic=alerts))
    # Taken away under a running worker.
    worker = secured.worker(**settings)
    secured.serving.wait_until(
        lambda: "acquired at" in worker.log.read_text(), "its partitions", [worker]
    )
    secured.kafka.forbid([right])
    secured.serving.send(make_events(20, 2, begin=100))
    assert worker.wait(40) == 2, worker.log_tail()
    last = worker.log_tail().splitlines()[-1]
    assert last.endswith(f"--operation Write --topic {alerts}"), last


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_right_that_is_taken_away_under_a_running_worker_is_named(
    secured: SecuredServing, kind: str
) -> None:
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send(make_events(20, 2))
    worker = secured.worker()
    secured.serving.wait_saved([worker])
    name = getattr(secured.serving, kind)
    (lacking,) = [acl for acl in secured.granted if acl.name == name]
    secured.kafka.forbid([lacking])
    secured.serving.send(make_events(20, 2, begin=100))
    assert worker.wait(40) == 2, worker.log_tail()
    last = worker.log_tail().splitlines()[-1]
    assert last.startswith("keyfold-worker: "), last
    assert last.endswith(command_of(lacking)), last


def test_a_command_without_one_of_its_kafka_rights_says_which(secured: SecuredServing) -> None:
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.allow("keyfold-worker")
    secured.serving.send(make_events(5, 2))
    secured.serve()
    file, log = secured.settings(), secured.folder / "log.jsonl"
    log.write_text(json.dumps({"key": "k", "time": 1, "a": 1.0, "b": 1.0}) + "\n")
    commands: dict[str, list[str | Path]] = {
        "send": [log, "--config", file],
        "tail": [file, "--from-start", "-n", "1"],
        "verify": [file],
        "state": ["list", file],
    }
    for program, words in commands.items():
        title = f"keyfold-{program}"
        if program in ("state", "verify"):
            secured.let_in(secured.redis_rules(title))
        for acl in secured.acls(title):
            without(secured, [title], acl)
            line = one_line(secured.run(program, *words), title)
            assert acl.name in line, (line, acl)
            assert "ACL" in line, line


def test_a_worker_uses_each_command_that_its_redis_user_may(secured: SecuredServing) -> None:
    secured.allow("keyfold-worker")
    rules = secured.redis_rules("keyfold-worker")
    secured.let_in(rules)
    secured.serving.send(make_events(20, 2))
    with secured.valkey.client() as client:
        client.script_flush()
        client.config_resetstat()
        secured.serve()
        used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    allowed = {rule.removeprefix("+") for rule in rules if rule.startswith("+")}
    # A script that Redis does not know yet goes by EVAL, once.
    assert allowed <= used, "a right that is not used"
    assert used <= allowed | LOGIN | BACK_DOOR


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("+info", "the command info: ACL SETUSER +info"),
        ("+hset", "the command hset: ACL SETUSER +hset"),
        ("~", "the keys of this group: ACL SETUSER with ~{GROUP:*"),
    ],
)
def test_a_worker_without_one_of_its_redis_rights_says_which(
    secured: SecuredServing, lacking: str, said: str
) -> None:
    secured.allow("keyfold-worker")
    rules = [
        r
        for r in secured.redis_rules("keyfold-worker")
        if r != lacking and not (lacking == "~" and r[0] == "~")
    ]
    secured.let_in(rules)
    secured.serving.send(make_events(20, 2))
    worker = secured.worker()
    assert worker.wait(30) == 2, worker.log_tail()
    last = worker.log_tail().splitlines()[-1]
    assert last.startswith("keyfold-worker: redis.username: Redis' ACL forbids"), last
    assert said in last
    assert PASSWORD not in worker.log.read_text()
