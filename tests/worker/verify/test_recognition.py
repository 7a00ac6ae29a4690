"""Recognised symbols: each kind of harm in them must be found, and a tie is no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_worker import LogRecord
from tiny_bundle import make_tiny_bundle
from verify_case import BASE, Case, make_case, only

from keyfold.export.events import OutputSpec
from keyfold.export.recognition import Recognition
from keyfold.export.states import cold
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.offline_recognition import OfflineRecognition, is_possible
from keyfold.worker.verify.recognition_reading import RecognitionReading

SYMBOLS = OutputSpec("transcription", ("", "a", "b", "c"))
EVENTS = 120  # of 4 keys


@pytest.fixture
def case(tmp_path: Path) -> Case:
    draw = np.random.default_rng(3)
    log = [
        LogRecord(
            BASE + i, 5_000 + i, b"k%d" % (i % 4),
            json.dumps({"time": i, "a": draw.normal(), "b": draw.normal()}).encode(),
        )
        for i in range(EVENTS)
    ]  # fmt: skip
    return make_case(make_tiny_bundle(tmp_path, outputs=SYMBOLS), log)


def outputs(case: Case) -> list[dict[str, Any]]:
    return [json.loads(value or b"")["output"] for _, value in case.served.outputs]


def place(case: Case, *, told: bool) -> int:
    """Return the offset of an event late in the log that tells a symbol, or none."""
    found = outputs(case)
    return BASE + max(i for i in range(EVENTS) if (found[i]["symbol"] is not None) is told)


def test_right_symbols_are_clean(case: Case) -> None:
    findings = case.verify()
    assert not findings.counts
    assert (findings.predictions, findings.states) == (EVENTS, 4)
    assert {output["symbol"] for output in outputs(case)} == {None, "a", "b", "c"}


@pytest.mark.parametrize("told", [True, False])
def test_a_wrong_symbol_is_found(case: Case, told: bool) -> None:
    at = place(case, told=told)
    right = outputs(case)[at - BASE]
    for symbol in {None, "a", "b", "c"} - {right["symbol"]}:
        case.change(at, output={**right, "symbol": symbol})
        where, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
        assert where == f"in:2:{at}"
        assert expected == f"symbol {right['symbol'] or 'null'}"
        assert got.startswith(f"symbol {symbol or 'null'}")
    case.change(at, output=right)
    assert not case.verify().counts


def test_a_wrong_probability_is_found(case: Case) -> None:
    at = place(case, told=True)
    right = outputs(case)[at - BASE]
    case.change(at, output={**right, "probability": right["probability"] * 1.001})
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1].startswith("probability ")


@pytest.mark.parametrize(
    "wrong",
    [None, [], {}, {"symbol": "a"}, {"symbol": "a", "probability": True},
     {"symbol": "", "probability": 0.5}, {"symbol": "z", "probability": 0.5},
     {"symbol": 1, "probability": 0.5}, {"symbol": None, "probability": "0.5"},
     {"symbol": None, "probability": 0.5, "more": 1}],
)  # fmt: skip
def test_an_output_of_another_form_is_found(case: Case, wrong: Any) -> None:
    case.change(BASE + 60, output=wrong)
    only(case.verify(), Fault.WRONG_OUTPUT)


def test_another_previous_best_column_in_a_state_is_found(case: Case) -> None:
    key = b"k1"
    state = case.served.states[key]
    # The tensor is the last four bytes.
    other = (int.from_bytes(state[-4:], "little") + 1) % 4
    case.seal(key, state[:-4] + other.to_bytes(4, "little"))
    assert only(case.verify(), Fault.WRONG_STATE)[1].startswith("back.best ")


def rows(*values: list[float]) -> list[np.ndarray[Any, Any]]:
    return [np.array(value, np.float32) for value in values]


def test_the_oracle_reads_as_the_worker_does_where_nothing_is_close() -> None:
    draw = np.random.default_rng(1)
    y = draw.normal(size=(500, 4)).astype(np.float32)
    back, own = Recognition(), OfflineRecognition(4, 0.0)
    told, _ = back.run(y[None], None, np.array([500]), cold(back.states, 1))
    memory = own.cold()
    for event in range(500):
        may, memory = own.one(y[event], memory)
        assert may == [float(column == told[0, event, 0]) for column in range(4)]


def test_of_nearly_equal_columns_either_is_right_and_both_are_followed() -> None:
    own = OfflineRecognition(3, 0.01)
    first, second = rows([0.1, 0.5, 0.49], [0.1, 0.2, 0.8])
    told, memory = own.one(first, own.cold())
    assert told == [0.0, 1.0, 1.0]
    assert is_possible(1, memory)
    assert is_possible(2, memory)
    assert not is_possible(0, memory)
    assert not is_possible(-1, memory)
    assert not is_possible(7, memory)
    # Column 2 is new if it was not the best before, and held if it was.
    told, memory = own.one(second, memory)
    assert told == [1.0, 0.0, 1.0]
    assert not is_possible(1, memory)


def test_a_repetition_says_the_same_symbol() -> None:
    reading = RecognitionReading(SYMBOLS.names, 0.01, Findings())
    first = {"symbol": "a", "probability": 0.5}
    assert reading.repeats(first, {**first, "probability": 0.505})
    assert not reading.repeats(first, {**first, "probability": 0.52})
    assert not reading.repeats(first, {**first, "symbol": None})
    assert not reading.repeats(first, {"symbol": "a"})
