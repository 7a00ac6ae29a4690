"""What a recurrent model must beat: the most frequent class, and a net that sees one event.

Owns the two baselines of a classification, trained on the same part and judged on the same events
as the model. Called by the demo; no run folder, nothing to serve.
"""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from keyfold.export.events import OutputSpec
from keyfold.export.layers import Standardize
from keyfold.training.evaluate import Metrics, measure
from keyfold.training.scaling import learn_scaling
from keyfold.training.split import Part


def majority(train: Part, judged: Part, outputs: OutputSpec) -> Metrics:
    """Judge the class that is most frequent in training, given as the answer to every event."""
    _, labels = _labelled(train)
    frequencies = np.bincount(labels, minlength=len(outputs.names)) / len(labels)
    y = [
        np.tile(frequencies.astype(np.float32), (len(sequence), 1)) for sequence in judged.sequences
    ]
    return measure(y, judged, outputs)


def nonrecurrent(
    train: Part, judged: Part, outputs: OutputSpec, *, seed: int = 0, passes: int = 3
) -> Metrics:
    """Judge a dense net of about the model's size that sees one event at a time, and no history."""
    keras.utils.set_random_seed(seed)
    scaling = learn_scaling(train.sequences, outputs)
    x, labels = _labelled(train)
    net = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            Standardize(scaling.mean, scaling.deviation),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(len(outputs.names), activation="softmax"),
        ]
    )
    net.compile("adam", "sparse_categorical_crossentropy")
    net.fit(x, labels, batch_size=256, epochs=passes, verbose=0)
    y = [net.predict(sequence.x, batch_size=8192, verbose=0) for sequence in judged.sequences]
    return measure(y, judged, outputs)


def _labelled(part: Part) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x = np.concatenate([sequence.x for sequence in part.sequences])
    labels = np.concatenate([sequence.labels for sequence in part.sequences])
    known = ~np.isnan(labels)
    return x[known], labels[known].astype(np.int64)
