"""Two groups' predictions in one output topic: each in its own range, nothing missing, none twice.

The reading of the record is held against what worker/handover/ownership.py writes; the rules,
against harm planted into right outputs of two bundles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from naive_worker import serve
from tiny_bundle import make_tiny_bundle
from verify_case import BASE, EVENTS, PARTITION, POISON, Case, make_case, only

from keyfold.worker.errors import Crash
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.seams import NOBODY, Other, Seams, read_seams
from local.services import Valkey

SEAM, END = 30, BASE + EVENTS


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Return the old group's partition; from the seam on the outputs are the new bundle's."""
    case = make_case(make_tiny_bundle(tmp_path / "old"))
    retrained = make_tiny_bundle(tmp_path / "new", seed=5)
    theirs = serve(retrained, "in", PARTITION, case.log)
    case.served.outputs[case.number(SEAM) :] = theirs.outputs[case.number(SEAM) :]
    others = {"new": Other(BASE, END, retrained.id)}
    case.seams = Seams("old", "old", ((SEAM, "new"),), others=others, letters={POISON})
    return case


def test_each_group_s_predictions_in_its_own_range_are_clean(case: Case) -> None:
    findings = case.verify(exactly_once=True)
    assert not findings.counts
    assert findings.others == END - SEAM
    assert case.verify(exactly_once=True).to_json()["others"] == END - SEAM


def test_without_the_record_the_other_group_s_predictions_are_wrong(case: Case) -> None:
    case.seams = Seams("old")
    assert case.verify().counts[Fault.WRONG_OUTPUT] == END - SEAM


@pytest.mark.parametrize("offset", [SEAM, END - 1])
def test_gap_behind_the_seam_is_found(case: Case, offset: int) -> None:
    del case.served.outputs[case.number(offset)]
    assert only(case.verify(), Fault.LOST)[0] == f"in:2:{offset}"


def test_gap_before_the_seam_is_found(case: Case) -> None:
    del case.served.outputs[case.number(SEAM - 1)]
    assert only(case.verify(), Fault.LOST)[0] == f"in:2:{SEAM - 1}"


def test_what_the_other_group_has_not_reached_yet_is_not_missing(case: Case) -> None:
    del case.served.outputs[case.number(SEAM + 3) :]
    new = case.seams.others["new"]
    others = {"new": Other(new.first, SEAM + 3, new.bundle)}
    case.seams = Seams("old", "old", ((SEAM, "new"),), others=others)
    assert not case.verify().counts


def test_prediction_of_this_group_behind_the_seam_is_found(case: Case, tmp_path: Path) -> None:
    mine = make_case(case.bundle).served.outputs[case.number(SEAM)]
    case.served.outputs.append(mine)
    findings = case.verify()
    assert findings.violations == 1
    where, expected, _ = only(findings, Fault.UNEXPECTED)
    assert (where, expected) == (f"in:2:{SEAM}", "group new's prediction")


def test_prediction_of_the_other_group_before_the_seam_is_found(case: Case, tmp_path: Path) -> None:
    retrained = make_tiny_bundle(tmp_path / "again", seed=5)
    theirs = serve(retrained, "in", PARTITION, case.log).outputs[case.number(SEAM - 1)]
    case.served.outputs.append(theirs)
    assert only(case.verify(), Fault.CONFLICT)[0] == f"in:2:{SEAM - 1}"


def test_other_group_s_prediction_twice_is_a_duplicate(case: Case) -> None:
    case.served.outputs.append(case.served.outputs[case.number(SEAM)])
    assert case.verify().violations == 0
    assert only(case.verify(exactly_once=True), Fault.DUPLICATE)[0] == f"in:2:{SEAM}"


def test_two_different_predictions_of_the_other_group_conflict(case: Case) -> None:
    original = case.served.outputs[case.number(SEAM)]
    case.change(SEAM, steps=99)
    case.served.outputs.append(original)
    only(case.verify(), Fault.CONFLICT)


def test_order_of_a_key_is_looked_at_across_the_seam(case: Case) -> None:
    key_again = SEAM + 3  # the same key as SEAM - 1
    a, b = case.number(SEAM - 1), case.number(key_again)
    outputs = case.served.outputs
    outputs[a], outputs[b] = outputs[b], outputs[a]
    assert case.verify().counts[Fault.ORDER] >= 1


@pytest.mark.parametrize(("seam", "lost"), [(POISON, 0), (POISON + 1, 1)])
def test_dead_letters_behind_the_seam_are_the_other_group_s_business(
    case: Case, tmp_path: Path, seam: int, lost: int
) -> None:
    retrained = make_tiny_bundle(tmp_path / "again", seed=5)
    theirs = serve(retrained, "in", PARTITION, case.log).outputs
    case.served.outputs[POISON - BASE :] = theirs[POISON - BASE :]
    case.served.letters = []
    case.seams = Seams("old", "old", ((seam, "new"),), others=case.seams.others)
    assert case.verify().counts[Fault.LOST] == lost


# -- the reading -----------------------------------------------------------------------------------


def handed_over() -> Handovers:
    record = Handovers().wait("new").propose("old", "new", 30).ready("old").ready("new")
    agreed = record.decide(2)
    assert agreed is not None
    return agreed


def test_record_is_read_as_it_was_written(valkey: Valkey, unique_name: Any) -> None:
    topic = unique_name("in")
    with valkey.client() as redis:
        admin = HandoverAdmin(redis, topic, "out")
        empty = read_seams(redis, "old", (topic, "out"), 0, ())
        assert empty.mine(0)
        waiting = Handovers().wait("new")
        admin.swap(0, Handovers(), waiting)
        assert not read_seams(redis, "new", (topic, "out"), 0, ()).mine(0)
        assert read_seams(redis, "old", (topic, "out"), 0, ()).mine(0)
        admin.swap(0, waiting, handed_over())
        fields = {"#B": "3", "#F": "5", "#W": "40", "#C": "", "#M": "retrained"}
        redis.hset(f"{{new:{topic}:0}}", mapping=fields)
        seams = read_seams(redis, "old", (topic, "out"), 0, {33})
        assert [seams.mine(offset) for offset in (0, 29, 30, 99)] == [True, True, False, False]
        assert seams.others == {"new": Other(5, 40, "retrained")}
        assert [seams.owed_by_others(o) for o in (29, 30, 33, 39, 40)] == [
            False, True, False, True, False,
        ]  # fmt: skip
        assert read_seams(redis, "new", (topic, "out"), 0, ()).mine(30)
        assert not read_seams(redis, "third", (topic, "out"), 0, ()).mine(30)


def test_events_of_a_group_that_waits_though_no_group_has_the_outputs_are_missing(
    case: Case,
) -> None:
    nobody = {NOBODY: Other(BASE, END, case.bundle.id)}
    case.seams = Seams("old", waits=True, others=nobody, letters={POISON})
    assert not case.verify().counts  # as long as it was silent nowhere
    del case.served.outputs[case.number(END - 1) :]
    assert only(case.verify(), Fault.LOST)[0] == f"in:2:{END - 1}"
    case.seams = Seams("old", waits=True)  # another group has them, and may be behind
    assert not case.verify().counts


def test_who_waits_for_whom_is_read_from_the_states_that_redis_has(
    valkey: Valkey, unique_name: Any
) -> None:
    topic = unique_name("in")
    fields = {"#B": "3", "#F": "5", "#W": "40", "#C": "", "#M": "retrained"}
    with valkey.client() as redis:
        admin = HandoverAdmin(redis, topic, "out")
        admin.swap(0, Handovers(), Handovers().wait("new").wait("newer"))
        for group in ("new", "newer"):
            redis.hset(f"{{{group}:{topic}:0}}", mapping=fields)
        seams = read_seams(redis, "new", (topic, "out"), 0, {33})
        assert [seams.owed_by_others(o) for o in (4, 5, 33, 39, 40)] == [
            False, True, False, True, False,
        ]  # fmt: skip
        redis.hset(f"{{old:{topic}:0}}", mapping=fields)
        seams = read_seams(redis, "new", (topic, "out"), 0, {33})
        assert not seams.owed_by_others(5)


def test_what_is_no_record_is_refused_by_name(valkey: Valkey, unique_name: Any) -> None:
    topic = unique_name("in")
    with valkey.client() as redis:
        redis.set(f"keyfold-handover:{{{topic}:out:0}}", "[]")
        with pytest.raises(Crash, match=r"expected a record of handovers, got"):
            read_seams(redis, "old", (topic, "out"), 0, ())
        with pytest.raises(Crash, match=r"out:0}: expected a record of handovers, got '\[\]'"):
            HandoverAdmin(redis, topic, "out").read(0)


def test_record_changes_by_compare_and_set_only(valkey: Valkey, unique_name: Any) -> None:
    with valkey.client() as redis:
        admin = HandoverAdmin(redis, unique_name("in"), "out")
        waiting = Handovers().wait("new")
        other = Handovers().wait("another")
        assert admin.swap(0, Handovers(), waiting) == waiting
        assert admin.swap(0, Handovers(), waiting) == waiting  # a lost reply looks like this
        assert admin.swap(0, Handovers(), other) == waiting
        assert admin.read(0) == waiting
