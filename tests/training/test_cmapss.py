"""C-MAPSS text files, plain or gzipped, become event logs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from keyfold.training.datasets import cmapss


def rows(unit: int, cycles: int) -> str:
    values = [f"{unit + place / 100:.2f}" for place in range(24)]
    # The original files end their lines with two blanks.
    return "".join(f"{unit} {cycle} {' '.join(values)}  \n" for cycle in range(1, cycles + 1))


def write_folder(folder: Path, subset: str = "FD003", *, packed: bool = False) -> Path:
    texts = {
        f"train_{subset}.txt": rows(1, 5) + rows(2, 3),
        f"test_{subset}.txt": rows(1, 2) + rows(2, 4),
        f"RUL_{subset}.txt": "112 \n98 \n",
    }
    for name, text in texts.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text, encoding="ascii")
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("packed", [False, True])
def test_any_subset_plain_or_packed_becomes_two_logs(tmp_path: Path, packed: bool) -> None:
    counts = cmapss.write(write_folder(tmp_path, packed=packed), "FD003", tmp_path / "out")
    assert counts == {"train.jsonl": 8, "test.jsonl": 6}
    first = read(tmp_path / "out" / "train.jsonl")[0]
    assert first["key"] == "FD003-train-engine-001"
    assert (first["cycle"], first["setting1"], first["s1"], first["s21"]) == (1, 1.0, 1.03, 1.23)
    assert len(first) == 3 + 24 + 1


def test_the_label_counts_down_to_failure_or_to_what_the_test_engine_had_left(
    tmp_path: Path,
) -> None:
    cmapss.write(write_folder(tmp_path), "FD003", tmp_path)
    labels: dict[str, list[float]] = {}
    for event in read(tmp_path / "train.jsonl") + read(tmp_path / "test.jsonl"):
        labels.setdefault(event["key"], []).append(event["rul"])
    assert labels == {
        "FD003-train-engine-001": [4, 3, 2, 1, 0],
        "FD003-train-engine-002": [2, 1, 0],
        "FD003-test-engine-001": [113, 112],
        "FD003-test-engine-002": [101, 100, 99, 98],
    }


def test_engines_run_side_by_side_in_time_order(tmp_path: Path) -> None:
    cmapss.write(write_folder(tmp_path), "FD003", tmp_path)
    times = [(event["time"], event["key"]) for event in read(tmp_path / "train.jsonl")]
    assert times == sorted(times)
    assert times[0][0] == times[1][0]


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(cmapss.CmapssError, match=r"train_FD001\.txt: expected.*NASA"):
        cmapss.write(tmp_path, "FD001", tmp_path)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "RUL_FD003.txt").write_text("112\n", encoding="ascii")
    with pytest.raises(cmapss.CmapssError, match="expected 2 lines, one per test engine, got 1"):
        cmapss.write(folder, "FD003", tmp_path)
    (folder / "train_FD003.txt").write_text("1 2 3\n", encoding="ascii")
    with pytest.raises(cmapss.CmapssError, match="expected 26 columns, got 3"):
        cmapss.write(folder, "FD003", tmp_path)
    (folder / "train_FD003.txt").write_text("1 2 x\n", encoding="ascii")
    with pytest.raises(cmapss.CmapssError, match=r"train_FD003\.txt: expected 26 columns"):
        cmapss.write(folder, "FD003", tmp_path)
