"""Every HALT says what is wrong, what was expected and got, and a command that resolves it.

The words are held in full: operators search for them, README's table quotes them, and the commands
must be ones that keyfold-state has.
"""

from __future__ import annotations

import re

import pytest

from keyfold.worker.halts import Halts
from keyfold.worker.protocol import Fingerprint, Held, Refused
from keyfold.worker.state.cli import _parser

HALTS = Halts("/etc/worker.toml", 3)
RESET = "keyfold-state reset /etc/worker.toml --partition 3 --to earliest|latest|OFFSET"
REBUILD = "keyfold-state rebuild /etc/worker.toml --partition 3 [--from earliest|OFFSET|SNAPSHOT]"
ADOPT = "keyfold-state adopt /etc/worker.toml --partition 3"
RESTORE = "keyfold-state restore /etc/worker.toml SNAPSHOT"

REFUSALS = {
    "missing": (
        "the state is gone from Redis, yet the group has committed an offset: restore Redis or a "
        f"snapshot ({RESTORE}), fold it again without emitting ({REBUILD}), or give it up ({RESET})"
    ),
    "partitions": (
        "the topic's number of partitions changed, keys moved between them: expected E, got G in "
        "Redis; keyfold-state reset /etc/worker.toml --all --to earliest"
    ),
    "topic": (
        "the topic was created anew: expected E, got G in Redis; keyfold-state reset "
        "/etc/worker.toml --all --to earliest|latest, or if the new topic holds the same records: "
        "keyfold-state adopt /etc/worker.toml --all"
    ),
    "bundle": (
        "the state belongs to another bundle: expected E, got G in Redis; serve this one under a "
        f"new group, fold its states anew ({REBUILD}, or worker.on_bundle_change), keep them for a "
        f"fine-tune of it, with at-least-once outputs ({ADOPT} --inherit BUNDLE), or {RESET}"
    ),
    "layout": (
        f"the state was written in another layout: expected E, got G in Redis; {REBUILD}"
    ),
    "states": (
        "key states are missing or too many: expected E, got G in Redis; restore a snapshot "
        f"({RESTORE}) or {REBUILD}"
    ),
}  # fmt: skip

OTHERS = {
    HALTS.states_missing(Held(9, 1, "me", "b", keys=5, found=4)): (
        "key states are missing or too many: expected 5, got 4 in Redis; restore a snapshot "
        f"({RESTORE}) or {REBUILD}"
    ),
    HALTS.damaged("expected 61 bytes, got 6"): (
        "a stored state is damaged: expected 61 bytes, got 6; restore a snapshot "
        f"({RESTORE}) or {REBUILD}"
    ),
    HALTS.events_lost(5, 8): (
        "the log starts at offset 8 but the state ends at 5: events in between are lost to "
        f"retention; {RESET}, or go on with marked predictions "
        "(worker.on_lost_range = mark-and-continue)"
    ),
    HALTS.log_too_short(8): (
        "the log ends before offset 8, below what was folded or emitted (topic truncated or "
        f"created anew?); {RESET}"
    ),
    HALTS.another_record(Fingerprint(7, 1, 2)): (
        "the record at offset 7 is not the one last applied (topic created anew?); "
        f"{RESET}, or keep the state all the same: {ADOPT}"
    ),
    HALTS.unreadable(6, "in:0: wrong checksum"): (
        "the log cannot be read from offset 6 on: in:0: wrong checksum; restore it from a replica, "
        f"or give up what stands there: {RESET}"
    ),
    HALTS.outputs_unknown(5, 7, 9): (
        "exactly-once outputs: the group offset, which a transaction had set to at least 7, is "
        "gone or was set by another program: of the events from 5 to 8 nobody knows which "
        f"predictions are out; to emit them (again): {ADOPT}"
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusal_says_what_is_wrong_and_names_the_way_out(what: str) -> None:
    assert HALTS.refused(Refused(what, "E", "G")) == REFUSALS[what]  # type: ignore[arg-type]


@pytest.mark.parametrize("said", OTHERS)
def test_halt_says_what_is_wrong_and_names_the_way_out(said: str) -> None:
    assert said == OTHERS[said]


@pytest.mark.parametrize("said", [*REFUSALS.values(), *OTHERS.values()])
def test_every_command_that_a_halt_names_is_one_that_keyfold_state_takes(said: str) -> None:
    commands = re.findall(r"keyfold-state ([^;,()\[]+)", said)
    assert commands
    for command in commands:
        _parser().parse_args(command.split())  # exits when it does not know it
