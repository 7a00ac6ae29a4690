"""SMAP channels become keys; each test file goes on where its training file ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import smap

TABLE = """chan_id,spacecraft,anomaly_sequences,class,num_values
P-2,SMAP,"[[1, 2]]",[point],6
A-1,SMAP,"[[4, 4], [0, 1]]","[point, point]",5
M-6,MSL,"[[1, 2]]",[point],6
P-2,SMAP,"[[2, 3]]",[point],6
"""


def write_folder(folder: Path) -> Path:
    (folder / smap.LABELS).write_text(TABLE, encoding="utf-8")
    for kind, steps in (("train", 3), ("test", 6)):
        (folder / kind).mkdir()
        for place, channel in enumerate(("A-1", "P-2")):
            table = np.zeros((steps, 25))
            table[:, 0] = np.arange(steps) / 10 + place
            table[1, 24] = 1.0
            np.save(folder / kind / f"{channel}.npy", table)
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_channels_run_side_by_side_and_their_test_files_go_on(tmp_path: Path) -> None:
    assert smap.write(write_folder(tmp_path), tmp_path / "out") == {
        "train.jsonl": 6,
        "test.jsonl": 12,
    }
    train, test = (read(tmp_path / "out" / name) for name in ("train.jsonl", "test.jsonl"))
    assert [event["key"] for event in train] == ["A-1", "P-2"] * 3
    assert [event["value"] for event in train if event["key"] == "P-2"] == [1.0, 1.1, 1.2]
    assert [event["command24"] for event in train[:4]] == [0, 0, 1, 1]
    assert "anomaly" not in train[0]
    assert test[0]["time"] - train[-1]["time"] == smap.INTERVAL_MS


def test_anomalies_are_marked_to_their_last_step_and_a_channel_may_have_two_rows(
    tmp_path: Path,
) -> None:
    assert smap.anomalies(write_folder(tmp_path)) == {
        "A-1": [(0, 1), (4, 4)],
        "P-2": [(1, 2), (2, 3)],
    }
    smap.write(tmp_path, tmp_path)
    marks = {
        key: [int(e["anomaly"]) for e in read(tmp_path / "test.jsonl") if e["key"] == key]
        for key in ("A-1", "P-2")
    }
    assert marks == {"A-1": [1, 1, 0, 0, 1, 0], "P-2": [0, 1, 1, 1, 0, 0]}


def test_the_command_writes_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "smap", str(write_folder(tmp_path)), str(out)]) == 0
    assert f"{out / 'train.jsonl'}: 6 events" in capsys.readouterr().out


def test_what_is_missing_or_of_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(smap.SmapError, match=r"labeled_anomalies\.csv: expected.*telemanom"):
        smap.write(tmp_path, tmp_path)
    write_folder(tmp_path)
    np.save(tmp_path / "test" / "P-2.npy", np.zeros((4, 3)))
    with pytest.raises(smap.SmapError, match=r"P-2\.npy: expected shape \(T, 25\), got \(4, 3\)"):
        smap.write(tmp_path, tmp_path)
    (tmp_path / "train" / "A-1.npy").unlink()
    with pytest.raises(smap.SmapError, match=r"A-1\.npy: expected this file"):
        smap.write(tmp_path, tmp_path)
    (tmp_path / smap.LABELS).write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(smap.SmapError, match="expected columns chan_id, spacecraft"):
        smap.write(tmp_path, tmp_path)
