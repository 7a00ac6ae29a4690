"""All programs end to end on secured services, with no right but those of deploy/ACLS.md."""

from __future__ import annotations

import json

import pytest
from live_worker import make_events
from secured_serving import SecuredServing

EVENTS = 200


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_worker_serves_with_each_sasl_mechanism(secured: SecuredServing, mechanism: str) -> None:
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send([*make_events(EVENTS, 10), (b"key", b"no event")])
    worker = secured.serve()
    findings = secured.serving.verify_clean(EVENTS)
    assert findings.rejects == 1
    assert secured.password not in worker.log.read_text()


def test_outputs_are_exactly_once_with_the_rights_of_the_list(secured: SecuredServing) -> None:
    secured.allow("keyfold-worker", "keyfold-worker with exactly-once")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serving.send([*make_events(EVENTS, 10), (b"key", b"no event")])
    secured.serve(worker__outputs="exactly-once")
    findings = secured.serving.verify_clean(EVENTS, exactly_once=True)
    assert findings.predictions == EVENTS


def test_events_are_sent_watched_verified_and_looked_at_by_their_own_rights(
    secured: SecuredServing,
) -> None:
    """Each program with its section of the list and nothing else, from one worker.toml."""
    log = secured.folder / "log.jsonl"
    rows = [json.loads(value or b"") | {"key": str(key)} for key, value in make_events(50, 5)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = secured.settings()

    secured.allow("keyfold-send")
    done = secured.run("send", log, "--config", file)
    assert (done.status, done.out) == (0, ""), done.err
    assert "50 events to" in done.err

    secured.withdraw()
    secured.allow("keyfold-worker")
    secured.let_in(secured.redis_rules("keyfold-worker"))
    secured.serve()

    secured.withdraw()
    secured.allow("keyfold-tail")
    done = secured.run("tail", file, "--from-start", "-n", "50")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 50

    secured.withdraw()
    secured.allow("keyfold-verify")
    secured.let_in(secured.redis_rules("keyfold-verify"))
    done = secured.run("verify", file)
    assert done.status == 0, done.out + done.err

    secured.withdraw()
    secured.allow("keyfold-state")
    secured.let_in(secured.redis_rules("keyfold-state"))
    done = secured.run("state", "list", file)
    assert (done.status, done.err) == (0, ""), done.out
