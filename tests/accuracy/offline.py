"""Answers of a training run, computed in Keras over whole logs: what the stream has to equal.

Owns a command of its own, so that TensorFlow ends with it: `python -m accuracy.offline RUN OUT
LOG...` writes {key: [output, ...]} as JSON. The logs are one behind the other, as when streamed.
Called by one_run.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import OutputSpec
from keyfold.training import run
from keyfold.training.evaluate import predict
from keyfold.training.forecast import flags, score
from keyfold.training.likelihood import event_scores
from keyfold.training.reread import as_seen, read_for
from keyfold.training.saying import said
from keyfold.training.sources import read_files
from keyfold.training.split import Part, whole
from keyfold.training.transcription import told


def main(folder: Path, out: Path, logs: tuple[str, ...]) -> int:
    """Predict every event of the logs."""
    saved = run.load(folder)
    outputs = saved.outputs
    log = as_seen(saved, read_for(saved, read_files(logs, saved.data), keyed=False))
    part = whole(log.sequences)
    if outputs.target is not None:
        texts = zip(log.sequences, said(saved.network, log.sequences, outputs), strict=True)
        answered = {sequence.key: [{"text": text}] for sequence, text in texts}
        out.write_text(json.dumps(answered), encoding="utf-8")
        return 0
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
    if outputs.likelihood is not None:
        for kept, sequence in zip(y, part.sequences, strict=True):
            scores = event_scores(kept, sequence)[:, 0].tolist()
            yield [{"anomaly": {"score": None if isnan(one) else one}} for one in scores]
    elif outputs.kind != "forecast":
        yield from (_plain(rows, outputs) for rows in y)
    elif outputs.anomaly is not None:
        for scores in score(y, part, outputs):
            marks = flags(scores, outputs.anomaly).tolist()
            pairs = zip(scores[:, 0].tolist(), marks, strict=True)
            yield [{"anomaly": {"score": value, "flag": flag}} for value, flag in pairs]


def _plain(rows: NDArray[np.float32], outputs: OutputSpec) -> list[dict[str, Any]]:
    if outputs.kind == "classification":
        return [{"label": outputs.names[place]} for place in rows.argmax(axis=1)]
    if outputs.kind == "transcription":
        names = [None, *outputs.names[1:]]
        return [{"symbol": names[column]} for column in told(rows)]
    return [{outputs.names[0]: value} for value in rows[:, 0].tolist()]


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:])))
