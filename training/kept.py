"""Where a training is kept while it runs: its folder, its checkpoint, its TensorBoard logs.

Owns what makes two trainings the same one (settings, libraries, a parent's weights), which folder
can be gone on with, and what becomes of the folder when the training fails. Called by train.py and
cli.py; the form of a checkpoint is checkpoint.py's, the training fit.py's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from keyfold.export.own_cell import source_sha256
from keyfold.training import run, show
from keyfold.training.checkpoint import CHECKPOINT, Checkpoint, CheckpointError
from keyfold.training.config import Config
from keyfold.training.fit import History, Watch, fit
from keyfold.training.losses import Loss
from keyfold.training.model import Network
from keyfold.training.settings_fit import Fit
from keyfold.training.split import Part
from keyfold.training.tensorboard import board
from keyfold.training.trainer import FitError

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"  # decides the last digits


def begun(path: Path) -> Path:
    """Return the folder of an unfinished run. Raises CheckpointError: it is none."""
    # As long as there is a checkpoint: a kill may have come between the last files of a run.
    if (path / CHECKPOINT).is_file():
        return path.resolve()
    if (path / run.METRICS).is_file():
        raise CheckpointError(f"--resume {path}: expected an unfinished run, got a finished one")
    raise CheckpointError(
        f"--resume {path}: expected the folder of an unfinished run, with {CHECKPOINT}, got none: "
        "train without --resume"
    )


def checkpoint_of(folder: Path, config: Config, parent: str) -> Checkpoint:
    """Return the checkpoint of a run in a folder; `parent`: the SHA-256 of its weights, or ""."""
    libraries = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
    libraries[ONEDNN] = os.environ.get(ONEDNN, "")
    settings = {**config.record(), "library": libraries, "--parent": parent}
    if ":" in config.model.cell:
        settings["the file of model.cell"] = source_sha256(config.model.cell)
    return Checkpoint(folder, settings, config.fit.save_every_s)


def fit_in(
    folder: Path,
    checkpoint: Checkpoint,
    what: tuple[Network, tuple[Part, Part], Loss],
    settings: Fit,
    console: Console,
) -> History:
    """Fit a network, kept in a folder meanwhile, from where its checkpoint left it, if it did.

    Raises FitError: then the folder is gone, for it would end so again. Raises CheckpointError.
    """
    network, parts, loss = what
    checkpoint.hold()
    try:
        with (
            board(folder, wanted=settings.tensorboard) as log,
            show.progress(settings.passes, console) as report,
        ):
            return fit(network, parts, settings, loss, Watch(report, checkpoint, log))
    except CheckpointError:
        checkpoint.let_go()
        raise
    except FitError:
        checkpoint.remove()
        shutil.rmtree(folder)
        raise
