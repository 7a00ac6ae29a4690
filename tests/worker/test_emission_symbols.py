"""Section [emit] on recognised symbols, and how people see them: tail, a scored table, init."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from keyfold.export.events import OutputSpec
from keyfold.export.states import cold
from keyfold.worker.config import SettingsError
from keyfold.worker.emission import OUTPUT, Emission
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Reject
from keyfold.worker.first_day.init_text import Names, settings_text
from keyfold.worker.score.cli import main as score
from keyfold.worker.score.live_error import LiveError
from keyfold.worker.tail.view import read_prediction

SYMBOLS = OutputSpec("transcription", ("", "yes", "no"))
TOLD = [0, 1, 0, 2, 2, 0]  # columns of new symbols, 0: none


def verdicts(emit: Emit) -> list[bool]:
    """Return of which of six events a prediction is emitted."""
    rule = Emission.of(emit, SYMBOLS)
    assert rule is not None
    y = np.linspace(0.4, 0.9, 6, dtype=np.float32)[None, :, None] * np.ones(3, np.float32)
    scores = np.array(TOLD, np.float32)[None, :, None]
    found, _ = rule.run(y, scores, np.array([6]), cold(rule.states, 1))
    return [bool(verdict & OUTPUT) for verdict in found[0].tolist()]


def test_by_default_a_prediction_is_emitted_when_there_is_a_symbol() -> None:
    emit = Emit("when")
    assert verdicts(emit) == [False, True, False, True, True, False]
    rule = Emission.of(emit, SYMBOLS)
    assert rule is not None
    assert rule.said == "a prediction is emitted when symbol is there"


def test_it_may_be_one_symbol_or_how_probable_it_is() -> None:
    assert verdicts(Emit("when", equals="no")) == [False, False, False, True, True, False]
    assert verdicts(Emit("when", "probability", above=0.75)) == [False] * 4 + [True, True]


def test_a_change_is_another_symbol_or_none_where_one_was() -> None:
    assert verdicts(Emit("on_change")) == [True, True, True, True, False, True]


@pytest.mark.parametrize(
    ("emit", "expected"),
    [
        (Emit("when", equals="maybe"), r"emit\.equals: expected one of yes, no, got maybe"),
        (Emit("when", above=0.5), r"emit\.above: expected none: emit\.field 'symbol' is a symbol"),
        (Emit("when", "label"), r"emit\.field: expected one of symbol, probability, got 'label'"),
    ],
)
def test_what_no_symbol_can_be_is_refused(emit: Emit, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Emission.of(emit, SYMBOLS)


def test_the_written_settings_name_a_symbol(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, outputs=SYMBOLS)
    names = Names(bundle.path, "h:1", "in", "out", "group", "redis://h")
    text = settings_text("worker.toml", names, bundle.manifest, [], [])
    assert '#field = "symbol"' in text
    assert '#equals = "yes"' in text


def test_tail_shows_the_symbol_or_a_dash() -> None:
    said = {"key": "k", "time": 0, "steps": 2, "cold": False}
    for symbol, wanted in (("yes", "yes 97%"), (None, "- 97%")):
        output = {"symbol": symbol, "probability": 0.97}
        shown = read_prediction(json.dumps({**said, "output": output}).encode())
        assert shown is not None
        assert shown.output == wanted
        assert (shown.signal, shown.bounded) == (0.97, True)


def test_a_scored_table_has_a_column_of_symbols(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    bundle = make_tiny_bundle(tmp_path, outputs=SYMBOLS)
    draw = np.random.default_rng(2)
    rows = [{"key": "k", "time": t, "a": draw.normal(), "b": draw.normal()} for t in range(40)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for name in ("out.parquet", "out.jsonl"):
        assert score([str(log), str(bundle.path), "--out", str(tmp_path / name)]) == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line)["output"]["symbol"] for line in lines]
    assert table["output.symbol"].to_pylist() == told
    assert set(told) == {None, "yes", "no"}


def test_late_labels_are_not_compared_with_symbols() -> None:
    output = {"symbol": "yes", "probability": 0.9}
    with pytest.raises(Reject, match="expected predictions of a number or a class, got symbols"):
        LiveError({}, 0).add({"key": "k", "time": 1, "output": output})
