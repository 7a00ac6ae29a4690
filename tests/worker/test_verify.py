"""keyfold-verify is proven here: each kind of harm is planted into right outputs and must be found.

The outputs come from tests/support/naive_worker.py, written with the worker's own codecs. Nothing
here needs Kafka or Redis; the tests of the whole line on real ones are integration tests.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_worker import LogRecord, Served, serve
from rich.console import Console
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker import verify as command
from keyfold.worker.compare import OutputCheck, Place, Strays
from keyfold.worker.dead_letters import DeadLetter, check_dead_letters, parse_dead_letter
from keyfold.worker.errors import Crash
from keyfold.worker.findings import Fault, Findings
from keyfold.worker.refold import OfflineStep, Refold
from keyfold.worker.stored import Stored, check_bundle, check_states

PARTITION, BASE, EVENTS, KEYS = 2, 10, 40, 4
POISON = BASE + 7
NAME = "{g:in:2}"


def a_log(bundle: Bundle) -> list[LogRecord]:
    """Return 40 records of 4 keys from offset 10, one of them (offset 17) no event."""
    draw = np.random.default_rng(1)
    log = []
    for i in range(EVENTS):
        values = dict(zip(bundle.manifest.features.fields, draw.normal(size=2), strict=True))
        text = json.dumps({"time": 1000 * i, **values}).encode()
        key = f"k{i % KEYS}".encode() if i % KEYS else b"\xff\x00"
        log.append(LogRecord(BASE + i, 5_000 + i, key, text))
    log[POISON - BASE] = dataclasses.replace(log[POISON - BASE], value=b"{")
    return log


@dataclasses.dataclass
class Case:
    """A served partition and its verification."""

    bundle: Bundle
    step: OfflineStep
    log: list[LogRecord]
    served: Served

    def verify(self, **options: Any) -> Findings:
        """Compare what was served, as worker/verification.py does."""
        findings, strays = Findings(**options), Strays()
        watermark = int(self.served.meta["#W"])
        place = Place("in", "out", PARTITION, BASE, watermark)
        refold = self._refold(place, findings)
        check = OutputCheck(self.bundle, place, refold, findings, strays)
        for offset, (key, value) in enumerate(self.served.outputs):
            check.prediction(offset, key, value)
        check.finish()
        strays.report(findings)
        letters: dict[int, list[DeadLetter]] = {}
        for number, (key, value, headers) in enumerate(self.served.letters):
            parsed = parse_dead_letter(f"in.rejects:0:{number}", key, value, headers)
            assert parsed is not None
            letters.setdefault(parsed[2], []).append(parsed[3])
        check_dead_letters(self.bundle, place, refold, letters, findings)
        return findings

    def _refold(self, place: Place, findings: Findings) -> Refold:
        refold = Refold(self.step)
        stored = Stored(NAME, self.served.meta, self.served.states)
        for r in self.log:
            if r.offset == place.watermark:
                check_states(self.bundle, place, refold, stored, findings)
            refold.fold(r.offset, r.timestamp_ms, r.key, r.value)
        if self.log[-1].offset < place.watermark:
            check_states(self.bundle, place, refold, stored, findings)
        return refold

    def number(self, offset: int) -> int:
        """Return the place among the outputs of the prediction for an input offset."""
        id_ = f'"id":"in:{PARTITION}:{offset}:0"'.encode()
        return next(i for i, (_, v) in enumerate(self.served.outputs) if id_ in (v or b""))

    def change(self, offset: int, **members: Any) -> None:
        """Change members of the prediction for an input offset."""
        number = self.number(offset)
        self.served.outputs[number] = changed(self.served.outputs[number], **members)


def changed(original: tuple[bytes | None, bytes | None], **members: Any) -> tuple[Any, bytes]:
    """Return an output with other members."""
    return original[0], json.dumps({**json.loads(original[1] or b""), **members}).encode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def case(bundle: Bundle) -> Case:
    log = a_log(bundle)
    return Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log))


def only(findings: Findings, fault: Fault, count: int = 1) -> tuple[str, str, str]:
    """Check that a fault was found so often, and no other; return its first example."""
    assert dict(findings.counts) == {fault: count}
    example = findings.examples[fault][0]
    return example.where, example.expected, example.got


# -- right outputs ---------------------------------------------------------------------------------


def test_right_outputs_and_states_are_clean(case: Case) -> None:
    findings = case.verify()
    assert not findings.counts
    assert (findings.events, findings.rejects, findings.predictions) == (39, 1, 39)
    assert (findings.states, findings.dead_letters) == (KEYS, 1)
    assert findings.max_abs_difference == 0.0  # the same steps, one at a time, on both sides
    assert findings.max_abs_state_difference == 0.0


def test_right_classifications_are_clean(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    log = a_log(bundle)
    findings = Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log)).verify()
    assert not findings.counts


def test_a_wrong_label_is_a_wrong_output(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    log = a_log(bundle)
    case = Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log))
    output = json.loads(case.served.outputs[case.number(20)][1] or b"")["output"]
    worst = int(np.argmin(output["probabilities"]))
    case.change(20, output={**output, "label": bundle.manifest.outputs.names[worst]})
    where, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
    assert where == "in:2:20"
    assert expected.startswith("label")
    assert got.startswith(f"label {bundle.manifest.outputs.names[worst]!r}")


def test_tombstones_that_reset_are_clean_and_leave_no_state(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, tombstone="reset")
    log = a_log(bundle)
    for reset in (12, 19, 47):  # k2, k1, and k1's last record
        log[reset - BASE] = dataclasses.replace(log[reset - BASE], value=None)
    log[-1] = dataclasses.replace(log[-1], value=None)
    case = Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log))
    findings = case.verify()
    assert not findings.counts
    assert (findings.resets, findings.states) == (4, KEYS - 2)
    case.served.states[b"k3"] = case.served.states[b"k2"]
    assert only(case.verify(), Fault.EXTRA_STATE)[0].startswith("key 'k3'")


def test_predictions_above_the_watermark_are_compared_but_not_demanded(case: Case) -> None:
    behind = serve(case.bundle, "in", PARTITION, case.log[:30])
    case.served.meta, case.served.states = behind.meta, behind.states
    assert not case.verify().counts
    case.served.outputs.pop()
    assert not case.verify().counts
    case.change(45, steps=99)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[0] == "in:2:45"


# -- planted harm: outputs -------------------------------------------------------------------------


def test_a_lost_prediction_is_found(case: Case) -> None:
    del case.served.outputs[case.number(23)]
    where, expected, got = only(case.verify(), Fault.LOST)
    assert (where, expected, got) == ("in:2:23", "a prediction for key 'k1'", "none")


def test_a_repeated_prediction_is_no_violation_of_at_least_once(case: Case) -> None:
    case.served.outputs += case.served.outputs[20:25]
    findings = case.verify()
    only(findings, Fault.DUPLICATE, 5)
    assert findings.violations == 0


def test_a_repeated_prediction_violates_exactly_once(case: Case) -> None:
    case.served.outputs.append(case.served.outputs[20])
    findings = case.verify(exactly_once=True)
    only(findings, Fault.DUPLICATE)
    assert findings.violations == 1


def test_a_repetition_within_the_tolerance_is_a_duplicate(case: Case) -> None:
    output = case.served.outputs[20]
    value = json.loads(output[1] or b"")["output"]["value"]
    case.served.outputs.append(changed(output, output={"value": value + 1e-7}))
    only(case.verify(), Fault.DUPLICATE)


def test_a_repetition_with_another_content_conflicts(case: Case) -> None:
    case.served.outputs.append(changed(case.served.outputs[20], output={"value": 0.25}))
    where, _, got = only(case.verify(), Fault.CONFLICT)
    assert where.startswith("in:2:3")
    assert got.startswith("0.25 at out:2:39")


def test_a_right_prediction_after_a_wrong_one_conflicts(case: Case) -> None:
    right = case.served.outputs[20]
    case.served.outputs[20] = changed(right, output={"value": 0.25})
    case.served.outputs.append(right)
    assert dict(case.verify().counts) == {Fault.WRONG_OUTPUT: 1, Fault.CONFLICT: 1}


def test_predictions_of_a_key_out_of_order_are_found(case: Case) -> None:
    first, second = case.number(21), case.number(25)  # both k3
    outputs = case.served.outputs
    outputs[first], outputs[second] = outputs[second], outputs[first]
    where, expected, _ = only(case.verify(), Fault.ORDER)
    assert where == "in:2:21"
    assert "offset 25" in expected


def test_keys_may_overtake_each_other(case: Case) -> None:
    case.served.outputs.sort(key=lambda output: output[0] or b"")
    assert not case.verify().counts


@pytest.mark.parametrize("other", [b"k2", None, b""])
def test_a_prediction_under_another_record_key_is_found(case: Case, other: bytes | None) -> None:
    number = case.number(23)
    case.served.outputs[number] = (other, case.served.outputs[number][1])
    where, expected, got = only(case.verify(), Fault.CROSS_KEY)
    assert (where, expected) == ("in:2:23", "key 'k1'")
    assert "record key" in got


def test_a_prediction_that_names_another_key_is_found(case: Case) -> None:
    case.change(23, key="k2")
    assert only(case.verify(), Fault.CROSS_KEY)[0] == "in:2:23"


def test_a_binary_key_shown_as_text_is_found(case: Case) -> None:
    case.change(22, key="k2")
    assert only(case.verify(), Fault.CROSS_KEY)[0] == "in:2:22"


def test_a_prediction_in_another_partition_is_misplaced_and_not_lost(case: Case) -> None:
    place = Place("in", "out", PARTITION, BASE, BASE + EVENTS)
    other = dataclasses.replace(place, partition=0)
    findings, strays = Findings(), Strays()
    stray = case.served.outputs.pop(case.number(23))
    refold, empty = Refold(case.step), Refold(case.step)
    for r in case.log:
        refold.fold(r.offset, r.timestamp_ms, r.key, r.value)
    check = OutputCheck(case.bundle, place, refold, findings, strays)
    for offset, (key, value) in enumerate(case.served.outputs):
        check.prediction(offset, key, value)
    check.finish()
    OutputCheck(case.bundle, other, empty, findings, strays).prediction(0, *stray)
    strays.report(findings)
    where, expected, got = only(findings, Fault.CROSS_KEY)
    assert (where, expected, got) == ("in:2:23", "a prediction in partition 2", "at out:0:0")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"output": {"value": 0.25}}, "value"),
        ({"output": {"other": 0.25}}, "an output of value"),
        ({"output": {"value": None}}, "an output of value"),
        ({"output": [0.25]}, "an output of value"),
        ({"steps": 9}, "steps 4"),
        ({"steps": 4.0}, "steps 4"),
        ({"cold": True}, "cold False"),
        ({"cold": 0}, "cold False"),
        ({"time": 1}, "time 13000"),
        ({"bundle": "0" * 16}, "bundle"),
        ({"about": "in:2:22"}, "about 'in:2:23'"),
        ({"surprise": 1}, "no further members"),
    ],
)
def test_a_wrong_prediction_is_found(case: Case, members: dict[str, Any], expected: str) -> None:
    case.change(23, **members)
    findings = case.verify()
    where, wanted, _ = only(findings, Fault.WRONG_OUTPUT)
    assert where == "in:2:23"
    assert wanted.startswith(expected)


def test_the_largest_difference_is_reported(case: Case) -> None:
    value = json.loads(case.served.outputs[case.number(23)][1] or b"")["output"]["value"]
    case.change(23, output={"value": value + 0.5})
    assert case.verify().max_abs_difference == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"id": "in:2:17:0"}, "in:2:17"),  # a reject
        ({"id": "in:2:999:0"}, "in:2:999"),  # no record
        ({"id": "in:2:23:1"}, "out:2:12"),  # an index that is not in use
        ({"id": "elsewhere:2:23:0"}, "out:2:12"),
        ({"id": 7}, "out:2:12"),
    ],
)
def test_a_prediction_that_nothing_asks_for_is_found(
    case: Case, members: dict[str, Any], where: str
) -> None:
    number = case.number(23)
    case.served.outputs.insert(number, changed(case.served.outputs[number], **members))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == where


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff"])
def test_an_output_record_that_is_no_prediction_is_found(case: Case, value: bytes | None) -> None:
    case.served.outputs.append((b"k1", value))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == "out:2:39"


def test_outputs_of_events_before_the_base_are_counted_and_left_alone(case: Case) -> None:
    case.served.outputs.append(changed(case.served.outputs[0], id="in:2:3:0"))
    findings = case.verify()
    assert not findings.counts
    assert findings.before_base == 1


# -- planted harm: dead letters --------------------------------------------------------------------


def test_a_missing_dead_letter_is_lost(case: Case) -> None:
    case.served.letters.clear()
    where, expected, got = only(case.verify(), Fault.LOST)
    assert (where, got) == (f"in:2:{POISON}", "none")
    assert expected.startswith("a dead letter: the record's value is not valid JSON")


@pytest.mark.parametrize(
    ("header", "text"),
    [("keyfold-bundle", b"another"), ("keyfold-reason", b""), ("keyfold-reason", b"because")],
)
def test_a_dead_letter_with_a_wrong_header_will_not_do(
    case: Case, header: str, text: bytes
) -> None:
    key, value, headers = case.served.letters[0]
    case.served.letters[0] = (key, value, list({**dict(headers), header: text}.items()))
    assert header in only(case.verify(), Fault.LOST)[2]


@pytest.mark.parametrize("original", [(b"k2", b"{"), (b"k3", b"{}"), (b"k3", None)])
def test_a_dead_letter_without_the_original_bytes_will_not_do(
    case: Case, original: tuple[bytes, bytes | None]
) -> None:
    assert case.served.letters[0][:2] == (b"k3", b"{")
    case.served.letters[0] = (*original, case.served.letters[0][2])
    assert only(case.verify(), Fault.LOST)[2].startswith("another key or value")


def test_a_right_dead_letter_beside_a_wrong_one_will_do(case: Case) -> None:
    key, _, headers = case.served.letters[0]
    case.served.letters.insert(0, (key, b"", headers))
    assert not case.verify().counts


def test_a_value_too_large_for_the_topic_may_be_cut_if_its_size_is_told(case: Case) -> None:
    key, _, headers = case.served.letters[0]
    case.served.letters[0] = (key, b"", [*headers, ("keyfold-truncated", b"1")])
    assert not case.verify().counts
    case.served.letters[0] = (key, b"", [*headers, ("keyfold-truncated", b"2")])
    only(case.verify(), Fault.LOST)


def test_a_dead_letter_of_an_event_is_found(case: Case) -> None:
    key, value, headers = case.served.letters[0]
    other = list({**dict(headers), "keyfold-offset": b"23"}.items())
    case.served.letters.append((key, value, other))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == "in:2:23"


@pytest.mark.parametrize("missing", range(5))
def test_a_dead_letter_needs_all_headers(case: Case, missing: int) -> None:
    key, value, headers = case.served.letters[0]
    del headers[missing]
    assert parse_dead_letter("in.rejects:0:0", key, value, headers) is None


# -- planted harm: states --------------------------------------------------------------------------


def spoil(at: int, by: int = 1) -> Callable[[bytes], bytes]:
    """Return a function that changes one byte."""
    return lambda value: value[:at] + bytes([value[at] ^ by]) + value[at + 1 :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (spoil(0), "version 1"),
        (spoil(1), "version 1, checksum"),
        (spoil(40), "version 1, checksum"),
        (lambda value: value[:-1], "61 bytes"),
        (lambda value: value + b"\0", "61 bytes"),
    ],
)
def test_a_damaged_state_is_found(
    case: Case, change: Callable[[bytes], bytes], expected: str
) -> None:
    case.served.states[b"k1"] = change(case.served.states[b"k1"])
    where, wanted, _ = only(case.verify(), Fault.WRONG_STATE)
    assert where == "key 'k1' in {g:in:2} at watermark 50"
    assert wanted.startswith(expected)


def test_a_state_of_another_key_is_found(case: Case) -> None:
    case.served.states[b"k1"] = case.served.states[b"k2"]
    assert "checksum" in only(case.verify(), Fault.WRONG_STATE)[1]


def without(records: Sequence[LogRecord], offset: int) -> list[LogRecord]:
    """Return records without the one at an offset."""
    return [record for record in records if record.offset != offset]


def test_a_state_that_missed_an_event_is_found(case: Case) -> None:
    wrong = serve(case.bundle, "in", PARTITION, without(case.log, 23))
    case.served.states[b"k1"] = wrong.states[b"k1"]
    where, expected, got = only(case.verify(), Fault.WRONG_STATE)
    assert where.startswith("key 'k1'")
    assert expected.startswith("10 steps")
    assert got.startswith("9 steps")


def test_a_state_with_another_number_is_found(case: Case) -> None:
    values = {"time": 13_000, "a": 9.0, "b": -9.0}
    other = dataclasses.replace(case.log[13], value=json.dumps(values).encode())
    wrong = serve(case.bundle, "in", PARTITION, [*case.log[:13], other, *case.log[14:]])
    case.served.states[b"k1"] = wrong.states[b"k1"]
    findings = case.verify()
    _, expected, got = only(findings, Fault.WRONG_STATE)
    assert expected.startswith("h within 1e-05")
    assert got.startswith("a difference of")
    assert findings.max_abs_state_difference > 1e-5


def test_a_missing_state_is_found(case: Case) -> None:
    del case.served.states[b"k1"]
    where, expected, got = only(case.verify(), Fault.MISSING_STATE)
    assert where.startswith("key 'k1'")
    assert (expected, got) == ("a state of 10 steps, last offset 47", "none")


def test_the_state_of_a_key_never_seen_is_found(case: Case) -> None:
    case.served.states[b"nobody"] = case.served.states[b"k1"]
    assert only(case.verify(), Fault.EXTRA_STATE)[0].startswith("key 'nobody'")


def test_another_record_at_the_watermark_is_found(case: Case) -> None:
    offset, timestamp, crc = case.served.meta["#L"].split(":")
    case.served.meta["#L"] = f"{offset}:{timestamp}:{int(crc) ^ 1}"
    assert "#L" in only(case.verify(), Fault.WRONG_STATE)[0]


def test_states_ahead_of_the_watermark_are_found(case: Case) -> None:
    case.served.meta["#W"] = "30"
    case.served.meta["#L"] = serve(case.bundle, "in", PARTITION, case.log[:20]).meta["#L"]
    only(case.verify(), Fault.WRONG_STATE, KEYS)


@pytest.mark.parametrize(("field", "text"), [("#M", "0" * 16), ("#V", "2")])
def test_states_of_another_bundle_or_layout_cannot_be_verified(
    case: Case, field: str, text: str
) -> None:
    case.served.meta[field] = text
    with pytest.raises(Crash, match=f"{field}: expected .*, got {text}"):
        check_bundle(Stored(NAME, case.served.meta, {}), case.bundle)


# -- the report and the command --------------------------------------------------------------------


def test_the_report_names_each_violation_and_its_first_examples(case: Case) -> None:
    case.served.outputs.append(case.served.outputs[3])
    for offset in (20, 21, 22, 23):
        case.change(offset, steps=99)
    printed = io.StringIO()
    case.verify(keep=2).show(Console(file=printed, width=200))
    text = printed.getvalue()
    assert "NOT CLEAN: 4 violations" in text
    assert text.count("wrong output: in:2:2") == 2
    assert "at-least-once: allowed" in text
    assert "39 events (1 rejects, 0 resets), 40 predictions" in text


def test_the_json_counts_missing_and_extra_states_as_wrong_ones(case: Case) -> None:
    case.served.states[b"nobody"] = case.served.states.pop(b"k1")
    data = json.loads(json.dumps(case.verify().to_json()))
    assert (data["wrong_states"], data["missing_states"], data["extra_states"]) == (2, 1, 1)
    assert (data["clean"], data["violations"], data["lost"], data["conflicts"]) == (False, 2, 0, 0)


def test_a_missing_setting_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--brokers", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keyfold-verify: ")
    assert "kafka.input is required" in error
    assert error.count("\n") == 1


def test_an_offset_is_refused_where_redis_knows_it(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--brokers=127.0.0.1:1 --input=i --output=o --bundle={case.bundle.path}".split()
    assert command.main([*flags, "--from-offset=3"]) == 2
    assert "--no-state" in capsys.readouterr().err
