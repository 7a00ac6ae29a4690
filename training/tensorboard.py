"""Numbers of a training as TensorBoard reads them.

Owns the log files in a run's folder; TensorFlow writes them, TensorBoard (a package of its own, not
needed here) shows them: tensorboard --logdir runs. Called by train.py, handed to fit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

FOLDER = "tensorboard"  # in the run's folder


@contextmanager
def board(folder: Path, *, wanted: bool) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Lend a function that writes numbers by name, as of a pass; without `wanted` it does nothing.

    A run that is gone on with adds a file: TensorBoard shows all of a folder as one.
    """
    if not wanted:
        yield lambda *_: None
        return
    writer = tf.summary.create_file_writer(str(folder / FOLDER))
    # What tf.summary.scalar writes; that function needs the package tensorboard.
    scalar = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )

    def log(number: int, numbers: Mapping[str, float]) -> None:
        with writer.as_default():
            for name, value in numbers.items():
                tf.summary.write(name, tf.constant(value, tf.float32), number, scalar)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()
