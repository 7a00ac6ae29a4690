"""The smartwatch data becomes two logs that share no subject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.training.datasets import smartwatch

LABELS = ["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two exercises of three events for each side of the ten subjects, instead of the package."""
    draw = np.random.default_rng(0)
    combinations = [(s, side, y) for s in range(1, 11) for side in (0, 1) for y in (2, 5)]
    subjects, sides, labels = (np.array(column) for column in zip(*combinations, strict=True))
    data: dict[str, Any] = {
        "X": [draw.normal(size=(14, 6)) for _ in combinations],
        "y": labels,
        "subject": subjects,
        "side": sides.astype(float),
        "y_labels": LABELS,
    }
    monkeypatch.setattr(smartwatch, "_load", lambda: data)
    return tmp_path / "logs"


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_whole_subjects_are_held_out_with_both_sides(folder: Path) -> None:
    assert smartwatch.write(folder, held_out=[3, 7]) == {"train.jsonl": 96, "held_out.jsonl": 24}
    keys = {
        name: {e["key"] for e in read(folder / name)} for name in ("train.jsonl", "held_out.jsonl")
    }
    assert keys["held_out.jsonl"] == {
        "subject-03-left",
        "subject-03-right",
        "subject-07-left",
        "subject-07-right",
    }
    assert len(keys["train.jsonl"]) == 16
    assert not keys["train.jsonl"] & keys["held_out.jsonl"]


def test_events_are_interleaved_in_time_at_their_rate(folder: Path) -> None:
    smartwatch.write(folder, held_out=[3])
    events = read(folder / "train.jsonl")
    times = [event["time"] for event in events]
    assert times == sorted(times)
    one = [event["time"] for event in events if event["key"] == "subject-01-left"]
    assert set(np.diff(one)) == {80}
    assert len({event["key"] for event in events[:18]}) == 18


def test_an_event_is_the_mean_of_four_readings(folder: Path) -> None:
    smartwatch.write(folder)
    events = [e for e in read(folder / "train.jsonl") if e["key"] == "subject-01-left"]
    series = smartwatch._load()["X"][:2]  # of this key, in either order
    expected = {round(float(x[4 * i : 4 * i + 4, 0].mean()), 6) for x in series for i in range(3)}
    assert {event["ax"] for event in events} == expected


def test_the_order_of_exercises_differs_between_keys_and_never_between_calls(folder: Path) -> None:
    smartwatch.write(folder)
    text = (folder / "train.jsonl").read_bytes()
    smartwatch.write(folder)
    assert (folder / "train.jsonl").read_bytes() == text
    first = {e["key"]: e["exercise"] for e in reversed(read(folder / "train.jsonl"))}
    assert set(first.values()) == {"FEL", "TRAP"}


def test_an_unknown_subject_is_refused(folder: Path) -> None:
    with pytest.raises(smartwatch.SmartwatchError, match="subject 11: expected one of 1 to 10"):
        smartwatch.write(folder, held_out=[11])
