"""Answers of a training run, computed in Keras over whole logs: what the stream has to equal.

Owns a command of its own, so that TensorFlow ends with it: `python -m accuracy.offline RUN OUT
LOG...` writes {key: [output, ...]} as JSON. The logs are one behind the other, as when streamed.
Called by one_run.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import OutputSpec
from keyfold.training import run
from keyfold.training.data import build
from keyfold.training.evaluate import predict
from keyfold.training.forecast import flags, score, with_truth
from keyfold.training.learned import finished
from keyfold.training.sources import read_files
from keyfold.training.split import Part, whole


def main(folder: Path, out: Path, logs: tuple[str, ...]) -> int:
    """Predict every event of the logs."""
    saved = run.load(folder)
    outputs = saved.outputs
    chunks = read_files(logs, saved.data)
    log = finished(
        build(saved.data, chunks, keyed=False, forecast=saved.forecast, features=saved.features)
    )
    if outputs.forecast is not None:
        log = with_truth(log, outputs.forecast)
    part = whole(log.sequences)
    y = predict(saved.network, part)
    answers: dict[str, list[dict[str, Any]]] = {}
    # A key that started anew has several sequences, in their order.
    for sequence, outputs_of in zip(part.sequences, _outputs(y, part, outputs), strict=True):
        answers.setdefault(sequence.key, []).extend(outputs_of)
    out.write_text(json.dumps(answers), encoding="utf-8")
    return 0


def _outputs(
    y: list[NDArray[np.float32]], part: Part, outputs: OutputSpec
) -> Iterator[list[dict[str, Any]]]:
    """Yield each sequence's outputs in the form of predictions, as far as tasks look at them."""
    if outputs.kind == "classification":
        for rows in y:
            yield [{"label": outputs.names[place]} for place in rows.argmax(axis=1)]
    elif outputs.kind == "regression":
        for rows in y:
            yield [{outputs.names[0]: value} for value in rows[:, 0].tolist()]
    elif outputs.anomaly is not None:
        for scores in score(y, part, outputs):
            marks = flags(scores, outputs.anomaly).tolist()
            pairs = zip(scores[:, 0].tolist(), marks, strict=True)
            yield [{"anomaly": {"score": value, "flag": flag}} for value, flag in pairs]


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:])))
