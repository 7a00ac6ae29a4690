"""keyfold-state reset, rebuild and adopt: what they say, what they refuse, what is there then.

On a real Kafka and Valkey, with states planted by hand (tests/support/state_case.py).
"""

from __future__ import annotations

import builtins
import sys

import pytest
from state_case import StateCase
from tiny_bundle import make_tiny_bundle

from keyfold.worker.state.store_admin import Admin


def begun(case: StateCase, at: int, **meta: str) -> dict[str, str]:
    """Return the meta fields of a partition begun at an offset over a planted one."""
    fields = {
        "W": str(at), "B": str(at), "E": "8", "O": "keyfold-state", "M": case.bundle.id, "L": "",
        "V": "2", "K": "0", "S": "", "F": "0", "G": "", "C": "", "R": "0", **meta,
    }  # fmt: skip
    return {f"#{name}": value for name, value in fields.items()}


EXACTLY_ONCE = {"worker__outputs": "exactly-once"}
DONE = "done\n"


# -- reset -----------------------------------------------------------------------------------------


def test_reset_drops_the_states_and_says_what_is_emitted_again(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=10, keys=3, G="1-2", F="4")
    case.plant(1)
    assert case.run("reset", "--partition", "0", "--to", "5", "--yes") == 0
    assert capsys.readouterr().out == (
        "partition 0: drops 3 key states (folded up to offset 10), begins anew at offset 5 with "
        f"bundle {case.bundle.id}\n"
        "Every key starts cold; predictions from there on are emitted again, under the same ids.\n"
        "A worker that runs these partitions ends with status 70: its supervisor restarts it. "
        "One that is halted goes on within ten seconds.\n" + DONE
    )
    assert case.meta() == begun(case, 5, R="1")
    assert case.stored() == {}
    assert len(case.stored(1)) == 3, "another partition is left alone"
    assert case.names() == {case.name(), case.name(1)}, "nothing is left beside"


def test_reset_of_all_partitions_forgets_the_topic(case: StateCase) -> None:
    topic = f"{{{case.group}:{case.topic}}}"
    case.redis.hset(topic, mapping={"#N": "3", "#T": "an-old-id"})
    assert case.run("reset", "--all", "--to", "latest", "--yes") == 0
    assert case.meta(0) == begun(case, 12, E="1", R="1")
    assert case.meta(1) == begun(case, 0, E="1", R="1")
    assert not case.redis.exists(topic)


def test_reset_of_one_partition_of_a_topic_that_changed_is_refused(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.redis.hset(f"{{{case.group}:{case.topic}}}", mapping={"#N": "3", "#T": ""})
    assert case.run("reset", "--partition", "0", "--to", "earliest", "--yes") == 2
    assert (
        "the states were folded under 3 partitions, the topic has 2: keys moved between them; this "
        "concerns every partition: keyfold-state reset --all"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("to", ["13", "-1", "soon"])
def test_reset_to_where_the_log_is_not_is_refused(
    case: StateCase, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    assert case.run("reset", "--partition", "0", f"--to={to}", "--yes") == 2
    expected = {
        "soon": "--to: expected earliest, latest or an offset, got 'soon'",
    }.get(to, f"--to: expected an offset from 0 to 12, got {to}")
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
def test_reset_with_exactly_once_outputs_repeats_nothing_unless_told(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(C="9", R="2")
    case.commit(11, "keyfold:r2")
    flags = ("reset", "--partition", "0", "--to", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 0
    out = capsys.readouterr().out
    assert "partition 0: predictions up to offset 10 stay as they are" in out
    assert (
        "with exactly-once outputs no prediction is emitted twice (--emit-again does).\n"
    ) in out
    assert "none is emitted about offsets below" in out
    # Below the floor, so that predictions of a beginning that was never served are not missed.
    assert case.meta() == begun(case, 0, C="9", R="2", F="11")
    assert case.run(*flags, "--emit-again", **EXACTLY_ONCE) == 0
    assert "predictions from there on are emitted again" in capsys.readouterr().out
    assert case.meta() == begun(case, 0, E="9", C="", R="3")


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
def test_reset_learns_from_the_group_offset_how_often_outputs_began_anew(case: StateCase) -> None:
    """Redis was emptied: without this a later group offset would not count, or an old one would."""
    case.commit(11, "keyfold:r4")
    flags = ("reset", "--partition", "0", "--to", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 0
    assert case.meta()["#R"] == "4"
    case.redis.delete(case.name())
    assert case.run(*flags, "--emit-again", **EXACTLY_ONCE) == 0
    assert case.meta()["#R"] == "5"


def test_reset_whose_outputs_nobody_knows_wants_to_be_told(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(C="9", R="2")
    flags = ("reset", "--partition", "0", "--to", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 2
    assert (
        "partition 0: exactly-once outputs: the group offset is gone or not the worker's own "
        "(expected at least 9), so nobody knows which predictions are out; --emit-again emits them "
        "(again)"
    ) in capsys.readouterr().err
    assert case.run(*flags, "--emit-again", **EXACTLY_ONCE) == 0


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
@pytest.mark.parametrize(("c", "anew"), [(12, False), (13, True)])
def test_reset_emits_anew_where_the_group_offset_is_of_another_log(
    case: StateCase, capsys: pytest.CaptureFixture[str], c: int, anew: bool
) -> None:
    """Or nothing about this log would ever be emitted below it, without a word."""
    case.plant(C=str(c), R="2")
    case.commit(c, "keyfold:r2")
    flags = ("reset", "--partition", "0", "--to", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 0
    assert ("predictions from there on are emitted again" in capsys.readouterr().out) is anew
    assert case.meta() == (
        begun(case, 0, R="3") if anew else begun(case, 0, C=str(c), R="2", F=str(c))
    )


@pytest.mark.parametrize(("watermark", "resets"), [(12, "2"), (13, "3")])
def test_reset_emits_anew_where_the_state_is_of_another_log(
    case: StateCase, watermark: int, resets: str
) -> None:
    case.plant(watermark=watermark, R="2")
    flags = ("reset", "--partition", "0", "--to", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 0
    assert case.meta() == begun(case, 0, R=resets)


@pytest.mark.usefixtures("real_kafka")  # Tansu tells no topic ids
def test_reset_of_a_topic_created_anew_emits_anew_though_it_is_as_long_as_the_old_one(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(C="9", R="2")
    case.commit(9, "keyfold:r2")
    topic = f"{{{case.group}:{case.topic}}}"
    case.redis.hset(topic, mapping={"#N": "2", "#T": "an-old-id"})
    assert case.run("reset", "--all", "--to", "earliest", "--yes", **EXACTLY_ONCE) == 0
    assert "predictions from there on are emitted again" in capsys.readouterr().out
    assert case.meta() == begun(case, 0, R="3")
    assert case.meta(1) == begun(case, 0, E="1", R="1")


def test_large_offsets_stay_exact(case: StateCase) -> None:
    large = str(2**53 - 2)
    case.plant(watermark=10, E=large, F=large, R=large)
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    meta = case.meta()
    assert (meta["#E"], meta["#F"], meta["#R"]) == (str(2**53 - 1), large, large)


def test_a_person_at_a_terminal_is_asked(
    case: StateCase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case.plant()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    answers = iter(["n", "y"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(answers))
    before = case.meta()
    assert case.run("reset", "--partition", "0", "--to", "earliest") == 1
    assert capsys.readouterr().out.endswith("nothing was changed\n")
    assert case.meta() == before
    assert case.run("reset", "--partition", "0", "--to", "earliest") == 0
    assert capsys.readouterr().out.endswith(DONE)


# -- rebuild ---------------------------------------------------------------------------------------


def test_rebuild_folds_again_from_the_base_and_emits_nothing_below_the_watermark(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=10, keys=3, B="2", F="4", R="1", M="another")
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    assert capsys.readouterr().out == (
        "partition 0: drops 3 key states (folded up to offset 10), folds again from offset 2 with "
        f"bundle {case.bundle.id}\n"
        "partition 0: nothing about offsets below 10 is emitted (the old watermark)\n"
        "A worker that runs these partitions ends with status 70: its supervisor restarts it. "
        "One that is halted goes on within ten seconds.\n" + DONE
    )
    assert case.meta() == begun(case, 2, F="10", R="1")
    assert case.stored() == {}


def test_rebuild_never_lowers_the_emit_floor(case: StateCase) -> None:
    case.plant(watermark=10, F="11")
    assert case.run("rebuild", "--all", "--emit-from", "latest", "--yes") == 0
    assert case.meta() == begun(case, 0, F="12")
    case.plant(watermark=10, F="11")
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    assert case.meta() == begun(case, 0, F="11")


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
def test_rebuild_with_exactly_once_outputs_keeps_their_position(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=8, C="9", R="2")
    case.commit(11, "keyfold:r2")
    flags = ("rebuild", "--partition", "0", "--from", "earliest", "--yes")
    assert case.run(*flags, **EXACTLY_ONCE) == 0
    assert (
        "nothing about offsets below 11 is emitted (the old watermark, exactly-once: the group "
        "offset)"
    ) in capsys.readouterr().out
    assert case.meta() == begun(case, 0, F="8", C="9", R="2")


def test_rebuild_without_a_state_takes_the_group_offset_and_says_so(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.commit(9)
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    out = capsys.readouterr().out
    assert "partition 0: nothing about offsets below 9 is emitted (the group offset)" in out
    assert (
        "partition 0: where the lost fold began is unknown: the new one holds the events from 0 "
        "on, and keys start cold there"
    ) in out
    assert case.meta() == begun(case, 0, E="1", F="9")


def test_rebuild_without_any_word_on_the_outputs_wants_to_be_told(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("rebuild", "--partition", "0", "--yes") == 2
    assert (
        "partition 0: no state and no group offset say which predictions are out; expected "
        "--emit-from OFFSET or --emit-from latest"
    ) in capsys.readouterr().err
    assert case.run("rebuild", "--partition", "0", "--emit-from", "7", "--yes") == 0
    assert case.meta() == begun(case, 0, E="1", F="7")


def test_rebuild_of_a_log_that_ends_below_the_state_wants_to_be_told(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=20)
    assert case.run("rebuild", "--partition", "0", "--yes") == 2
    assert (
        "partition 0: the log ends at 12, below the old watermark 20: its predictions were about "
        "other events; expected --emit-from OFFSET"
    ) in capsys.readouterr().err


def test_rebuild_may_not_pass_over_events(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=10)
    assert case.run("rebuild", "--partition", "0", "--from", "11", "--yes") == 2
    assert (
        "partition 0: the states end at offset 10: a fold from 11 would pass over the events in "
        "between; keyfold-state reset gives them up"
    ) in capsys.readouterr().err
    assert case.run("rebuild", "--partition", "0", "--from", "nowhere", "--yes") == 2
    expected = "--from: expected earliest, an offset or a snapshot's file, got 'nowhere'"
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("real_kafka")  # Tansu does not delete records
def test_rebuild_says_what_the_log_does_not_hold_any_more(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=10, B="2")
    case.delete_records(upto=5)
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    assert (
        "partition 0: the old fold began at offset 2: events up to 4 are not in the new one, and "
        "keys start cold behind them"
    ) in capsys.readouterr().out
    assert case.meta() == begun(case, 5, F="10")


def test_rebuild_of_a_topic_that_changed_is_refused(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant()
    case.redis.hset(f"{{{case.group}:{case.topic}}}", mapping={"#N": "3", "#T": ""})
    assert case.run("rebuild", "--all", "--yes") == 2
    assert (
        "keys moved between them; folding again does not make the keys' history whole: "
        "keyfold-state reset --all"
    ) in capsys.readouterr().err


# -- adopt -----------------------------------------------------------------------------------------


def test_adopt_keeps_the_states_and_asks_nothing_more_of_the_log_and_the_outputs(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=10, keys=3, F="4", R="1", C="9")
    states, topic = case.stored(), f"{{{case.group}:{case.topic}}}"
    assert case.run("adopt", "--partition", "0", "--yes") == 0
    assert capsys.readouterr().out == (
        "partition 0: keeps 3 key states (folded up to offset 10 by bundle "
        f"{case.bundle.id})\n"
        "That the log still holds the last applied record is not checked again.\n"
        "Exactly-once outputs: where the group offset is gone, predictions from the watermark on "
        "are emitted, some perhaps again.\n"
        "A worker that runs these partitions ends with status 70: its supervisor restarts it. "
        "One that is halted goes on within ten seconds.\n" + DONE
    )
    meta = begun(case, 10, B="0", K="3", S="1700000000000", F="4", R="1")
    assert case.meta() == meta
    assert case.stored() == states
    assert case.redis.hget(topic, "#N") == b"2"


def test_adopt_takes_the_topic_as_it_is_now(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(L="9:1:2")
    topic = f"{{{case.group}:{case.topic}}}"
    case.redis.hset(topic, mapping={"#N": "2", "#T": "an-old-id"})
    if case.kafka.real:
        assert case.run("adopt", "--partition", "0", "--yes") == 2
        assert "this concerns every partition: keyfold-state adopt --all" in capsys.readouterr().err
    assert case.run("adopt", "--all", "--yes") == 0
    if case.kafka.real:
        assert "its records are taken for the old ones." in capsys.readouterr().out
        assert case.run("list") == 0
    assert case.redis.hget(topic, "#T") != b"an-old-id"
    assert case.meta()["#L"] == ""


def test_adopt_refuses_a_changed_number_of_partitions(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant()
    case.redis.hset(f"{{{case.group}:{case.topic}}}", mapping={"#N": "3", "#T": ""})
    assert case.run("adopt", "--all", "--yes") == 2
    assert (
        "keys moved between them, so that states are where their events no longer come; nothing "
        "can be adopted: keyfold-state reset --all"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"V": "1"}, "expected layout 2, got 1: keyfold-state rebuild"),
        ({"K": "4"}, "expected 4 key states, got 3: keyfold-state rebuild or restore"),
        ({"W": "20"}, "the state ends at offset 20, the log goes from 0 to 12: the state cannot go "
                      "on there; keyfold-state reset"),
    ],
)  # fmt: skip
def test_adopt_refuses_what_a_worker_would_halt_on_all_the_same(
    case: StateCase, capsys: pytest.CaptureFixture[str], meta: dict[str, str], reason: str
) -> None:
    case.plant(0, 10, 3, **meta)
    before = case.meta()
    assert case.run("adopt", "--partition", "0", "--yes") == 2
    assert f"partition 0: {reason}" in capsys.readouterr().err
    assert case.meta() == before


def test_adopt_refuses_states_of_another_size(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    larger = make_tiny_bundle(tmp_path_factory.mktemp("larger"), hidden=5)
    case.plant(M=larger.id)
    path = str(larger.path)
    assert case.run("adopt", "--partition", "0", "--yes", worker__bundle=path) == 2
    assert (
        f"partition 0: bundle {larger.id} asks for states of 78 bytes, got 70: these are another "
        "model's; keyfold-state rebuild"
    ) in capsys.readouterr().err
    assert case.run("adopt", "--partition", "1", "--yes") == 2
    assert "partition 1: expected a state to adopt, got none" in capsys.readouterr().err


def test_rebuild_takes_a_state_of_the_older_layout_for_what_it_says_of_the_outputs(
    case: StateCase,
) -> None:
    case.plant(watermark=10, V="1")
    case.redis.hdel(case.name(), "#K", "#S", "#F", "#G", "#C", "#R")
    assert case.run("list") == 1
    assert case.run("rebuild", "--partition", "0", "--yes") == 0
    assert case.meta() == begun(case, 0, F="10")
    assert case.run("list") == 0


def test_adopt_takes_nothing_over_that_changed_since_it_was_looked_at(case: StateCase) -> None:
    case.plant(M="another")
    before = case.meta()
    with Admin.connect(case.valkey.url, 5.0, case.group) as admin:
        assert not admin.adopt(case.topic, 0, "yet another", case.bundle.id, 5)
        assert case.meta() == before
        assert admin.adopt(case.topic, 0, "another", case.bundle.id, 0)
    assert case.meta() != before


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
@pytest.mark.parametrize(("in_redis", "adopted"), [("1", "4"), ("6", "6")])
def test_adopt_counts_a_reset_that_redis_has_forgotten(
    case: StateCase, in_redis: str, adopted: str
) -> None:
    """A failover took the reset back: the worker HALTs on the group offset until they agree."""
    case.plant(watermark=10, R=in_redis, C="9")
    case.commit(11, "keyfold:r4")
    assert case.run("adopt", "--partition", "0", "--yes", **EXACTLY_ONCE) == 0
    meta = case.meta()
    assert (meta["#R"], meta["#C"]) == (adopted, "")


def test_adopted_number_of_resets_stays_exact(case: StateCase) -> None:
    case.plant(R="3")
    with Admin.connect(case.valkey.url, 5.0, case.group) as admin:
        for resets in (2**53 - 2, 10**15, 0):
            assert admin.adopt(case.topic, 0, case.bundle.id, case.bundle.id, resets)
            assert case.meta()["#R"] == str(2**53 - 2)
