"""keyfold-train --against: only errors that measure the same are compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export.outputs import Forecast, OutputSpec

pytest.importorskip("keras")
from keyfold.training.against import AgainstError, check_comparable
from keyfold.training.cli import main as train

pytestmark = KERAS

VALUE = OutputSpec("regression", ("value",))
CLASSES = OutputSpec("classification", ("calm", "odd"))

CONFIG = """
[data]
files = ["log.jsonl"]
features = ["a"]
time_field = "t"
label = "word"
kind = "classification"
[split]
by = "key"
validation_share = 0.3
[model]
units = [2]
[fit]
rows = 4
window = 8
passes = 1
threads = 1
"""


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        (VALUE, CLASSES, "expected a run of kind 'regression', got 'classification'"),
        (replace(VALUE, answers="session"), VALUE,
         "expected a run with outputs.answers = 'session', got 'event'"),
        (CLASSES, replace(CLASSES, read="every"),
         "expected a run with outputs.read = 'last', got 'every'"),
        (replace(VALUE, delay=3), replace(VALUE, delay=2),
         "expected a run with outputs.delay = 3, got 2"),
        (VALUE, OutputSpec("regression", ("rul",)),
         "expected a run with the same outputs.names, 1 with 'value', got 1 with 'rul': errors "
         "over other names do not compare (--parent keeps a run's)"),
        (OutputSpec("classification", tuple("abcdefgh")), OutputSpec("classification", ("a", "b")),
         "expected a run with the same outputs.names, 8 with 'c', 'd', 'e', 'f', 'g', ..., got 2 "
         "with no other name: errors over other names do not compare (--parent keeps a run's)"),
        (CLASSES, OutputSpec("classification", ("odd", "calm")),
         "expected a run with the same outputs.names, 2 with no other name, got 2 with no other "
         "name: errors over other names do not compare (--parent keeps a run's)"),
    ],
)  # fmt: skip
def test_models_whose_errors_measure_other_things_are_not_compared(
    new: OutputSpec, old: OutputSpec, said: str
) -> None:
    with pytest.raises(AgainstError) as refused:
        check_comparable(new, old)
    assert str(refused.value) == f"--against: {said}"


def test_models_of_the_same_outputs_are_compared() -> None:
    for one in (VALUE, CLASSES, replace(VALUE, delay=2), replace(VALUE, answers="session")):
        check_comparable(one, one)
    # How many classes a prediction shows changes no error; of forecasts the shared ones compare.
    check_comparable(CLASSES, replace(CLASSES, top=1))
    far, near = (OutputSpec.of_forecast(Forecast(("a",), ahead)) for ahead in ((1, 5), (1,)))
    check_comparable(far, near)


def test_a_run_that_knew_fewer_classes_is_refused_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.toml").write_text(CONFIG, encoding="utf-8")

    def write(*words: str) -> None:
        draw = np.random.default_rng(0)
        rows = [
            {
                "key": f"k{n % 8}",
                "t": n,
                "a": float(draw.normal()),
                "word": words[n // 8 % len(words)],
            }
            for n in range(160)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")

    write("calm", "wild")
    assert train(["training.toml"]) == 0
    write("calm", "odd", "wild")
    capsys.readouterr()
    assert train(["training.toml", "--against", "runs/latest"]) == 1
    error = capsys.readouterr().err
    assert "expected a run with the same outputs.names, 3 with 'odd', got 2 with" in error
    assert len(list((tmp_path / "runs").glob("training-*"))) == 1  # nothing was trained in vain
