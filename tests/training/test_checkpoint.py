"""A training that was ended and gone on with gives the weights of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export.events import OutputSpec
from keyfold.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    CheckpointError,
    Snapshot,
    data_sha256,
    unfinished,
)
from keyfold.training.config import Config, Data, Fit, Model, Split
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
from keyfold.training.cli import main  # noqa: E402
from keyfold.training.fit import History, Watch, fit  # noqa: E402
from keyfold.training.kept import checkpoint_of  # noqa: E402
from keyfold.training.losses import squared_error  # noqa: E402
from keyfold.training.model import build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = KERAS
VALUE = OutputSpec("regression", ("value",))
SCALING = Scaling((0.5,), (0.5,), 0.5, 0.5)
MODEL = Model(units=(5,), dropout=0.3, input_noise=0.1)
FIT = Fit(
    seed=5, rows=3, window=8, passes=3, average=0.9, random_start=0.5, schedule="cosine",
    warm_up=1.5, learning_rate=0.02, save_every_s=0.0,
)  # fmt: skip


class Killed(Exception):
    """Stands for what ends a program between two windows."""


class Dying(Checkpoint):
    """A checkpoint whose program ends behind the n-th save."""

    left: int = 0

    def save(self, data: str, snapshot: Snapshot) -> None:
        super().save(data, snapshot)
        self.left -= 1
        if self.left == 0:
            raise Killed


def part() -> Part:
    draw = np.random.default_rng(1)
    sequences = []
    for number, length in enumerate((40, 25, 33, 12, 50)):
        x = draw.integers(0, 2, length).astype(np.float32)
        times = np.zeros(length, np.int64)
        sequences.append(Sequence(f"k{number}", x[:, None], times, np.roll(x, 2)))
    return Part(tuple(sequences), (0,) * 5)


def trained(
    settings: Fit, checkpoint: Checkpoint | None = None, model: Model = MODEL
) -> tuple[list[Any], History]:
    keras.utils.set_random_seed(settings.seed)
    network = build(model, SCALING, VALUE)
    history = fit(
        network, (part(), part()), settings, squared_error(0.5), Watch(checkpoint=checkpoint)
    )
    return network.whole.get_weights(), history


@pytest.mark.parametrize("saves", [1, 4, 7, 12])
def test_a_training_ended_anywhere_goes_on_as_if_it_had_not(tmp_path: Path, saves: int) -> None:
    expected, history = trained(FIT)
    dying = Dying(tmp_path, {"fit": {"rows": 3}}, 0.0)
    dying.left = saves
    with pytest.raises(Killed):
        trained(FIT, dying)
    got, again = trained(FIT, Checkpoint(tmp_path, {"fit": {"rows": 3}}, 0.0))
    assert again == history
    for a, b in zip(expected, got, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "model",
    [
        Model(cell="gru", units=(4, 4), recurrent_dropout=0.3, residual=True, norm="layer"),
        Model(family="transformer", units=(4,), heads=2, window=6, dropout=0.2),
    ],
)
def test_a_training_of_another_family_goes_on_as_if_it_had_not_ended(
    tmp_path: Path, model: Model
) -> None:
    settings = replace(FIT, passes=2)
    expected, history = trained(settings, model=model)
    dying = Dying(tmp_path, {}, 0.0)
    dying.left = 5
    with pytest.raises(Killed):
        trained(settings, dying, model)
    got, again = trained(settings, Checkpoint(tmp_path, {}, 0.0), model)
    assert again == history
    assert history.gradients.lags_before
    for a, b in zip(expected, got, strict=True):
        assert np.array_equal(a, b)


def test_a_plateau_is_remembered_over_an_end(tmp_path: Path) -> None:
    settings = replace(
        FIT, schedule="plateau", decay_after=1, patience=9, passes=6, warm_up=0.0,
        learning_rate=0.5, random_start=0.0,
    )  # fmt: skip
    expected, history = trained(settings)
    assert history.learning_rate[-1] < history.learning_rate[0]
    dying = Dying(tmp_path, {}, 0.0)
    dying.left = 30
    with pytest.raises(Killed):
        trained(settings, dying)
    got, again = trained(settings, Checkpoint(tmp_path, {}, 0.0))
    assert again == history
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_save_that_was_torn_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {}, 0.0)
    checkpoint.save("d", Snapshot({"n": 1}, {"a": np.arange(3)}))
    (tmp_path / "checkpoint.part").write_bytes(b"half")
    found = checkpoint.load("d")
    assert found is not None
    assert found.about == {"n": 1}
    assert found.arrays["a"].tolist() == [0, 1, 2]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz: expected a checkpoint"):
        Checkpoint(tmp_path, {}, 0.0).load("d")


def test_it_is_due_after_its_time_and_at_a_pass_end_after_a_second(tmp_path: Path) -> None:
    now = [0.0]
    checkpoint = Checkpoint(tmp_path, {}, 60.0, lambda: now[0])
    now[0] = 2.0
    assert not checkpoint.is_due()
    assert checkpoint.is_due(pass_ends=True)
    now[0] = 61.0
    assert checkpoint.is_due()
    checkpoint.save("d", Snapshot({}, {}))
    assert not checkpoint.is_due(pass_ends=True)


def test_other_settings_are_refused_by_name_and_harmless_ones_are_not(tmp_path: Path) -> None:
    begun = {"fit": {"rows": 3, "tensorboard": False}, "--parent": ""}
    Checkpoint(tmp_path, begun, 0.0).save("d", Snapshot({}, {}))
    Checkpoint(
        tmp_path, {"fit": {"rows": 3, "tensorboard": True}, "--parent": ""}, 0.0
    ).check_settings()
    with pytest.raises(
        CheckpointError,
        match=r"--resume .*: fit\.rows: expected 3, as it began, got 4: train without --resume",
    ):
        Checkpoint(tmp_path, {"fit": {"rows": 4}, "--parent": ""}, 0.0).check_settings()
    with pytest.raises(CheckpointError, match=r"--parent: expected '', as it began, got 'p'"):
        Checkpoint(tmp_path, {**begun, "--parent": "p"}, 0.0).check_settings()


def test_other_events_are_refused(tmp_path: Path) -> None:
    mine = part()
    changed = replace(mine.sequences[0], labels=mine.sequences[0].labels + 1)
    other = replace(mine, sequences=(changed, *mine.sequences[1:]))
    assert data_sha256([mine]) == data_sha256([part()])
    assert data_sha256([mine]) != data_sha256([other])
    assert data_sha256([mine]) != data_sha256([replace(mine, counts_from=(1,) * 5)])
    Checkpoint(tmp_path, {}, 0.0).save(data_sha256([mine]), Snapshot({}, {}))
    with pytest.raises(CheckpointError, match="the events: expected those with SHA-256"):
        Checkpoint(tmp_path, {}, 0.0).load(data_sha256([other]))


def test_the_newest_unfinished_run_is_one_of_the_same_config(tmp_path: Path) -> None:
    names = ("a[1]-20261120-101500", "a[1]-20261121-101500-2", "a[1]-big-20261122-101500")
    for name in names:
        (tmp_path / name).mkdir()
        Checkpoint(tmp_path / name, {}, 0.0).save("d", Snapshot({}, {}))
    assert unfinished(tmp_path, "a[1]") == tmp_path / names[1]
    assert unfinished(tmp_path, "a[1]-big") == tmp_path / names[2]
    assert unfinished(tmp_path, "a") is None


def test_a_run_in_training_is_not_taken_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "small-20261122-101500"
    folder.mkdir()
    mine = Checkpoint(folder, {}, 0.0)
    mine.save("d", Snapshot({}, {}))
    assert unfinished(tmp_path, "small") == folder
    mine.hold()
    assert unfinished(tmp_path, "small") is None
    with pytest.raises(CheckpointError, match="expected a run at rest, got one in training"):
        Checkpoint(folder, {}, 0.0).hold()
    mine.remove()
    assert unfinished(tmp_path, "small") is None
    Checkpoint(folder, {}, 0.0).hold()


CONFIG = """
[data]
files = ["{log}"]
features = ["a", "b"]
time_field = "t"
label = "y"
kind = "regression"
[split]
by = "key"
validation_share = 0.25
[model]
units = [6]
dropout = 0.3
[fit]
rows = 4
window = 16
passes = {passes}
patience = 1000
save_every_s = 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    lines = [
        json.dumps(
            {"key": f"k{i % 9}", "t": 1000 * i, "a": draw.normal(), "b": draw.normal(5), "y": i}
        )
        for i in range(700)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    file = tmp_path / "small.toml"
    file.write_text(CONFIG.format(log=tmp_path / "log.jsonl", passes=12), encoding="utf-8")
    return file


# A program of its own each time: how TensorFlow reckons is settled when it is loaded.
PROGRAM = "import sys; from keyfold.training.cli import main; sys.exit(main())"


def command(config: Path, runs: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(config), "--out", str(runs), *more]


@pytest.fixture
def killed(config: Path, tmp_path: Path) -> Path:
    """A run whose program was killed by SIGKILL in the middle of its passes."""
    runs = tmp_path / "runs"
    with subprocess.Popen(command(config, runs), stdout=subprocess.DEVNULL) as child:
        while _passes(runs) < 4:
            assert child.poll() is None, "it ended before it could be killed"
        child.send_signal(signal.SIGKILL)
    (folder,) = (file.parent for file in runs.glob(f"*/{CHECKPOINT}"))
    return folder


def _passes(runs: Path) -> int:
    """Return how many passes the only run has saved."""
    for file in runs.glob(f"*/{CHECKPOINT}"):
        with np.load(file) as held:
            return int(json.loads(held["about"].tobytes())["state"]["number"])
    return -1


def test_a_killed_run_goes_on_to_the_weights_of_one_that_was_not(
    config: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = killed.parent
    assert not (killed / "metrics.json").exists()
    assert main([str(config), "--out", str(runs), "--set", "fit.rows=5", "--resume"]) == 1
    assert "fit.rows: expected 4, as it began, got 5" in capsys.readouterr().err
    resumed = subprocess.run(command(config, runs, "--resume"), capture_output=True, check=True)
    assert f"going on with {killed}" in resumed.stdout.decode().replace("\n", "")
    assert (runs / "latest").resolve() == killed
    assert not (killed / CHECKPOINT).exists()
    subprocess.run(command(config, tmp_path / "whole"), capture_output=True, check=True)
    made = [
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for folder in (tmp_path / "whole" / "latest", killed)
    ]
    for name in ("weights_sha256", "history", "metrics"):
        assert made[0][name] == made[1][name]
    assert main([str(config), "--out", str(runs), "--resume", str(killed)]) == 1
    assert "expected an unfinished run, got a finished one" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_another_source_of_its_own_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name would be the same, and the weights neither one's nor the other's."""
    file = tmp_path / "cells_of_mine.py"
    file.write_text("def cell(units): ...\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    data = Data(files=("log.jsonl",), features=("a",))
    settings = Config(data, Split("order", validation_share=0.1), Model("cells_of_mine:cell"))
    checkpoint_of(tmp_path, settings, "").save("data", Snapshot({}, {}))
    checkpoint_of(tmp_path, settings, "").check_settings()
    file.write_text("def cell(units): return units\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"the file of model\.cell: expected '[0-9a-f]+"):
        checkpoint_of(tmp_path, settings, "").check_settings()
