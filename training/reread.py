"""A log as a trained run's model sees it: with the run's own inputs, nothing learned anew.

Owns the order of decoding, finishing and forecasting's truths for a model that is there already. It
must not know what is done with the log. Called by `keyfold-train evaluate`, against.py and
tests/accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from keyfold.training.answers import answered
from keyfold.training.data import EventLog, build
from keyfold.training.forecast import with_truth
from keyfold.training.learned import finished
from keyfold.training.run import Run
from keyfold.training.sources import Chunk
from keyfold.training.transcripts import with_symbols


def read_for(saved: Run, chunks: Iterable[Chunk], *, keyed: bool) -> EventLog:
    """Decode chunks of records as a run's model takes them. `keyed`: see data.build."""
    return build(saved.data, chunks, keyed=keyed, forecast=saved.forecast, features=saved.features)


def as_read_by(saved: Run, log: EventLog) -> EventLog:
    """Return the log with the run's inputs finished."""
    return finished(replace(log, target=saved.outputs.target))


def as_seen(saved: Run, log: EventLog) -> EventLog:
    """Return the log with the run's inputs finished, and what its forecasts are held to."""
    log = as_read_by(saved, log)
    if saved.outputs.kind == "transcription":
        return with_symbols(log, saved.outputs)
    forecast = saved.outputs.forecast
    if forecast is not None:
        return with_truth(log, forecast)
    return answered(log, saved.outputs)
