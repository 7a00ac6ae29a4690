"""A bundle of texts on a real Kafka and Valkey: exact through a kill -9.

Texts are empty, long, broken, of any script, some as large as a record may be; workers die in the
middle. Judged from outside by keyfold-verify.
"""

from __future__ import annotations

import json
from zlib import crc32

import numpy as np
import pytest
from live_worker import Serving
from text_bundle import BROKEN, TEXT, make_text_bundle, odd_text, text_event

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.findings import Fault

EVENTS, EVERY = 1500, 600  # records, and of how many one is a tombstone
LONG = 2900  # symbols of some texts; the bundle allows 3,000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the text bundle; calls take 64 steps."""
    return make_text_bundle(tmp_path_factory.mktemp("bundle"), max_steps=64, tombstone="reset")


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def records() -> tuple[list[tuple[bytes | None, bytes | None]], int]:
    """Return texts of 60 keys, and how many of them are rejects."""
    draw = np.random.default_rng(5)
    found: list[tuple[bytes | None, bytes | None]] = []
    rejects = 0
    for number in range(EVENTS):
        text: object = odd_text(draw)
        if number % 100 == 3:
            text = "x y" * (LONG // 3)
        if number % 150 == 7:
            text = (None, 12, "z" * 900_000)[number // 150 % 3]
        value: bytes | None = text_event(text, 1000 * number)
        if number % 500 == 11:
            value = b'{"line": "\xff"}'
        if number % EVERY == 13:
            value = None  # a tombstone
        bad = value is not None and (
            not isinstance(text, str) or BROKEN in text or len(text) > 5000 or b"\xff" in value
        )
        rejects += bad
        found.append((b"talker-%d" % (draw.zipf(1.3) % 60), value))
    return found, rejects


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_texts_survive_kills_exactly(serving: Serving, outputs: str) -> None:
    sent, rejects = records()
    resets = -(-(EVENTS - 13) // EVERY)
    serving.send(sent)
    settings = {"worker__outputs": outputs}
    serving.kill_after(200, 2, worker__max_events=50, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(
        EVENTS - rejects - resets, exactly_once=outputs == "exactly-once"
    )
    report = findings.to_json()
    assert (report["rejects"], report["resets"]) == (rejects, resets)
    reasons = {dict(m.headers())["keyfold-reason"].decode() for m in serving.records(
        serving.dead_letter)}  # fmt: skip
    assert {
        "field 'line': expected a text, got none",
        "field 'line': expected a text, got a number",
        f"field 'line': expected at most {TEXT.max_symbols:,} symbols "
        "(features.text.max_symbols), got 900,000",
        "the step's result is not finite; the key's state is unchanged",
    } <= reasons
    predictions = [json.loads(m.value()) for m in serving.records(serving.output)]
    assert {p["output"]["label"] for p in predictions} <= {"calm", "odd", "wild"}
    _check_that_a_changed_state_is_found(serving)


def _check_that_a_changed_state_is_found(serving: Serving) -> None:
    """The judge does look at what the symbols led to."""
    name = serving.hash_name(0)
    field = next(f for f in serving.fields(0) if f.startswith(b":"))
    state = serving.redis.hget(name, field)
    assert isinstance(state, bytes)
    body = state[5:-1] + bytes([state[-1] ^ 1])
    checksum = crc32(body, crc32(field[1:])).to_bytes(4, "little")
    serving.redis.hset(name, field, state[:1] + checksum + body)
    findings = serving.verify()
    assert findings.to_json()["wrong_states"] == 1
    assert Fault.WRONG_STATE in findings.examples
