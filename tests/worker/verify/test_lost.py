"""Lost ranges: who must say "gap", what can still be checked, and what cannot any more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from naive_worker import LogRecord
from tiny_bundle import make_tiny_bundle
from verify_case import BASE, Case, changed, expiring, make_case, only

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.lost import Gap, Lost, covered
from keyfold.worker.verify.refold import OfflineStep, Origin, Refold

LOST = (20, 30)
AFTER = 1_000_000  # reset_after_ms


def value(time: int) -> bytes:
    return json.dumps({"a": time % 7 / 7, "b": -0.5, "time": time}).encode()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return expiring(make_tiny_bundle(tmp_path, tombstone="reset"), tmp_path, AFTER)


def a_log() -> list[LogRecord]:
    """Return events of k, j and i in turn, at offsets 10 to 39, one second apart."""
    return [
        LogRecord(BASE + i, 10**9, (b"k", b"j", b"i")[i % 3], value(1000 * i)) for i in range(30)
    ]


@pytest.fixture
def case(bundle: Bundle) -> Case:
    """A partition that has lost [20, 30), judged with all records at hand (an archive)."""
    return make_case(bundle, a_log(), LOST)


# -- the text form ---------------------------------------------------------------------------------


def test_ranges_are_read_and_say_what_they_hold() -> None:
    lost = Lost.parse("3-5,5-6,9-12")
    assert lost.ranges == ((3, 5), (5, 6), (9, 12))
    assert [o for o in range(14) if lost.holds(o)] == [3, 4, 5, 9, 10, 11]
    assert [lost.before(o) for o in (4, 5, 8, 9, 11, 12)] == [-1, 5, 6, 6, 6, 12]
    assert (lost.end, Lost.parse("").end) == (12, -1)


@pytest.mark.parametrize("text", ["3", "3-", "-3", "5-5", "6-5", "3-6,5-8", "3-5,", "a-b", "3--5"])
def test_a_text_that_is_no_list_of_ranges_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Lost.parse(text)


def test_coverage_needs_every_offset() -> None:
    assert covered(3, 9, [(5, 9), (0, 5)])
    assert covered(3, 3, [])
    assert not covered(3, 9, [(3, 5), (6, 9)])
    assert not covered(3, 9, [(4, 9)])


# -- with every record at hand ---------------------------------------------------------------------


def test_keys_go_on_behind_a_gap_and_say_so(case: Case) -> None:
    findings = case.verify()
    assert not findings.counts
    # The record of range [20, 30) is known here, and still not demanded.
    assert (findings.events, findings.lost_records, findings.unverifiable) == (20, 10, 0)
    flagged = [json.loads(v or b"").get("gap") for _, v in case.served.outputs]
    assert flagged == [None] * 10 + [True] * 10


def test_a_missing_gap_member_is_found(case: Case) -> None:
    number = case.number(35)
    key, payload = case.served.outputs[number]
    case.served.outputs[number] = (key, (payload or b"").replace(b',"gap":true', b""))
    where, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
    assert (where, expected, got) == ("in:2:35", "gap True", "no gap at out:2:15")


@pytest.mark.parametrize("gap", [True, False])
def test_a_gap_member_before_the_loss_is_found(case: Case, gap: bool) -> None:
    case.change(15, gap=gap)
    where, expected, _ = only(case.verify(), Fault.WRONG_OUTPUT)
    assert (where, expected[:6]) == ("in:2:15", "no gap")


@pytest.mark.parametrize("gap", [False, 1, "true", None])
def test_a_gap_member_is_true_or_not_there(case: Case, gap: object) -> None:
    case.change(35, gap=gap)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1] == "gap True"


def test_a_gap_member_stands_last(case: Case) -> None:
    number = case.number(35)
    key, payload = case.served.outputs[number]
    members = json.loads(payload or b"")
    case.served.outputs[number] = (key, json.dumps({"gap": True, **members}).encode())
    # A dict keeps the first place of a member written twice.
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1] == "gap as the last member"


def test_a_gap_member_without_any_loss_is_found(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.change(15, gap=True)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[2] == "gap True at out:2:5"


def test_a_state_behind_a_gap_must_be_flagged(case: Case) -> None:
    state = bytearray(case.served.states[b"k"])
    assert state[5] == 1
    state[5] = 0
    case.seal(b"k", bytes(state))
    assert only(case.verify(), Fault.WRONG_STATE)[1].startswith("flags 1")


def test_a_state_older_than_the_gap_may_wait_for_its_flag(bundle: Bundle) -> None:
    log = [r for r in a_log() if r.key != b"k" or r.offset < LOST[0]]
    case = make_case(bundle, log, LOST)
    assert case.served.states[b"k"][5] == 0
    assert not case.verify().counts
    case.seal(b"k", case.served.states[b"k"][:5] + b"\1" + case.served.states[b"k"][6:])
    assert not case.verify().counts


def test_a_tombstone_behind_the_gap_makes_its_key_exact(bundle: Bundle) -> None:
    log = a_log()
    log[33 - BASE] = dataclasses.replace(log[33 - BASE], key=b"k", value=None)
    log[34 - BASE] = dataclasses.replace(log[34 - BASE], key=b"k")
    case = make_case(bundle, log, LOST)
    prediction = json.loads(case.served.outputs[case.number(34)][1] or b"")
    assert (prediction["steps"], "gap" in prediction) == (1, False)
    assert not case.verify().counts
    case.change(34, gap=True)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1].startswith("no gap")


def gaps_of(bundle: Bundle, lost: str, *events: tuple[int, bytes, int | None]) -> list[Gap | None]:
    """Fold events of (offset, key, time; None: a tombstone) and return what each may say."""
    refold = Refold(OfflineStep(bundle), Origin(Lost.parse(lost)))
    for offset, key, time in events:
        refold.fold(offset, 10**9, key, None if time is None else value(time))
    return [
        None if time is None else refold.expected(number).gap
        for number, (_, _, time) in enumerate(events)
    ]


def test_an_expiry_proves_an_exact_start_only_with_a_state_younger_than_the_gap(
    bundle: Bundle,
) -> None:
    late = AFTER + 1
    # j's last event before the gap is no proof of silence: a lost one may have followed.
    assert gaps_of(bundle, "5-9", (1, b"j", 0), (9, b"j", late)) == [Gap.NEVER, Gap.ALWAYS]
    events = ((1, b"j", 0), (9, b"j", 1), (10, b"j", 1 + late), (11, b"j", 2 + late))
    assert gaps_of(bundle, "5-9", *events) == [Gap.NEVER, Gap.ALWAYS, Gap.NEVER, Gap.NEVER]


def test_a_tombstone_before_the_gap_is_forgotten_by_it(bundle: Bundle) -> None:
    assert gaps_of(bundle, "5-9", (1, b"j", 0), (2, b"j", None), (9, b"j", 1))[-1] is Gap.ALWAYS
    assert gaps_of(bundle, "5-9", (9, b"j", 0), (10, b"j", None), (11, b"j", 1))[-1] is Gap.NEVER


def test_a_second_gap_flags_keys_that_had_become_exact(bundle: Bundle) -> None:
    events = ((9, b"j", 0), (10, b"j", None), (11, b"j", 1), (40, b"j", 2), (41, b"j", 3))
    found = gaps_of(bundle, "5-9,20-30", *events)
    assert found == [Gap.ALWAYS, None, Gap.NEVER, Gap.ALWAYS, Gap.ALWAYS]


def test_behind_a_loss_a_state_without_steps_says_that_a_key_is_cold(bundle: Bundle) -> None:
    log = a_log()
    log[-1] = dataclasses.replace(log[-1], key=b"k", value=None)
    case = make_case(bundle, log, LOST)
    marker = case.served.states[b"k"]
    findings = case.verify()
    assert (dict(findings.counts), findings.states) == ({}, 2)
    case.seal(b"k", marker[:6] + b"\1" + marker[7:])  # one step
    only(case.verify(), Fault.EXTRA_STATE)
    case.drop(b"k")
    only(case.verify(), Fault.MISSING_STATE)


def test_a_state_without_steps_is_found_where_nothing_was_lost_or_reset(bundle: Bundle) -> None:
    case = make_case(bundle, a_log(), LOST)
    marker = b"\2" + bytes(len(case.served.states[b"j"]) - 1)
    case.seal(b"nobody", marker)
    case.count()
    only(case.verify(), Fault.EXTRA_STATE)
    case = make_case(bundle, a_log())
    case.seal(b"k", marker)
    only(case.verify(), Fault.WRONG_STATE)


def test_behind_a_loss_no_state_is_collected_any_more(bundle: Bundle) -> None:
    log = a_log()
    log[-1] = dataclasses.replace(log[-1], key=b"late", value=value(2 * AFTER))
    log = [r for r in log if r.key != b"k" or r.offset < LOST[0]]
    case = make_case(bundle, log, LOST)
    assert case.verify().collected == 0
    case.drop(b"k")  # silent, and last seen before the loss
    findings = case.verify()
    assert (dict(findings.counts), findings.collected) == ({}, 1)
    case.drop(b"j")  # silent, too
    only(case.verify(), Fault.MISSING_STATE)


def test_the_fingerprint_is_empty_between_a_loss_and_the_next_record_only(bundle: Bundle) -> None:
    case = make_case(bundle, a_log(), LOST)
    case.served.meta["#L"] = ""
    assert "#L" in only(case.verify(), Fault.WRONG_STATE)[0]
    case = make_case(bundle, a_log()[:10])
    case.served.meta["#L"] = ""
    assert "#L" in only(case.verify(), Fault.WRONG_STATE)[0]
    case.served.meta |= {"#W": "30", "#G": "20-30"}
    assert not case.verify().counts


# -- with the records before the loss gone ---------------------------------------------------------


@pytest.fixture
def gone(case: Case) -> Case:
    """The same partition, judged from the log alone, which begins at 30."""
    case.gone = LOST[1]
    return case


def test_what_does_not_follow_from_the_log_any_more_is_counted(gone: Case) -> None:
    findings = gone.verify()
    assert not findings.counts
    # Ten outputs of records that are gone, ten of keys with an unknown past, three states.
    assert (findings.events, findings.unverifiable) == (10, 23)
    assert findings.to_json()["unverifiable"] == 23


def test_a_loss_of_everything_folded_so_far_leaves_nothing_unknown(bundle: Bundle) -> None:
    case = make_case(bundle, a_log(), (BASE, 30))
    case.served.meta["#B"] = str(BASE)
    case.gone = 30
    findings = case.verify()
    assert not findings.counts
    assert (findings.events, findings.unverifiable, findings.states) == (10, 0, 3)
    case.change(38, steps=9)
    only(case.verify(), Fault.WRONG_OUTPUT)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"steps": 0}, "steps of 1 or more"),
        ({"steps": True}, "steps of 1 or more"),
        ({"cold": True}, "cold False"),
        ({"steps": 1}, "cold True"),
        ({"time": 1}, "time 25000"),
        ({"bundle": "0" * 16}, "bundle"),
        ({"about": "in:2:34"}, "about"),
        ({"output": {"value": None}}, "an output"),
    ],
)
def test_the_form_of_an_unverifiable_prediction_is_checked(
    gone: Case, members: dict[str, object], expected: str
) -> None:
    gap = json.loads(gone.served.outputs[gone.number(35)][1] or b"").pop("gap")
    gone.change(35, **members)
    assert gap is True
    assert only(gone.verify(), Fault.WRONG_OUTPUT)[1].startswith(expected)


def test_an_unverifiable_prediction_must_be_flagged_and_be_there(gone: Case) -> None:
    number = gone.number(35)
    key, payload = gone.served.outputs[number]
    gone.served.outputs[number] = (key, (payload or b"").replace(b',"gap":true', b""))
    assert only(gone.verify(), Fault.WRONG_OUTPUT)[1] == "gap True"
    del gone.served.outputs[number]
    assert only(gone.verify(), Fault.LOST)[0] == "in:2:35"


def test_unverifiable_predictions_are_held_to_their_order_and_to_each_other(gone: Case) -> None:
    outputs = gone.served.outputs
    outputs.append(outputs[gone.number(35)])
    only(gone.verify(), Fault.DUPLICATE)
    outputs[-1] = changed(outputs[-1], output={"value": 0.25})
    only(gone.verify(), Fault.CONFLICT)
    outputs.pop()
    a, b = gone.number(33), gone.number(36)
    outputs[a], outputs[b] = outputs[b], outputs[a]
    only(gone.verify(), Fault.ORDER)


def test_a_key_that_starts_anew_behind_the_gap_is_checked_in_full(bundle: Bundle) -> None:
    log = a_log()
    log[33 - BASE] = dataclasses.replace(log[33 - BASE], key=b"k", value=None)
    case = make_case(bundle, log, LOST)
    case.gone = LOST[1]
    findings = case.verify()
    assert not findings.counts
    assert findings.unverifiable == 10 + 7 + 2  # k's two later events and its state are exact
    case.change(37, output={"value": 0.25})
    only(case.verify(), Fault.WRONG_OUTPUT)


def test_a_key_that_expires_behind_the_gap_is_checked_in_full(bundle: Bundle) -> None:
    log = a_log()
    for offset in (36, 39):
        late = value(1000 * offset + AFTER)
        log[offset - BASE] = dataclasses.replace(log[offset - BASE], value=late)
    case = make_case(bundle, log, LOST)
    case.gone = LOST[1]
    assert not case.verify().counts
    key = log[39 - BASE].key
    assert json.loads(case.served.outputs[case.number(39)][1] or b"")["steps"] == 2, key
    case.change(39, steps=3)
    only(case.verify(), Fault.WRONG_OUTPUT)


def test_a_state_of_an_unknown_past_is_held_to_its_last_event(gone: Case) -> None:
    state = gone.served.states[b"k"]
    gone.seal(b"k", state[:14] + (38).to_bytes(8, "little") + state[22:])
    assert "last offset" in only(gone.verify(), Fault.WRONG_STATE)[1]
    gone.seal(b"k", state)
    gone.drop(b"k")
    only(gone.verify(), Fault.MISSING_STATE)


def test_a_state_whose_events_are_all_gone_is_only_counted(bundle: Bundle) -> None:
    log = [r for r in a_log() if r.key != b"k" or r.offset < LOST[0]]
    case = make_case(bundle, log, LOST)
    case.gone = LOST[1]
    findings = case.verify()
    assert not findings.counts
    state = case.served.states[b"k"]
    case.seal(b"k", state[:14] + (25).to_bytes(8, "little") + state[22:])
    assert "25" in only(case.verify(), Fault.WRONG_STATE)[2]


@pytest.mark.parametrize("stream", ["28999", ""])
def test_the_stream_time_cannot_be_behind_what_the_log_still_shows(gone: Case, stream: str) -> None:
    assert gone.served.meta["#S"] == "29000"
    gone.served.meta["#S"] = stream
    only(gone.verify(), Fault.WRONG_STATE)
    gone.served.meta["#S"] = "29001"  # a lost record may have moved it
    assert not gone.verify().counts


def test_stream_time_from_before_the_log_leaves_an_expiry_open(bundle: Bundle) -> None:
    lost = Lost.parse("0-10")
    for most, known in ((0, True), (10 * AFTER, False)):
        refold = Refold(OfflineStep(bundle), Origin(lost, False, most))
        refold.fold(10, 10**9, b"k", None)  # exact from here on
        refold.fold(11, 10**9, b"k", value(0))
        refold.fold(12, 10**9, b"j", value(AFTER + 1))
        refold.fold(13, 10**9, b"k", value(1))  # expired, unless the stream was ahead before
        last = refold.expected(3)
        assert (last.known, last.steps) == (known, 1)


# -- outputs about lost offsets --------------------------------------------------------------------


def about_lost(case: Case, place: int) -> None:
    one = case.served.outputs[0]
    case.served.outputs.insert(place, changed(one, id="in:2:25:0", about="in:2:25"))


def test_an_event_may_have_been_predicted_before_it_was_lost(case: Case) -> None:
    about_lost(case, 10)
    for exactly_once in (False, True):
        findings = case.verify(exactly_once=exactly_once)
        assert not findings.counts
        assert findings.unverifiable == 1


def test_with_transactions_a_lost_event_cannot_be_predicted_after_the_stream_went_on(
    case: Case,
) -> None:
    about_lost(case, 11)
    assert not case.verify().counts  # a frozen worker may have held it
    where, expected, _ = only(case.verify(exactly_once=True), Fault.UNEXPECTED)
    assert (where, expected[:4]) == ("in:2:25", "none")


# -- the emit floor --------------------------------------------------------------------------------


def test_outputs_below_the_emit_floor_are_neither_required_nor_compared(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.served.meta["#F"] = "25"
    case.change(12, steps=99)
    case.change(24, gap=True)
    del case.served.outputs[case.number(15)]
    findings = case.verify()
    assert not findings.counts
    assert findings.below_floor == 14
    case.require_from = 25
    assert not case.verify().counts


def test_outputs_at_the_emit_floor_are_required_and_compared(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.served.meta["#F"] = "25"
    case.change(25, steps=99)
    only(case.verify(), Fault.WRONG_OUTPUT)
    del case.served.outputs[case.number(25)]
    only(case.verify(), Fault.LOST)


def test_predictions_may_be_required_below_the_emit_floor(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.served.meta["#F"] = "25"
    case.require_from = BASE
    assert not case.verify().counts
    assert case.verify().below_floor == 0
    del case.served.outputs[case.number(15)]
    only(case.verify(), Fault.LOST)


def test_states_below_the_emit_floor_are_compared_all_the_same(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.served.meta["#F"] = "1000"
    case.drop(b"k")
    only(case.verify(), Fault.MISSING_STATE)


def test_a_dead_letter_below_the_emit_floor_is_neither_required_nor_compared(
    bundle: Bundle,
) -> None:
    log = a_log()
    log[5] = dataclasses.replace(log[5], value=b"{")
    case = make_case(bundle, log)
    case.served.meta["#F"] = "16"
    assert case.verify().below_floor == 6
    case.served.letters.clear()
    assert not case.verify().counts
    case.served.meta["#F"] = "15"
    only(case.verify(), Fault.LOST)


# -- exactly-once outputs --------------------------------------------------------------------------


def test_what_a_transaction_has_committed_is_due_though_not_saved(bundle: Bundle) -> None:
    behind = make_case(bundle, a_log()[:10])
    case = make_case(bundle, a_log())
    case.served.meta, case.served.states = behind.served.meta, behind.served.states
    del case.served.outputs[case.number(24)]
    assert not case.verify(exactly_once=True).counts
    case.served.meta["#C"] = "25"
    only(case.verify(exactly_once=True), Fault.LOST)


def test_a_reset_of_the_outputs_allows_each_prediction_once_more(bundle: Bundle) -> None:
    case = make_case(bundle, a_log())
    case.served.outputs += case.served.outputs
    only(case.verify(exactly_once=True), Fault.DUPLICATE, 30)
    case.served.meta["#R"] = "1"
    findings = case.verify(exactly_once=True)
    assert not findings.counts
    assert findings.repeated_by_reset == 30
    case.served.outputs.append(case.served.outputs[3])
    only(case.verify(exactly_once=True), Fault.DUPLICATE)
