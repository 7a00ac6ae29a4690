"""Which predictions a worker lets out of a share, and what goes with them or not: by its own path.

The whole pipeline runs, without Kafka and Redis (worker/trial.py). That the answers are right is
held by tests/worker/verify/test_agrees_answers.py, from outside.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_log import Rec
from text_bundle import CLASSES, make_text_bundle, text_event
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.describe import describe
from keyfold.export.outputs import OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.worker.emission import Emission
from keyfold.worker.emit_settings import Emit
from keyfold.worker.first_day.init import main as init
from keyfold.worker.model import Model
from keyfold.worker.trial import Trial

VALUE = OutputSpec("regression", ("value",))
AFTER = 1000
ENDS: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER, "end_field": "bye"}


def session_bundle(folder: Path) -> Bundle:
    return make_tiny_bundle(folder, outputs=replace(VALUE, answers="session"), **ENDS)


def told(bundle: Bundle, records: list[Rec], size: int = 100) -> list[dict[str, Any]]:
    """Return what the records lead to, `size` of them in a micro-batch."""
    trial = Trial(Model(bundle), "in")
    found = []
    for at in range(0, len(records), size):
        for _, outputs in trial.run([(0, records[at : at + size])]):
            found += [json.loads(payload) for payload in outputs.payloads]
    return found


def at(offset: int, time: int | None, key: bytes = b"k", **members: Any) -> Rec:
    """Return an event at a time; without one a tombstone."""
    event = {"a": offset / 7, "b": 0.5, "time": time, **members}
    return Rec(offset, key, None if time is None else json.dumps(event).encode(), time or 0)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_session_is_answered_once_by_what_ends_it(tmp_path: Path, size: int) -> None:
    records = [
        at(0, 10), at(1, 20), at(2, 30, bye=True),  # its own marker
        at(3, 40), at(4, 50), at(5, None),  # a tombstone
        at(6, 60), at(7, 60 + AFTER + 1), at(8, 2000, b"other"),  # the next event of the key
        at(9, 9000, bye=True),  # and one that is a session by itself
        at(10, None),  # nothing is open
    ]  # fmt: skip
    found = told(session_bundle(tmp_path), records, size)
    said = [(p["id"][5:], p["about"][5:], p["time"], p["steps"], p.get("last")) for p in found]
    assert said == [
        ("2:0", "2", 30, 3, True),
        ("5:0", "4", 50, 2, True),
        ("7:0", "6", 60, 1, True),
        ("9:0", "7", 60 + AFTER + 1, 1, None),
        ("9:1", "9", 9000, 1, True),
    ]
    assert [p["cold"] for p in found] == [False, False, True, True, True]


def test_the_answer_of_a_session_is_that_of_its_last_event(tmp_path: Path) -> None:
    bundle = session_bundle(tmp_path)
    (ended,) = told(bundle, [at(0, 10), at(1, 20), at(2, None)])
    plain = make_tiny_bundle(tmp_path)
    assert ended["output"] == told(plain, [at(0, 10), at(1, 20)])[-1]["output"]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_look_ahead_answers_the_event_before_and_none_of_the_first(
    tmp_path: Path, size: int
) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=replace(VALUE, delay=2), **ENDS)
    records = [at(n, 10 * n, b"ab"[n % 2 : n % 2 + 1]) for n in range(8)]
    found = told(bundle, [*records, at(8, None, b"a"), at(9, 90, b"a")], size)
    said = [(p["id"][5:], p["about"][5:], p["time"], p["steps"], p["key"]) for p in found]
    assert said == [
        ("4:0", "0", 0, 1, "a"), ("5:0", "1", 10, 1, "b"),
        ("6:0", "2", 20, 2, "a"), ("7:0", "3", 30, 2, "b"),
    ]  # fmt: skip


def test_every_symbol_of_a_text_has_its_prediction(tmp_path: Path) -> None:
    bundle = make_text_bundle(tmp_path, outputs=replace(CLASSES, read="every"))
    records = [Rec(3, b"k", text_event("abc", 0)), Rec(4, b"k", text_event("", 1))]
    found = told(bundle, records)
    assert [p["id"][5:] for p in found] == ["3:0", "3:1", "3:2", "3:3", "4:0"]
    assert [p.get("last", False) for p in found] == [False, False, False, True, True]
    assert [p["steps"] for p in found] == [1, 1, 1, 1, 2]
    last = make_text_bundle(tmp_path)
    ends = [p["output"] for p in found if p.get("last")]
    assert ends == [p["output"] for p in told(last, records)]


def test_rules_of_what_is_emitted_are_refused_with_answers_about_others(tmp_path: Path) -> None:
    rule = Emit(what="on_change", step=1.0)
    with pytest.raises(SettingsError, match=r"\[emit\]: expected what = 'all' and no alert_topic"):
        Emission.of(rule, session_bundle(tmp_path).manifest.outputs)


@pytest.mark.parametrize(
    ("new", "what"), [({"answers": "session"}, "sessions"), ({"delay": 2}, "look-ahead")]
)
def test_members_of_another_event_are_not_repeated(
    tmp_path: Path, new: dict[str, Any], what: str
) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=replace(VALUE, **new), **ENDS)
    with pytest.raises(SettingsError, match=f"worker.passthrough: .* bundle of {what}, got a"):
        Trial(Model(bundle), "in", ["a"])


def test_members_of_a_text_go_with_each_of_its_symbols(tmp_path: Path) -> None:
    bundle = make_text_bundle(tmp_path, outputs=replace(CLASSES, read="every"))
    records: Any = [Rec(0, b"k", text_event("ab", 0, who="me"))]
    ((_, outputs),) = Trial(Model(bundle), "in", ["who"]).run([(0, records)])
    assert [json.loads(p)["event"] for p in outputs.payloads] == [{"who": "me"}] * 3


def test_what_is_open_is_said(tmp_path: Path) -> None:
    trial = Trial(Model(session_bundle(tmp_path)), "in")
    trial.run([(0, [at(0, 10), at(1, 20, b"j"), at(2, 30, b"j", bye=1)])])
    assert trial.pending == "1 sessions are open: not answered yet"
    late = make_tiny_bundle(tmp_path, outputs=replace(VALUE, delay=3))
    trial = Trial(Model(late), "in")
    trial.run([(0, [at(n, n) for n in range(5)] + [at(5, 5, b"j")])])
    assert trial.pending.startswith("4 events are not answered yet, the last 3 of each key")


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"answers": "session"}, "once for each session, when it ends, about its last event"),
        ({"delay": 2}, "2 events after the event that is described"),
    ],
)
def test_a_person_is_told_when_answers_come(tmp_path: Path, new: dict[str, Any], said: str) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=replace(VALUE, **new), **ENDS)
    assert said in describe(bundle)
    assert "an event whose 'bye' says so; then cold" in describe(bundle)
    out = tmp_path / "worker.toml"
    assert init([str(bundle.path), "--out", str(out)]) == 0
    assert '"bye": true' in out.read_text()
